"""Spectral clustering of a similarity matrix (Ng et al. 2001), as in Sec. 3.1 and Appendix C.

The models are the vertices of a graph, and its edges weigh what their pairs score. There are no
self-loops: a model's score with itself says how strong the attack was, not what it is related to.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from netkin.analysis.hierarchy import hierarchy
from netkin.errors import UserError


class Affinity(NamedTuple):
    """The weights of the graph.

    Attributes:
        weights: [N, N], symmetric, 0 or more, with a zero diagonal.
        shift: what was added to every score of a pair, in nats: 0 unless one was negative.
    """

    weights: NDArray[np.float64]
    shift: float


def affinity(scores: NDArray[np.float64]) -> Affinity:
    """The graph of scores ([N, N], symmetric, in nats; the diagonal is not read).

    An edge cannot weigh less than nothing, but a pair that fools each other on under 1 % of images
    scores below 0. Where there is such a pair all are shifted up until the lowest is 0. That keeps
    order and differences, and (if all models have about the same sum of scores) the eigenvectors
    that tell clusters apart, because a constant graph has none of its own.

    Raises UserError when the scores have NaN, or are all the same and so hold no clusters.
    """
    n = len(scores)
    if scores.shape != (n, n) or not np.allclose(scores, scores.T, equal_nan=True):
        raise ValueError(f"expected a symmetric matrix of scores, got shape {scores.shape}")
    other = ~np.eye(n, dtype=bool)
    pairs = scores[other]
    if not np.isfinite(pairs).all():
        raise UserError(
            f"{int((~np.isfinite(pairs)).sum()) // 2} pairs have no score (NaN or infinite): "
            "clusters need them all"
        )
    if not pairs.size or np.ptp(pairs) < 1e-9:
        raise UserError(
            f"all {pairs.size // 2} pairs of the {n} models score the same: there are no clusters "
            "to find; is it the right matrix?"
        )
    shift = max(0.0, -float(pairs.min()))
    return Affinity(np.where(other, scores + shift, 0.0), shift)


def spectrum(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues ([N], ascending from 0) and eigenvectors (columns of [N, N], of unit length) of
    the normalised Laplacian I - D^-1/2 A D^-1/2, where A are the weights and D their row sums.

    A model without any edge is a component of its own, with eigenvalue 0.
    """
    weights, _ = affinity(scores)
    degree = weights.sum(axis=1)
    linked = degree > 0
    inverse = np.zeros_like(degree)
    inverse[linked] = degree[linked] ** -0.5
    laplacian = np.diag(linked.astype(float)) - inverse[:, None] * weights * inverse
    values, vectors = np.linalg.eigh(laplacian)
    # An eigenvector's sign is arbitrary; its largest entry is made positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))]
    return values, vectors * np.where(largest < 0, -1.0, 1.0)


def features(scores: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Spectral features, [N, k]: the eigenvectors of the k smallest eigenvalues, rows normalised.

    Raises UserError unless 2 <= k <= N.
    """
    _check_k(k, len(scores))
    rows = spectrum(scores)[1][:, :k]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def eigengap(scores: NDArray[np.float64]) -> int:
    """The number of clusters, from 2 to N / 2, after which the eigenvalues jump furthest
    (von Luxburg 2007, Sec. 8.3). More than N / 2 clusters would be single models for the most part.

    Raises UserError for fewer than 3 models.
    """
    n = len(scores)
    if n < 3:
        raise UserError(f"k=auto takes at least 3 models, got {n}")
    values, _ = spectrum(scores)
    most = max(2, n // 2)
    return 2 + int(np.diff(values)[1:most].argmax())


def spectral(
    scores: NDArray[np.float64], k: int, seed: int = 0, restarts: int = 100
) -> NDArray[np.intp]:
    """The cluster of each model, [N] in 0 .. k - 1.

    K-means on the spectral features from `restarts` starts; the one of the lowest objective is
    kept. Clusters are numbered so that neighbours in number are alike (`numbered`), which does not
    depend on the seed.

    Args:
        scores: [N, N], symmetric, in nats; see `affinity` for negative ones.
        k: how many clusters, 2 to N.
        seed: of the K-means starts.
        restarts: K-means runs.

    Raises UserError when k is out of range, and for a matrix without clusters.
    """
    # The features have rank k, so they are k points or more, as K-means needs.
    means = KMeans(k, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
    points = features(scores, k)
    with threadpool_limits(1):  # so few points are not worth the wait for other threads
        labels = means.fit(points).labels_
    assert labels is not None
    return numbered(labels, scores)


def numbered(labels: Sequence[int] | NDArray, scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Clusters numbered 0 .. k - 1 along a line on which neighbours are as alike as can be.

    It is the order of the leaves of average linkage over the clusters' mean scores, begun at the
    end whose cluster holds the earlier model. Any names of the same clusters give the same result.
    """
    _, firsts, labels = np.unique(labels, return_index=True, return_inverse=True)
    k = len(firsts)
    labels = np.argsort(np.argsort(firsts))[labels]  # by their first model
    if k == 1:
        return labels.astype(np.intp)
    members = labels[:, None] == np.arange(k)
    pairs = members.sum(axis=0)
    means = members.T.astype(float) @ scores @ members / np.outer(pairs, pairs)
    order = hierarchy((means + means.T) / 2).order
    if order[0] > order[-1]:
        order = order[::-1]
    return np.argsort(order)[labels].astype(np.intp)


def co_assignment(labels: NDArray) -> NDArray[np.float64]:
    """How often two models share a cluster, [N, N] in [0, 1], over many clusterings [R, N]."""
    same = np.zeros((labels.shape[1], labels.shape[1]))
    for row in labels:
        same += row[:, None] == row
    return same / len(labels)


def _check_k(k: int, n: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 2:
        raise UserError(f"k must be a whole number of 2 or more, or auto, got {k!r}")
    if k > n:
        raise UserError(f"there are {n} models, fewer than k={k} clusters; use a smaller k")
