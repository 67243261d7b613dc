"""Five other measures of similarity to compare with transfer, as pure functions of arrays.

Each gives matrices [draws, N, N] over the same models and images; higher is more similar. Weights
[draws, I] are how often each image is in each bootstrap draw; weights of ones, [1, I], give the
measure itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netkin.analysis.matrix import pair_values
from netkin.analysis.noise import Sampled
from netkin.analysis.statistics import correlations, mean_known

Matrices = NDArray[np.float64]
"""[draws, N, N], symmetric."""


def prediction_agreement(predictions: NDArray[np.int64], weights: NDArray) -> Matrices:
    """How often two models predict the same class, in [0, 1]. predictions: [N, I]."""
    same = (predictions[:, None] == predictions).reshape(-1, predictions.shape[1])
    n = len(predictions)
    return (_shares(weights) @ same.T.astype(float)).reshape(-1, n, n)


def error_consistency(correct: NDArray[np.bool_], weights: NDArray) -> Matrices:
    """Cohen's kappa of two models' errors (Geirhos et al. 2020, Eq. 1 and 2), at most 1, by which
    images [N, I] each model classifies correctly.

    kappa = (o - e) / (1 - e), where o is how often two models are both right or both wrong, and e
    how often two independent models of the same accuracies would be. NaN where e = 1: both are
    always right, or both always wrong.
    """
    shares, right = _shares(weights), correct.astype(float)
    accuracy = shares @ right.T  # [draws, N]
    both = np.einsum("di,ai,bi->dab", shares, right, right, optimize=True)
    a, b = accuracy[:, :, None], accuracy[:, None, :]
    observed = 1 - a - b + 2 * both
    expected = a * b + (1 - a) * (1 - b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(1 - expected > 1e-9, (observed - expected) / (1 - expected), np.nan)


def mean_cosine(cosines: NDArray, weights: NDArray) -> Matrices:
    """Mean over images of the cosine of two models' input gradients, [I, N, N], in [-1, 1]."""
    images, n, _ = cosines.shape
    return (_shares(weights) @ cosines.reshape(images, -1)).reshape(-1, n, n)


def linear_cka(grams: NDArray, weights: NDArray) -> Matrices:
    """Linear centred kernel alignment of features with unbiased HSIC, at most about 1.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019, Eq. 3), where HSIC is the
    unbiased estimator of Song et al. 2012, Eq. 5, as in Nguyen et al. 2021. Unrelated features have
    0 on average, and can therefore be slightly negative; with the biased estimator they are far
    above 0 where features are wider than images are many. NaN for fewer than 4 different images.

    Of a draw it is the mean over all tuples of four different images, each weighted by the product
    of its counts: an image that is in a draw twice is not compared with itself.

    Args:
        grams: [N, I, I], X X' of each model; see `gram`.
        weights: [draws, I], how often each image is in each draw.
    """
    n, images = grams.shape[:2]
    flat = grams.reshape(n, -1).astype(np.float32)
    off = grams * ~np.eye(images, dtype=bool)
    result = np.empty((len(weights), n, n))
    for d, w in enumerate(weights.astype(float)):
        s1, s2, s3, s4 = (float((w**power).sum()) for power in (1, 2, 3, 4))
        tuples = s1**4 - 6 * s1**2 * s2 + 3 * s2**2 + 8 * s1 * s3 - 6 * s4
        if tuples < 0.5:
            result[d] = np.nan
            continue
        product = np.outer(w, w)
        shared = product * (s1**2 - s2 - s1 * np.add.outer(w, w) + 2 * product) / tuples
        weighted = (off * shared.astype(np.float32)).reshape(n, -1)
        rows, squares = off @ w, off @ w**2  # [N, I]
        totals = rows @ w
        crossed = (rows * w) @ squares.T
        rest = np.outer(totals, totals) - (rows * (2 * s1 * w + 2 * w**2)) @ rows.T
        hsic = (weighted @ flat.T).astype(float) + (rest + 2 * (crossed + crossed.T)) / tuples
        hsic = (hsic + hsic.T) / 2  # they differ by rounding
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.sqrt(np.diag(hsic))
            result[d] = hsic / np.outer(norms, norms)
    return result


def gram(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """X X' of features X [I, D], scaled to a mean square row of 1."""
    x = features - features.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=1).mean()) or 1.0
    x = x / scale
    return (x @ x.T).astype(np.float32)


def _shares(weights: NDArray) -> NDArray[np.float64]:
    """Weights that sum to 1 in each draw."""
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Measure:
    """A measure of N models on all images and on samples of them, with its cost in seconds for all
    models, one after another, and the part of it that grows with the square of N."""

    name: str
    sampled: Sampled
    seconds: float
    paired: float = 0.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[N, N], on all images."""
        return self.sampled.values

    @classmethod
    def of(cls, name: str, matrices: Matrices, draws: int, seconds: float) -> "Measure":
        """From the matrix and, after it, the draws and the halves, [1 + draws + halves, N, N]."""
        sampled = Sampled(matrices[0], matrices[1 : 1 + draws], matrices[1 + draws :])
        return cls(name, sampled, seconds)

    def summary(self) -> dict[str, Any]:
        """Stability and cost as a row of a table.

        mean and spread (standard deviation) are over pairs of models; noise is the standard
        deviation of a pair over bootstrap draws, averaged over pairs; agreement is Pearson's r
        between the matrix of a draw and that of all images, averaged over draws.
        """
        values, draws = pair_values(self.matrix), pair_values(self.sampled.draws)
        known = ~np.isnan(values)
        values, draws = values[known], draws[:, known]
        mean = spread = noise = agreement = np.nan
        if len(values):
            mean, spread = float(values.mean()), float(values.std())
            noise = float(np.nanmean(np.nanstd(draws, axis=0)))
        if len(values) > 2:
            agreement = float(mean_known(correlations(values, draws)))
        return {
            "measure": self.name,
            "mean": mean,
            "spread": spread,
            "noise": noise,
            "noise_to_spread": noise / spread if spread else None,
            "agreement": agreement,
            "seconds": self.seconds,
            "seconds_for_pairs": self.paired,
            "seconds_a_model": self.seconds / len(self.matrix),
            "undefined_pairs": int((~known).sum()),
        }
