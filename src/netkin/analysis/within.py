"""How alike models of one kind are, against models of all kinds (Sec. 3.2, Tab. D.1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from netkin.similarity import interval


@dataclass(frozen=True)
class Mean:
    """A mean score over pairs of models, in nats, with two 95 % intervals.

    Attributes:
        mean: over `pairs` pairs of `models` models.
        images: interval over bootstrap draws of images; None without outcomes.
        models_interval: over models, by the jackknife: what other models of the kind would give;
            None for fewer than 3 models.
    """

    mean: float
    models: int
    pairs: int
    images: tuple[float, float] | None
    models_interval: tuple[float, float] | None


def mean_within(scores: NDArray[np.float64], draws: NDArray[np.float64] | None = None) -> Mean:
    """The mean score of the pairs of n >= 2 models.

    Args:
        scores: [n, n], symmetric; the diagonal is not read.
        draws: [draws, n, n] bootstrap matrices, or None.
    """
    n = len(scores)
    return _mean(scores, np.tri(n, k=-1, dtype=bool), draws)


def mean_between(
    scores: NDArray[np.float64], kinds: NDArray, draws: NDArray[np.float64] | None = None
) -> Mean | None:
    """The mean score of the pairs of models of different kinds ([N] labels), None without any."""
    pairs = np.tri(len(scores), k=-1, dtype=bool) & (kinds[:, None] != kinds)
    return _mean(scores, pairs, draws) if pairs.any() else None


def _mean(scores: NDArray, pairs: NDArray[np.bool_], draws: NDArray | None) -> Mean:
    """Of the pairs in a lower-triangular mask."""
    models = np.flatnonzero(pairs.any(axis=0) | pairs.any(axis=1))
    images = None if draws is None else interval(draws[:, pairs].mean(axis=1))
    return Mean(
        float(scores[pairs].mean()),
        len(models),
        int(pairs.sum()),
        images,
        _jackknife(scores, pairs, models),
    )


def _jackknife(
    scores: NDArray, pairs: NDArray[np.bool_], models: NDArray[np.intp]
) -> tuple[float, float] | None:
    """The 95 % interval of a mean over pairs when models, not pairs, are the sample.

    Student's, from the means that leave out one model at a time (Arvesen 1969, for U-statistics).
    """
    without = []
    for model in models:
        kept = pairs.copy()
        kept[model], kept[:, model] = False, False
        if not kept.any():
            return None
        without.append(float(scores[kept].mean()))
    n = len(models)
    error = np.sqrt((n - 1) / n * np.sum((np.array(without) - np.mean(without)) ** 2))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    mean = float(scores[pairs].mean())
    return mean - half, mean + half
