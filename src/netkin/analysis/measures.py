"""What similarity by transfer is compared with: five other measures, as pure functions of arrays.

Each is a matrix [N, N] over the same models and images, the higher the more alike, and comes with
bootstrap draws. Weights [draws, I] say how often each image is in each draw; [1, I] of ones is
the measure itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netkin.analysis.statistics import correlations

Matrices = NDArray[np.float64]
"""[draws, N, N], symmetric."""


def prediction_agreement(predictions: NDArray[np.int64], weights: NDArray) -> Matrices:
    """How often two models predict the same class, in [0, 1]. predictions: [N, I]."""
    same = (predictions[:, None] == predictions).reshape(-1, predictions.shape[1])
    n = len(predictions)
    return (_shares(weights) @ same.T.astype(float)).reshape(-1, n, n)


def error_consistency(correct: NDArray[np.bool_], weights: NDArray) -> Matrices:
    """Cohen's kappa of who errs where (Geirhos et al. 2020, Eq. 1 and 2), at most 1.

    kappa = (o - e) / (1 - e): o, how often two models are both right or both wrong; e, how often
    two independent models of their accuracies would be. NaN where e = 1: both always right, or
    both always wrong.

    Args:
        correct: [N, I].
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
    """Mean over images of the cosine of two models' input gradients, in [-1, 1].

    cosines: [I, N, N].
    """
    images, n, _ = cosines.shape
    return (_shares(weights) @ cosines.reshape(images, -1)).reshape(-1, n, n)


def linear_cka(grams: NDArray, weights: NDArray) -> Matrices:
    """Linear centred kernel alignment of features (Kornblith et al. 2019, Eq. 3), in [0, 1].

    With centred features X and Y of the same I images, |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms;
    here by way of X X' and Y Y', so that models may have features of any width.

    Args:
        grams: [N, I, I], X X' of each model; see `gram`.
    """
    n = len(grams)
    result = np.empty((len(weights), n, n))
    for d, share in enumerate(_shares(weights)):
        roots = np.sqrt(share)
        flat = np.empty((n, grams[0].size), dtype=np.float32)
        for i, k in enumerate(grams):
            means = k @ share
            centred = k - means[:, None] - means + means @ share
            flat[i] = (roots[:, None] * centred * roots).ravel()
        together = (flat @ flat.T).astype(float)
        norms = np.sqrt(np.diag(together))
        with np.errstate(invalid="ignore", divide="ignore"):
            result[d] = together / np.outer(norms, norms)
    return result


def gram(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """X X' of features X [I, D], scaled to a mean square row of 1."""
    x = features - features.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=1).mean()) or 1.0
    x = x / scale
    return (x @ x.T).astype(np.float32)


def boundary_agreement(predictions: NDArray[np.int32], weights: NDArray) -> Matrices:
    """How often two models predict the same class on planes through triplets of images, in [0, 1]
    (Somepalli et al. 2022, Sec. 4).

    Args:
        predictions: [N, T, S], on S points of T planes.
        weights: [draws, T]: here triplets are drawn, not images.
    """
    n = len(predictions)
    result = np.empty((len(weights), n, n))
    shares = _shares(weights)
    for a in range(n):
        same = (predictions == predictions[a]).mean(axis=2)  # [N, T]
        result[:, a] = shares @ same.T
    return result


def _shares(weights: NDArray) -> NDArray[np.float64]:
    """Weights that add up to 1 in each draw."""
    return weights / weights.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Stability:
    """How much of a measure is the models, and how much the images it was taken on.

    Attributes:
        mean, spread: mean and standard deviation over pairs of models.
        noise: standard deviation over bootstrap draws of a pair, mean over pairs.
        agreement: Pearson's r of a draw's matrix with the whole one's, mean over draws.
    """

    mean: float
    spread: float
    noise: float
    agreement: float


def stability(matrix: NDArray[np.float64], draws: Matrices) -> Stability:
    """From a matrix [N, N] and its bootstrap draws; pairs that are NaN are left out."""
    rows, columns = np.tril_indices(len(matrix), k=-1)
    values, drawn = matrix[rows, columns], draws[:, rows, columns]
    known = ~np.isnan(values)
    values, drawn = values[known], drawn[:, known]
    if not len(values):
        return Stability(np.nan, np.nan, np.nan, np.nan)
    agreement = correlations(values, drawn) if len(values) > 2 else np.array([np.nan])
    agreement = agreement[~np.isnan(agreement)]
    return Stability(
        float(values.mean()),
        float(values.std()),
        float(np.nanmean(np.nanstd(drawn, axis=0))),
        float(agreement.mean()) if len(agreement) else np.nan,
    )
