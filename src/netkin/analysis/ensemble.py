"""Ensembles that average logits, evaluated from stored logits (Sec. 4.1).

The argmax of the mean is that of the sum, so an ensemble costs one addition per model and one
argmax, for each image and class. Logits are read in blocks of images: those of 69 models would not
fit in memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from netkin.similarity import interval

READ = 256
"""Images whose logits are read at once: 71 MB for 69 models and 1,000 classes."""
_CACHED = 16
"""Images that are added up at once: the logits of 69 models for them fit in a core's cache."""

FEW = 10
"""Images with an event, such as an error, below which an interval is exact, not by bootstrap."""

Read = Callable[[slice], NDArray[np.float32]]
"""Logits of all M models on some images: slice(start, stop) -> [M, stop - start, K]."""


def ensembles_correct(
    read: Read,
    labels: NDArray[np.int64],
    groups: Sequence[Sequence[int]],
    threads: int = 1,
    advance: Callable[[int], None] = lambda images: None,
) -> NDArray[np.bool_]:
    """Which images each ensemble classifies correctly, [G, I].

    Args:
        read: returns the models' logits on a block of images.
        labels: [I].
        groups: G ensembles, each the positions of its models; a group of one is the model.
        threads: blocks of images that are processed at once.
        advance: called with the number of images after every block.
    """
    images = len(labels)
    correct = np.empty((len(groups), images), dtype=bool)

    def block(start: int) -> int:
        stop = min(start + READ, images)
        logits = read(slice(start, stop))
        for first in range(start, stop, _CACHED):
            last = min(first + _CACHED, stop)
            part = np.ascontiguousarray(logits[:, first - start : last - start])
            total = np.empty_like(part[0])
            for i, group in enumerate(groups):
                if len(group) == 1:
                    total[:] = part[group[0]]
                else:
                    np.add(part[group[0]], part[group[1]], out=total)
                for model in group[2:]:
                    total += part[model]
                correct[i, first:last] = total.argmax(axis=1) == labels[first:last]
        return stop - start

    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(block, range(0, images, READ)):
            advance(done)
    return correct


Ends = tuple[float, float]
"""Low and high of a 95 % interval."""


class Metrics(NamedTuple):
    """The metrics of G ensembles of one kind, and intervals of their means.

    Attributes:
        error: [G] share of images that the ensemble misclassifies.
        reduction: [G] ERR = 1 - error / (mean error of its members), Sec. 4.1; NaN where no
            member errs.
        all_wrong: [G] share of images that all its members misclassify.
        intervals: of the means over the G ensembles of error, reduction and all_wrong: over
            bootstrap draws of images, or exact where fewer than FEW images decide; see
            `share_interval` and `reduction_interval`. NaN where undefined.
        events: images that any of the members misclassifies.
        one_image: what one more misclassified image takes from the mean ERR; NaN where undefined.
    """

    error: NDArray[np.float64]
    reduction: NDArray[np.float64]
    all_wrong: NDArray[np.float64]
    intervals: tuple[Ends, Ends, Ends]
    events: int
    one_image: float


def metrics(
    wrong: NDArray[np.bool_],
    groups: Sequence[Sequence[int]],
    ensemble_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> Metrics:
    """The metrics of G ensembles.

    Args:
        wrong: [M, I] which images each model misclassifies.
        groups: G ensembles of the M models, all of one size.
        ensemble_wrong: [G, I] which images each ensemble misclassifies.
        counts: [draws, I] bootstrap draws of images (`netkin.similarity.resample`).
    """
    images = wrong.shape[1]
    every = np.stack([wrong[list(group)].all(axis=0) for group in groups])  # [G, I]
    together = ensemble_wrong.mean(axis=0)
    members = np.stack([wrong[list(group)].mean(axis=0) for group in groups])  # [G, I]

    def ends(shares: NDArray) -> Ends:
        if (shares > 0).sum() < FEW:
            return share_interval(float(shares.sum()), images)
        return interval(counts @ shares / images)

    error, alone = ensemble_wrong.mean(axis=1), members.mean(axis=1)
    reduced = reduction(error, alone)
    if min((together > 0).sum(), members.any(axis=0).sum()) < FEW:
        low, high = reduction_interval(together, members.mean(axis=0), len(groups[0]))
        mean = float(mean_known(reduced[None])[0])  # of ratios; the interval is of a ratio
        ends_reduced = min(low, mean), max(high, mean)
    else:
        ends_reduced = interval(mean_known(reduction_draws(wrong, groups, ensemble_wrong, counts)))
    return Metrics(
        error,
        reduced,
        every.mean(axis=1),
        (ends(together), ends_reduced, ends(every.mean(axis=0))),
        int(members.any(axis=0).sum()),
        float(mean_known((1 / (images * np.where(alone > 0, alone, np.nan)))[None])[0]),
    )


def share_interval(events: float, n: float, level: float = 0.95) -> Ends:
    """Clopper and Pearson's exact interval of a rate with so many events in n images.

    Events may be a fraction, where each image has a share in [0, 1] of an event, such as the share
    of several ensembles that misclassify it: the interval is then conservative, because a share
    varies less than an event.
    """
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, events, n - events + 1)) if events > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, events + 1, n - events)) if events < n else 1.0
    return low, high


def reduction_interval(together: NDArray, members: NDArray, size: int) -> Ends:
    """A conservative 95 % interval of ERR = 1 - (sum of together) / (sum of members).

    An ensemble of models that are all right is right, so an image adds at most `size` times as much
    to the first sum as to the second: (1 - ERR) / size is a weighted mean of shares in [0, 1]. Its
    interval is that of `share_interval` for Kish's effective number of images. (NaN, NaN) where no
    member errs.

    Args:
        together: [I] whether the ensemble misclassifies the image, or the share of ensembles.
        members: [I] the share of members that misclassify it.
        size: members in an ensemble.
    """
    total = float(members.sum())
    if not total:
        return np.nan, np.nan
    n = total**2 / float((members**2).sum())
    low, high = share_interval(min(float(together.sum()) / (size * total), 1) * n, n)
    return 1 - size * high, 1 - size * low


def reduction(error: NDArray, members: NDArray) -> NDArray[np.float64]:
    """ERR = 1 - error / members of errors and the mean errors of the members, [G]; NaN where no
    member errs."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(members > 0, 1 - error / members, np.nan).astype(float)


def mean_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each row without its NaN, [n, m] -> [n]; NaN where a row has no other value."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)


def reduction_draws(
    wrong: NDArray[np.bool_],
    groups: Sequence[Sequence[int]],
    ensemble_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """ERR of each ensemble in each bootstrap draw of images, [draws, G]; see `metrics`."""
    weights = counts.astype(np.float32)
    members = weights @ wrong.T.astype(np.float32)
    ensembles = weights @ ensemble_wrong.T.astype(np.float32)
    index = np.array(groups)
    return reduction(ensembles, members[:, index].mean(axis=2))


def pairs_of(n: int) -> list[tuple[int, int]]:
    """All pairs of n models, (a, b) with b < a: in the order of `numpy.tril_indices(n, -1)`."""
    return [(a, b) for a in range(n) for b in range(a)]


def _ways(sizes: Sequence[int], n: int, k: int) -> list[list[list[int]]]:
    """ways[c][m][j]: ways to choose m models from exactly j of the clusters c, c + 1, ..."""
    ways = [[[0] * (k + 1) for _ in range(n + 1)] for _ in range(len(sizes) + 1)]
    ways[-1][0][0] = 1
    for c in reversed(range(len(sizes))):
        for m, j in product(range(n + 1), range(k + 1)):
            ways[c][m][j] = ways[c + 1][m][j] + sum(
                math.comb(sizes[c], take) * ways[c + 1][m - take][j - 1]
                for take in range(1, min(m, sizes[c]) + 1)
                if j
            )
    return ways


def sample(
    labels: Sequence[int], n: int, k: int, samples: int, seed: int = 0
) -> tuple[list[tuple[int, ...]], bool]:
    """Distinct ensembles of n models from exactly k clusters, all equally likely.

    Args:
        labels: the cluster of each model.
        n, k: numbers of models and of clusters that they come from.
        samples: number of ensembles to draw; all are returned where there are no more.
        seed: of the draws.

    Returns:
        The ensembles, as sorted positions of models, and whether these are all ensembles.
    """
    clusters: dict[int, list[int]] = {}
    for model, label in enumerate(labels):
        clusters.setdefault(int(label), []).append(model)
    members = [clusters[label] for label in sorted(clusters)]
    ways = _ways([len(cluster) for cluster in members], n, k)
    if ways[0][n][k] <= samples:
        return sorted(_every(members, n, k)), True
    rng = np.random.default_rng([seed, n, k])
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < samples:
        drawn.add(_one(members, ways, n, k, rng))
    return sorted(drawn), False


def _every(members: Sequence[Sequence[int]], n: int, k: int) -> Iterator[tuple[int, ...]]:
    if not members:
        if n == k == 0:
            yield ()
        return
    for take in range(min(n, len(members[0])) + 1 if k else 1):
        for rest in _every(members[1:], n - take, k - (take > 0)):
            for chosen in combinations(members[0], take):
                yield tuple(sorted((*chosen, *rest)))


def _one(
    members: Sequence[Sequence[int]],
    ways: list[list[list[int]]],
    n: int,
    k: int,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """One ensemble: first the number of models from each cluster, in proportion to the number of
    ensembles with it, then the models."""
    chosen: list[int] = []
    for c, cluster in enumerate(members):
        options = [ways[c + 1][n][k]] + [
            math.comb(len(cluster), take) * ways[c + 1][n - take][k - 1] if k else 0
            for take in range(1, min(n, len(cluster)) + 1)
        ]
        total = sum(options)
        take = int(rng.choice(len(options), p=[option / total for option in options]))
        chosen += rng.choice(cluster, take, replace=False).tolist()
        n, k = n - take, k - (take > 0)
    return tuple(sorted(chosen))
