"""Bootstrap draws of images that are used without holding their matrices in memory."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from netkin import similarity
from netkin.similarity import Outcomes


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
