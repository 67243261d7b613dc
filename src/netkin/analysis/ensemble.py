"""Ensembles that average logits, evaluated from stored logits (Sec. 4.1).

The argmax of the mean is that of the sum, so an ensemble costs one addition per model and one
argmax, for each image and class. Logits are read in blocks of images: those of 69 models would not
fit in memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from netkin.analysis.statistics import mean_known
from netkin.similarity import exact_limits, interval

READ = 256  # images whose logits are read at once: 71 MB for 69 models and 1,000 classes
_CACHED = 16
"""Images that are added up at once: the logits of 69 models for them fit in a core's cache."""

FEW = 10
"""Images with an event, such as an error, below which an interval is exact, not by bootstrap."""

ENDS = ("", "_low", "_high")  # suffixes of the columns of a rate and its interval

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


def metrics(
    wrong: NDArray[np.bool_],
    groups: Sequence[Sequence[int]],
    ensemble_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> dict[str, float]:
    """Means over G ensembles of one size, as a row of a table.

    Columns: top1_error, err (ERR = 1 - error / mean error of its members, Sec. 4.1; NaN where no
    member errs) and all_wrong (images that all members misclassify), all rates, each with its 95 %
    interval, ..._low and ..._high: over bootstrap draws of images, or exact where fewer than FEW
    images decide (`share_interval`, `reduction_interval`). images_with_errors: those that any
    member misclassifies; err_of_one_image: what one more misclassified image takes from err.

    Args:
        wrong: [M, I] which images each model misclassifies.
        groups: G ensembles of the M models.
        ensemble_wrong: [G, I] which images each ensemble misclassifies.
        counts: [draws, I] bootstrap draws of images (`netkin.similarity.resample`).
    """
    images, together = wrong.shape[1], ensemble_wrong.mean(axis=0)
    every = np.stack([wrong[list(group)].all(axis=0) for group in groups])  # [G, I]
    members = np.stack([wrong[list(group)].mean(axis=0) for group in groups])  # [G, I]
    alone, events = members.mean(axis=1), int(members.any(axis=0).sum())
    err = float(mean_known(reduction(ensemble_wrong.mean(axis=1), alone)))
    if min((together > 0).sum(), events) < FEW:
        low, high = reduction_interval(together, members.mean(axis=0), len(groups[0]))
        ends = min(low, err), max(high, err)  # err is a mean of ratios, the interval of one ratio
    else:
        ends = interval(mean_known(reduction_draws(wrong, groups, ensemble_wrong, counts)))

    def rate(shares: NDArray) -> tuple[float, ...]:
        few = (shares > 0).sum() < FEW
        exact = share_interval(float(shares.sum()), images)
        return float(shares.mean()), *(exact if few else interval(counts @ shares / images))

    values = {"top1_error": rate(together), "err": (err, *ends)}
    values["all_wrong"] = rate(every.mean(axis=0))
    row = {name + end: v for name, of in values.items() for end, v in zip(ENDS, of, strict=True)}
    one = 1 / (images * np.where(alone > 0, alone, np.nan))
    return {**row, "images_with_errors": events, "err_of_one_image": float(mean_known(one))}


def share_interval(events: float, n: float) -> tuple[float, float]:
    """The exact interval of a rate with so many events in n images; see `exact_limits`.

    Events may be fractions: shares in [0, 1] of an image, such as that of several ensembles that
    misclassify it. The interval is then conservative, because a share varies less than an event.
    """
    low, high = exact_limits(np.array(events / n), np.array(n))
    return float(low), float(high)


def only_one_wrong(wrong: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int, float]:
    """How many images [I] only the other classifier misclassifies, how many only the first, and
    McNemar's exact two-sided p of the hypothesis that both err equally often."""
    won, lost = int((other & ~wrong).sum()), int((wrong & ~other).sum())
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return won, lost, p


def reduction_interval(together: NDArray, members: NDArray, size: int) -> tuple[float, float]:
    """A conservative 95 % interval of ERR = 1 - (sum of together) / (sum of members), [I] each: the
    share of ensembles, of so many members, and of members that misclassify an image.

    An ensemble of models that are all right is right, so an image adds at most `size` times as much
    to the first sum as to the second: (1 - ERR) / size is a weighted mean of shares in [0, 1]. Its
    interval is that of `share_interval` for Kish's effective number of images. (NaN, NaN) where no
    member errs.
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
    members = [np.flatnonzero(np.equal(labels, label)).tolist() for label in np.unique(labels)]
    # ways[c, m, j]: to choose m models from exactly j of the clusters c, c + 1, ...
    ways = {(len(members), m, j): int(m == j == 0) for m in range(n + 1) for j in range(k + 1)}

    def options(c: int, m: int, j: int) -> list[int]:
        """The ways with 0, 1, ... models from cluster c."""
        most = min(m, len(members[c])) if j else 0
        some = [
            math.comb(len(members[c]), take) * ways[c + 1, m - take, j - 1]
            for take in range(1, most + 1)
        ]
        return [ways[c + 1, m, j], *some]

    for c in reversed(range(len(members))):
        for m, j in product(range(n + 1), range(k + 1)):
            ways[c, m, j] = sum(options(c, m, j))

    def every(c: int, m: int, j: int) -> Iterator[tuple[int, ...]]:
        if c == len(members):
            yield ()
            return
        for take, number in enumerate(options(c, m, j)):
            for rest in every(c + 1, m - take, j - (take > 0)) if number else ():
                for chosen in combinations(members[c], take):
                    yield (*chosen, *rest)

    if ways[0, n, k] <= samples:
        return sorted(tuple(sorted(group)) for group in every(0, n, k)), True
    rng, drawn = np.random.default_rng([seed, n, k]), set[tuple[int, ...]]()
    while len(drawn) < samples:
        chosen, m, j = list[int](), n, k
        for c, cluster in enumerate(members):  # how many of each cluster, then which
            some = np.array(options(c, m, j), dtype=object)
            take = int(rng.choice(len(some), p=(some / some.sum()).astype(float)))
            chosen += rng.choice(cluster, take, replace=False).tolist()
            m, j = m - take, j - (take > 0)
        drawn.add(tuple(sorted(chosen)))
    return sorted(drawn), False
