"""Bootstrap draws of images that are used without holding their matrices in memory."""

from collections.abc import Sequence

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

    def means(self, blocks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
        """The mean score of some pairs in each draw, [draws, B].

        Args:
            blocks: B masks of pairs, [N, N], true below the diagonal only. NaN where a draw leaves
                one of their pairs without images.
        """
        o, total = self.outcomes, np.zeros((len(self.counts), len(blocks)))
        undefined = np.zeros(total.shape, dtype=bool)
        pairs = np.array([int(block.sum()) for block in blocks])
        for a in range(1, len(o.members)):
            chosen = np.stack([block[a, :a] for block in blocks], axis=1)  # [a, B]
            used = chosen.any(axis=1)
            if not used.any():
                continue
            both = o.correct[a] & o.correct[:a][used]
            z = (o.fooled[a, :a][used].astype(float) + o.fooled[:a, a][used]) / 2
            k, n = self.counts @ (z * both).T, self.counts @ both.T.astype(float)
            scores = similarity.smoothed(k, n)
            unknown, weights = np.isnan(scores), chosen[used].astype(float)
            total += np.where(unknown, 0.0, scores) @ weights
            if unknown.any():
                undefined |= unknown @ weights > 0
        with np.errstate(invalid="ignore"):
            return np.where(undefined, np.nan, total / pairs)
