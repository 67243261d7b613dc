"""Spectral clustering of a similarity matrix (Ng et al. 2001), as in Sec. 3.1 and Appendix C, and
average linkage, which gives the order of figures and pages.

In spectral clustering models are the vertices of a graph whose edges are weighted by the scores of
pairs. There are no self-loops: a model's score with itself measures the strength of the attack.

Every study clusters with `choose_k` and `spectral`, so that one matrix has the same clusters, under
the same numbers, wherever they are named.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse.csgraph import laplacian
from scipy.spatial.distance import squareform
from threadpoolctl import threadpool_limits

from netkin.analysis.matrix import off_diagonal
from netkin.errors import UserError


class Hierarchy(NamedTuple):
    """A tree over N models: SciPy's linkage [N - 1, 4]; the order [N] of its leaves, of those in
    which every cluster is contiguous the one with the most similar neighbours; and the highest
    score in nats (0 where no pair has one): top - height is the mean score between two clusters
    that are joined."""

    linkage: NDArray[np.float64]
    order: NDArray[np.intp]
    top: float


def hierarchy(scores: NDArray[np.float64]) -> Hierarchy:
    """Cluster N >= 2 models by distance = (highest off-diagonal score) - score.

    Scores are [N, N], symmetric, in nats; the diagonal is not read. A pair without a score (NaN)
    gets the mean distance of all pairs. Raises UserError for fewer than 2 models, and ValueError
    when the matrix is not symmetric.
    """
    n = _symmetric(scores)
    if n < 2:
        raise UserError(f"clustering takes at least 2 models, got {n}")
    pairs = off_diagonal(scores)
    top = float(pairs.max()) if pairs.size else 0.0
    distance = top - np.where(np.isnan(scores), pairs.mean() if pairs.size else 0.0, scores)
    distance = np.maximum(distance, 0)  # scores are symmetric up to rounding
    # The condensed form omits the diagonal, which therefore counts as zero.
    tree = linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    return Hierarchy(tree, leaves_list(tree).astype(np.intp), top)


PAPER_K = 10  # the number of clusters in the paper (Sec. 3.1)
EQUAL = 1e-9  # scores closer than this, in nats, are the same


def check_k(k: Any, n: int) -> None:
    """Raises UserError unless `choose_k` accepts k for a matrix of n models."""
    if k == "auto" and n < 3:
        raise UserError(f"k=auto takes at least 3 models, got {n}")
    if k == "auto" or k is None:
        return
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 2:
        raise UserError(f"k must be a whole number of 2 or more, or auto, got {k!r}")
    if k > n:
        raise UserError(f"k must be at most {n}, the number of models, got {k}")


def choose_k(k: int | str | None, scores: NDArray[np.float64]) -> tuple[int, str]:
    """The number of clusters of a matrix [N, N] (see `affinity`), and the reason in words.

    k is the number, from 2 to N; "auto" for the largest gap between eigenvalues (`eigengap`); None
    for the paper's 10, or a third of the models where that is less, but at least 2. Raises
    UserError where it is something else, or there are fewer models than clusters.
    """
    n = len(scores)
    check_k(k, n)
    if k == "auto":
        return eigengap(scores), "the largest gap between eigenvalues"
    if k is not None:
        return int(k), "as chosen"
    if n // 3 >= PAPER_K:
        return PAPER_K, "as in the paper"
    share = f"a third of {n} models" if n >= 6 else f"the fewest, of {n} models"
    return max(2, n // 3), f"{share}; choose another number with k"


def _symmetric(scores: NDArray[np.float64]) -> int:
    """The number of models of a matrix. Raises ValueError where it is not symmetric."""
    n = len(scores)
    if scores.shape != (n, n) or not np.allclose(scores, scores.T, equal_nan=True):
        raise ValueError(f"expected a symmetric matrix of scores, got shape {scores.shape}")
    return n


def affinity(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The weights of the graph of scores [N, N] (in nats; the diagonal is not read), and what was
    added to the scores.

    Weights cannot be negative, but a pair that fools each other on under 1 % of images scores below
    0. If there is such a pair, all scores are shifted up until the lowest is 0. This keeps their
    order and differences. It also keeps the eigenvectors that separate clusters, as long as all
    models have about the same sum of scores, because a constant graph has no such eigenvectors.

    Raises UserError when a score is NaN or infinite, or when all scores are the same. Raises
    ValueError when the matrix is not symmetric.
    """
    n = _symmetric(scores)
    other = ~np.eye(n, dtype=bool)
    pairs = scores[other]
    if not np.isfinite(pairs).all():
        raise UserError(
            f"{int((~np.isfinite(pairs)).sum()) // 2} pairs have no score (NaN or infinite): "
            "clustering needs the scores of all pairs"
        )
    if not pairs.size or np.ptp(pairs) < EQUAL:
        raise UserError(
            f"all {pairs.size // 2} pairs of the {n} models score the same, so there are no "
            "clusters; is it the right matrix?"
        )
    shift = max(0.0, -float(pairs.min()))
    return np.where(other, scores + shift, 0.0), shift


def spectrum(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues ([N], ascending from 0) and eigenvectors (columns of [N, N], of unit length) of
    the normalised Laplacian I - D^-1/2 A D^-1/2, where A are the weights and D their row sums.

    A model without edges is a connected component, with eigenvalue 0.
    """
    values, vectors = np.linalg.eigh(laplacian(affinity(scores)[0], normed=True))
    # An eigenvector's sign is arbitrary; its largest entry is made positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))]
    return values, vectors * np.where(largest < 0, -1.0, 1.0)


def features(scores: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Spectral features, [N, k]: the eigenvectors of the k smallest eigenvalues, rows normalised.

    As in Ng et al. (2001), which the paper cites. Against its Tab. 2 the clusters of the published
    matrix have an adjusted Rand index of 0.871; without row normalisation it is 0.892, with
    self-loops 0.881. These differ less than two samples of images do (0.87), so the index cannot
    choose between them.

    Raises UserError unless 2 <= k <= N.
    """
    check_k(k, len(scores))
    rows = spectrum(scores)[1][:, :k]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def eigengap(scores: NDArray[np.float64]) -> int:
    """The number of clusters, from 2 to N / 2, with the largest gap to the next eigenvalue
    (von Luxburg 2007, Sec. 8.3). More than N / 2 clusters would mostly be single models.

    Raises UserError for fewer than 3 models.
    """
    check_k("auto", len(scores))
    values, _ = spectrum(scores)
    return 2 + int(np.diff(values)[1 : max(2, len(scores) // 2)].argmax())


def spectral(
    scores: NDArray[np.float64], k: int, seed: int = 0, restarts: int = 1000
) -> NDArray[np.intp]:
    """The cluster of each model, [N] in 0 .. k - 1.

    K-means on the spectral features, the best of `restarts` runs by its objective. On the published
    69 models 0.9 % of runs find the best one: the best of 100 misses it for 39 % of seeds, the
    best of 1,000 for 0.01 % (0.1 s). Clusters are numbered so that consecutive ones are similar
    (`numbered`); the numbers do not depend on the seed. With k = N each model is a cluster.

    Args:
        scores: [N, N], symmetric, in nats; see `affinity` for negative ones.
        k: the number of clusters, 2 to N; see `choose_k`.
        seed: of the K-means runs.
        restarts: number of K-means runs.

    Raises UserError when k is out of range, and for a matrix without clusters.
    """
    return numbered(partition(scores, k, seed, restarts), scores)


def partition(
    scores: NDArray[np.float64], k: int, seed: int = 0, restarts: int = 1000
) -> NDArray[np.intp]:
    """`spectral` with clusters under any numbers, which takes a fifth less time."""
    check_k(k, len(scores))
    if k == len(scores):
        return np.arange(k)
    with threadpool_limits(1):  # with so few points, waiting for other threads costs more
        points = features(scores, k)  # of rank k, so there are k points or more, as K-means needs
        labels = _best_of(points, k, seed, restarts) if len(points) <= BATCHED else None
        if labels is None:
            from sklearn.cluster import KMeans

            means: Any = KMeans(k, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
            labels = means.fit(points).labels_
    return labels


BATCHED = 300
"""Points up to which runs of K-means are a batch, which is 10 times as fast for 69."""
ITERATIONS = 300  # of K-means, at most
_CHUNK = 4_000_000  # values that a batch holds at once: 32 MB


def _best_of(
    points: NDArray[np.float64], k: int, seed: int, restarts: int
) -> NDArray[np.intp] | None:
    """The clusters [N] of the best of some runs of K-means on points [N, D]; None where all runs
    have an empty cluster."""
    rng, batch = np.random.default_rng(seed), max(1, _CHUNK // (k * len(points)))
    best, least = None, np.inf
    for start in range(0, restarts, batch):
        spread, labels = _batch(points, k, rng, min(batch, restarts - start))
        if spread.min() < least:
            best, least = labels[spread.argmin()], float(spread.min())
    return best


def _batch(
    points: NDArray[np.float64], k: int, rng: np.random.Generator, restarts: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The objective [restarts] and the clusters [restarts, N] of runs of K-means, all at once:
    greedy k-means++ and Lloyd's iterations, as in scikit-learn. Infinite with an empty cluster."""
    n, d = points.shape
    runs = np.arange(restarts)
    apart = np.maximum(((points[:, None] - points) ** 2).sum(axis=2), 0)  # [N, N]
    centres = np.empty((restarts, k), dtype=np.intp)
    centres[:, 0] = rng.integers(n, size=restarts)
    nearest = apart[centres[:, 0]]  # [restarts, N], the squared distance to the nearest centre
    trials = 2 + int(np.log(k))
    for i in range(1, k):
        total = nearest.cumsum(axis=1)
        drawn = rng.random((restarts, trials, 1)) * total[:, -1:, None]
        tried = np.minimum((total[:, None] <= drawn).sum(axis=2), n - 1)  # [restarts, trials]
        left = np.minimum(nearest[:, None], apart[tried])
        best = left.sum(axis=2).argmin(axis=1)
        centres[:, i], nearest = tried[runs, best], left[runs, best]
    where = points[centres]  # [restarts, k, D]
    labels = np.full((restarts, n), -1, dtype=np.intp)
    for _ in range(ITERATIONS):
        near = _nearest(points, where[runs])
        moved = (near != labels[runs]).any(axis=1)
        if not moved.any():
            break
        labels[runs] = near
        runs = runs[moved]
        members = (near[moved][:, None] == np.arange(k)[:, None]).astype(float)  # [runs, k, N]
        sizes = members.sum(axis=2, keepdims=True)
        means = (members.reshape(-1, n) @ points).reshape(-1, k, d) / np.maximum(sizes, 1)
        where[runs] = np.where(sizes > 0, means, where[runs])
    spread = ((points - where[np.arange(restarts)[:, None], labels]) ** 2).sum(axis=(1, 2))
    found = (np.diff(np.sort(labels, axis=1), axis=1) > 0).sum(axis=1) + 1
    return np.where(found == k, spread, np.inf), labels


def _nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.intp]:
    """The nearest of centres [R, k, D] to each of the points [N, D], [R, N]."""
    runs, k, d = centres.shape
    dots = (centres.reshape(-1, d) @ points.T).reshape(runs, k, -1)
    return ((centres**2).sum(axis=2)[..., None] - 2 * dots).argmin(axis=1)


def numbered(labels: Sequence[int] | NDArray, scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Clusters [N], of any numbers, as 0 .. k - 1 so that consecutive ones are as similar as
    possible.

    The order is that of the leaves of average linkage over the clusters' mean scores ([N, N],
    symmetric, in nats), starting at the end whose cluster has the earlier model.
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


def has_clusters(scores: NDArray[np.float64]) -> bool:
    """Whether a symmetric matrix [N, N] has clusters: scores of all pairs, and not all the same.

    A draw of images may leave a pair without images, or give all pairs of few models one score.
    """
    pairs = off_diagonal(scores)
    return bool(np.isfinite(scores).all() and pairs.size and np.ptp(pairs) >= EQUAL)


def rand_index(labels: NDArray[np.intp], other: NDArray[np.intp]) -> float:
    """The adjusted Rand index of two clusterings [N] (Hubert and Arabie 1985): at most 1, and near
    0 by chance."""
    table = np.zeros((labels.max() + 1, other.max() + 1), dtype=np.intp)
    np.add.at(table, (labels, other), 1)
    both, first, second, every = (
        float((counts * (counts - 1)).sum()) / 2
        for counts in (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    )
    if first == second == both:
        return 1.0
    expected = first * second / every
    return (both - expected) / ((first + second) / 2 - expected)


def resolved(
    scores: NDArray[np.float64],
    draws: Sequence[NDArray[np.float64]],
    k: int,
    seed: int = 0,
    restarts: int = 100,
) -> float:
    """How well draws of images reproduce k clusters: the mean adjusted Rand index between those of
    `scores` [N, N] and of each of the `draws`, of `restarts` K-means runs; too few make it too
    low."""
    labels = partition(scores, k, seed)
    return float(np.mean([rand_index(labels, partition(d, k, seed, restarts)) for d in draws]))


def cohesion(labels: NDArray[np.intp], clusterings: NDArray) -> NDArray[np.float64]:
    """How often a model is with the others of its cluster, [N] in [0, 1].

    The share of clusterings [R, N] in which it shares a cluster with another model of its cluster
    in `labels` [N], averaged over these models. NaN for a model that is alone in its cluster.
    """
    together = labels[:, None] == labels
    np.fill_diagonal(together, False)
    with np.errstate(invalid="ignore"):
        return (co_assignment(clusterings) * together).sum(axis=1) / together.sum(axis=1)


def co_assignment(labels: NDArray) -> NDArray[np.float64]:
    """The share of clusterings [R, N] in which two models share a cluster, [N, N] in [0, 1]."""
    return np.mean([np.equal.outer(row, row) for row in labels], axis=0)
