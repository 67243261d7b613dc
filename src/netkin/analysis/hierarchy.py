"""Average-linkage clustering of a similarity matrix, which gives the order of figures and pages."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from netkin.errors import UserError


class Hierarchy(NamedTuple):
    """A tree over N models.

    Attributes:
        linkage: [N - 1, 4], as in SciPy: row i joins clusters linkage[i, 0] and linkage[i, 1]
            (below N: a model) at height linkage[i, 2] into cluster N + i of linkage[i, 3] models.
        order: [N] int, the leaves from first to last: of the permutations in which every cluster
            is contiguous, the one with the most similar neighbours.
        top: the highest off-diagonal score in nats (0 where no pair has a score); top - height is
            the mean score between the two clusters that a row joins.
    """

    linkage: NDArray[np.float64]
    order: NDArray[np.intp]
    top: float


def off_diagonal(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The known scores of pairs of different models, each once: [at most N (N - 1) / 2]."""
    pairs = scores[np.tril_indices(len(scores), k=-1)]
    return pairs[~np.isnan(pairs)]


def hierarchy(scores: NDArray[np.float64]) -> Hierarchy:
    """Cluster N >= 2 models by distance = (highest off-diagonal score) - score.

    Args:
        scores: [N, N], symmetric, in nats. The diagonal is not read: a model's distance to itself
            is zero, however weak its attack was. A pair without a score (NaN) gets the mean
            distance of all pairs.

    Raises UserError for fewer than 2 models, and ValueError when the matrix is not symmetric.
    """
    n = len(scores)
    if scores.shape != (n, n) or not np.allclose(scores, scores.T, equal_nan=True):
        raise ValueError(f"expected a symmetric matrix of scores, got shape {scores.shape}")
    if n < 2:
        raise UserError(f"clustering takes at least 2 models, got {n}")
    pairs = off_diagonal(scores)
    top = float(pairs.max()) if pairs.size else 0.0
    distance = top - np.where(np.isnan(scores), pairs.mean() if pairs.size else 0.0, scores)
    distance = np.maximum(distance, 0)  # scores are symmetric up to rounding
    # The condensed form omits the diagonal, which therefore counts as zero.
    tree = linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    return Hierarchy(tree, leaves_list(tree).astype(np.intp), top)
