"""Groups of models, and the mean similarity within them and between them (Sec. 3.2, Tab. D.1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from netkin import similarity
from netkin.errors import UserError, near
from netkin.similarity import Outcomes, interval


def groups(
    chosen: Mapping[str, Any] | None, names: Sequence[str], families: Sequence[str]
) -> dict[str, list[int]]:
    """Positions of models by group, each of two models or more.

    Args:
        chosen: name of a group -> model names or patterns such as "resnet50_*"; None for the
            families with two models or more.
        names, families: of the models.

    Raises UserError for a pattern that matches no model, and for a group of one model.
    """
    if chosen is None:
        members = {
            family: [i for i, other in enumerate(families) if other == family]
            for family in dict.fromkeys(families)
        }
        return {family: models for family, models in members.items() if len(models) > 1}
    result = {}
    for group, patterns in chosen.items():
        if isinstance(patterns, str):
            patterns = [patterns]
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise UserError(
                f"group {group} must be a list of model names or patterns such as [resnet50_*], "
                f"got {patterns!r}"
            )
        models: dict[int, None] = {}
        for pattern in patterns:
            matched = [i for i, name in enumerate(names) if fnmatchcase(name, pattern)]
            if not matched:
                raise UserError(
                    f"group {group}: no model is named {pattern!r}{near(pattern, names)}"
                )
            models |= dict.fromkeys(matched)
        if len(models) < 2:
            alone = names[next(iter(models))]
            raise UserError(f"group {group} has one model, {alone}; expected two or more")
        result[str(group)] = sorted(models)
    return result


class Draws:
    """The draws of `netkin.similarity.bootstrap`, of which only means over pairs are kept.

    For N = 1,000 models a thousand matrices are 8 GB; here a row of them at a time is computed.

    Args:
        outcomes: of N models.
        draws: number of draws.
        seed: of the draws, as of `netkin.similarity.bootstrap`.
    """

    def __init__(self, outcomes: Outcomes, draws: int = 1000, seed: int = 0):
        self.outcomes = outcomes
        self.counts = similarity.resample(len(outcomes.image_ids), draws, seed)
        self._group_means: dict[tuple[str, ...], NDArray[np.float64]] = {}

    def _rows(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Each model a, from the second on, with its scores with those before it, [draws, a]."""
        o = self.outcomes
        counts = self.counts.astype(np.float32)  # exact: sums of halves, far below 2^23
        for a in range(1, len(o.members)):
            both = (o.correct[a] & o.correct[:a]).astype(np.float32)
            z = (o.fooled[a, :a].astype(np.float32) + o.fooled[:a, a]) / 2 * both
            yield a, similarity.smoothed(counts @ z.T, counts @ both.T)

    def group_means(self, groups: Sequence[str]) -> NDArray[np.float64]:
        """The mean score of the pairs of two of G groups of models in each draw, [draws, G, G].

        Computed once for the same groups. NaN where a draw leaves one of the pairs without images,
        and where there is no pair.

        Args:
            groups: of the N models; G in the order in which they come.
        """
        key = tuple(groups)
        if key not in self._group_means:
            names = list(dict.fromkeys(groups))
            place = np.array([names.index(group) for group in groups])
            starts = np.eye(len(names))[place]  # [N, G]
            total = np.zeros((len(self.counts), len(names), len(names)))
            for a, scores in self._rows():
                if not np.isnan(scores).any():
                    total[:, place[a]] += scores @ starts[:a]
                else:  # NaN times 0 is NaN
                    for i in np.unique(place[:a]):
                        total[:, place[a], i] += scores[:, place[:a] == i].sum(axis=1)
            other = total.transpose(0, 2, 1).copy()
            other[:, np.arange(len(names)), np.arange(len(names))] = 0
            pairs = similarity.pairs_of_groups(groups)
            with np.errstate(invalid="ignore"):
                self._group_means[key] = (total + other) / np.where(pairs, pairs, np.nan)
        return self._group_means[key]


def within_and_between(
    draws: NDArray[np.float64] | similarity.MeansOfDraws, groups: Sequence[str]
) -> NDArray[np.float64]:
    """Mean scores of pairs within groups and between them, [draws, 2], of matrices [draws, N, N] or
    without them. NaN where there is no such pair."""
    if isinstance(draws, np.ndarray):
        lower = np.tri(len(groups), k=-1, dtype=bool)
        same = np.equal.outer(np.array(groups), np.array(groups))
        blocks = [draws[:, lower & kind] for kind in (same, ~same)]
        means = [np.nan * draws[:, 0, 0] if not b.size else b.mean(axis=1) for b in blocks]
        return np.stack(means, axis=1)
    found, pairs = draws.group_means(groups), similarity.pairs_of_groups(groups)
    same, lower = np.eye(len(pairs), dtype=bool), np.tri(len(pairs), k=-1, dtype=bool)
    means = []
    for kind in (same & (pairs > 0), lower):
        with np.errstate(invalid="ignore"):
            means.append(found[:, kind] @ (pairs[kind] / pairs[kind].sum()))
        if not kind.any():
            means[-1][:] = np.nan
    return np.stack(means, axis=1)


ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Mean:
    """A mean score over pairs of models, in nats, with two 95 % intervals.

    Attributes:
        mean: over `pairs` pairs of `models` models.
        images: interval over bootstrap draws of images; None without draws.
        models_interval: interval over the choice of models, by the jackknife; None for fewer than 3
            models.
    """

    mean: float
    models: int
    pairs: int
    images: tuple[float, float] | None
    models_interval: tuple[float, float] | None


def mean_within(
    scores: NDArray[np.float64],
    draws: NDArray[np.float64] | None = None,
    limits: tuple[float, float] = ANY,
) -> Mean:
    """The mean score of the pairs of n >= 2 models.

    Args:
        scores: [n, n], symmetric; the diagonal is not read.
        draws: [draws, n, n] bootstrap matrices, or None.
        limits: the least and the highest score that there can be; no interval goes beyond.
    """
    n = len(scores)
    return _mean(scores, np.tri(n, k=-1, dtype=bool), draws, limits)


def mean_between(
    scores: NDArray[np.float64],
    kinds: NDArray,
    draws: NDArray[np.float64] | None = None,
    limits: tuple[float, float] = ANY,
) -> Mean | None:
    """The mean score of the pairs of models of different kinds ([N] labels), None without any.

    The other arguments are those of `mean_within`.
    """
    pairs = np.tri(len(scores), k=-1, dtype=bool) & (kinds[:, None] != kinds)
    return _mean(scores, pairs, draws, limits) if pairs.any() else None


def _mean(
    scores: NDArray, pairs: NDArray[np.bool_], draws: NDArray | None, limits: tuple[float, float]
) -> Mean:
    """Of the pairs in a lower-triangular mask."""
    models = np.flatnonzero(pairs.any(axis=0) | pairs.any(axis=1))
    images = None if draws is None else interval(draws[:, pairs].mean(axis=1))
    mean = float(scores[pairs].mean())
    ends = _jackknife(scores, pairs, models)
    if ends is not None:
        ends = max(ends[0], min(limits[0], mean)), min(ends[1], max(limits[1], mean))
    return Mean(mean, len(models), int(pairs.sum()), images, ends)


def _jackknife(
    scores: NDArray, pairs: NDArray[np.bool_], models: NDArray[np.intp]
) -> tuple[float, float] | None:
    """The 95 % interval of a mean over pairs when models, not pairs, are the sample.

    Student's, from the means without one model at a time (Arvesen 1969, for U-statistics).
    """
    without = []
    for model in models:
        remaining = pairs.copy()
        remaining[model], remaining[:, model] = False, False
        if not remaining.any():
            return None
        without.append(float(scores[remaining].mean()))
    n = len(models)
    error = np.sqrt((n - 1) / n * np.sum((np.array(without) - np.mean(without)) ** 2))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    mean = float(scores[pairs].mean())
    return mean - half, mean + half
