"""The mean similarity of models of one kind and of different kinds (Sec. 3.2, Tab. D.1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from netkin.similarity import interval

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
