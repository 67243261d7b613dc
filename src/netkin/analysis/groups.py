"""Groups of models, and the mean similarity within them and between them (Sec. 3.2, Tab. D.1)."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin import similarity
from netkin.analysis.statistics import jackknife, over_images
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
        found = {family: np.flatnonzero(np.array(families) == family) for family in families}
        return {family: models.tolist() for family, models in found.items() if len(models) > 1}
    result = {}
    for group, patterns in chosen.items():
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise UserError(
                f"group {group} must be a list of model names or patterns such as [resnet50_*], "
                f"got {patterns!r}"
            )
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"group {group}: no model is named {pattern!r}{near(pattern, names)}"
                )
        models = [i for i, name in enumerate(names) if any(fnmatchcase(name, p) for p in patterns)]
        if len(models) < 2:
            alone = ", ".join(names[i] for i in models)
            raise UserError(f"group {group} has one model, {alone}; expected two or more")
        result[str(group)] = models
    return result


class Draws:
    """Matrices of smoothed scores without some of the images, of which only means over pairs are
    kept: without each image, or each of so many random parts of them where there are more images.

    For N = 1,000 models a thousand matrices are 8 GB; here a row of them at a time is computed.
    """

    def __init__(self, outcomes: Outcomes, draws: int = 1000):
        self.outcomes = outcomes
        self.counts = similarity.leave_out(len(outcomes.image_ids), draws)
        self._group_means: dict[tuple[str, ...], NDArray[np.float64]] = {}

    def group_means(self, groups: Sequence[str]) -> NDArray[np.float64]:
        """The mean score of the pairs of two of G groups of the N models, in the order in which
        they come, in each draw, [draws, G, G].

        Computed once for the same groups. NaN where a draw leaves one of the pairs without images,
        and where there is no pair.
        """
        key = tuple(groups)
        if key not in self._group_means:
            names = list(dict.fromkeys(groups))
            index = np.array([names.index(group) for group in groups])
            starts = np.eye(len(names))[index]  # [N, G]
            total = np.zeros((len(self.counts), len(names), len(names)))
            for a, row in similarity.row_draws(self.outcomes, self.counts):
                scores = row[:, :a]
                if not np.isnan(scores).any():
                    total[:, index[a]] += scores @ starts[:a]
                else:  # NaN times 0 is NaN
                    for i in np.unique(index[:a]):
                        total[:, index[a], i] += scores[:, index[:a] == i].sum(axis=1)
            other = total.transpose(0, 2, 1).copy()
            other[:, np.arange(len(names)), np.arange(len(names))] = 0
            pairs = _pairs(groups)
            with np.errstate(invalid="ignore"):
                self._group_means[key] = (total + other) / np.where(pairs, pairs, np.nan)
        return self._group_means[key]

    def within_and_between(self, groups: Sequence[str]) -> NDArray[np.float64]:
        """Mean scores of pairs within groups and between them, [draws, 2]; NaN where there is no
        such pair."""
        found, pairs = self.group_means(groups), _pairs(groups)
        same, lower = np.eye(len(pairs), dtype=bool), np.tri(len(pairs), k=-1, dtype=bool)
        means = np.full((len(found), 2), np.nan)
        for i, kind in enumerate((same & (pairs > 0), lower)):
            if kind.any():
                means[:, i] = found[:, kind] @ (pairs[kind] / pairs[kind].sum())
        return means


def _pairs(groups: Sequence[str]) -> NDArray[np.intp]:
    """The number of pairs of different models between two groups, and within one, [G, G]."""
    sizes = np.array([list(groups).count(group) for group in dict.fromkeys(groups)])
    pairs = np.outer(sizes, sizes)
    np.fill_diagonal(pairs, sizes * (sizes - 1) // 2)
    return pairs


def within_and_between(
    groups: Sequence[str], scores: NDArray[np.float64]
) -> tuple[float, float] | None:
    """The mean score of pairs within groups and of pairs between them, [N, N] in nats.

    None where there is no pair of one kind.
    """
    pair = np.tri(len(groups), k=-1, dtype=bool)
    same = np.equal.outer(np.array(groups), np.array(groups))
    if not (pair & same).any() or not (pair & ~same).any():
        return None
    return float(scores[pair & same].mean()), float(scores[pair & ~same].mean())


def compared(
    groups: Sequence[str], scores: NDArray[np.float64], draws: Draws
) -> dict[str, tuple[float, float, float]]:
    """The mean score of pairs "within" groups, "between" them, and the "difference", in nats, each
    with its 95 % interval over images; empty where there is no pair of one kind."""
    means = within_and_between(groups, scores)
    if means is None:
        return {}
    values, drawn = np.array(means), draws.within_and_between(groups)
    of = (*zip(values, drawn.T, strict=True), (values[0] - values[1], drawn[:, 0] - drawn[:, 1]))
    return {
        name: (float(value), *over_images(value, of_draws, (-np.inf, similarity.ALWAYS)))
        for name, (value, of_draws) in zip(("within", "between", "difference"), of, strict=True)
    }


def family_means(
    scores: NDArray[np.float64], families: Sequence[str], draws: Draws | None = None
) -> pl.DataFrame:
    """Mean similarity within and between families: family_a, family_b, pairs, mean, low, high.

    A model's score with itself is left out, so a family of one model has no row for itself. low
    and high are the 95 % interval over images, see `statistics.over_images`; null without draws.
    """
    family, names = np.array(families), list(dict.fromkeys(families))
    index = [np.flatnonzero(family == name) for name in names]
    means = None if draws is None else draws.group_means(families)
    rows = []
    for i, first in enumerate(names):
        for j in range(i, len(names)):
            block = scores[np.ix_(index[i], index[j])]
            values = block[np.tri(len(block), k=-1, dtype=bool)] if i == j else block.ravel()
            if values.size:
                mean, ends = float(values.mean()), (None, None)
                if means is not None:
                    ends = over_images(mean, means[:, i, j], (-np.inf, similarity.ALWAYS))
                rows.append((first, names[j], values.size, mean, *ends))
    schema = {"family_a": pl.String, "family_b": pl.String, "pairs": pl.Int64}
    schema |= dict.fromkeys(("mean", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


def mean_of(
    pairs: NDArray[np.bool_],
    scores: NDArray[np.float64],
    draws: NDArray[np.float64] | None = None,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, Any]:
    """The mean score of some pairs, in nats, with two 95 % intervals, as a row of a table.

    Columns: models and pairs (how many), mean; images_low and images_high, over bootstrap draws of
    images, if there are any; models_low and models_high, over the choice of models, by the
    jackknife, for 3 models or more.

    Args:
        pairs: [N, N], which ones, one or more; only below the diagonal.
        scores: [N, N], symmetric.
        draws: [draws, N, N] bootstrap matrices, or None.
        limits: the least and the highest score that there can be; no interval goes beyond.
    """
    mean, without = float(scores[pairs].mean()), []
    models = np.flatnonzero(pairs.any(axis=0) | pairs.any(axis=1))
    for model in models:
        remaining = pairs.copy()
        remaining[model], remaining[:, model] = False, False
        if remaining.any():
            without.append(float(scores[remaining].mean()))
    row = {"models": len(models), "pairs": int(pairs.sum()), "mean": mean}
    if draws is not None:
        row["images_low"], row["images_high"] = interval(draws[:, pairs].mean(axis=1))
    if len(without) == len(models):
        half = jackknife(np.array(without))
        row["models_low"] = max(mean - half, min(limits[0], mean))
        row["models_high"] = min(mean + half, max(limits[1], mean))
    return row
