"""Transfer beyond chance: how much of a pair's transfer noise of the same size explains.

A brittle model errs under any change of its input. Where q is how often noise of the attack's eps
makes the target err (`netkin.passes.noise`), the chance-corrected rate of one direction is

    (p - q) / (1 - q)

0 where adversarial images transfer no better than noise fools, 1 where all transfer, and negative
where noise fools more often, as Cohen's kappa corrects agreement. A pair's rate is the mean of its
directions, over the images that both models classify correctly, as in the score of the paper. It
has no logarithm, since rates about 0 are those that matter here.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.similarity import Z_95, Outcomes


def noise_rates(outcomes: Outcomes) -> NDArray[np.float64]:
    """How often noise fools each model, over the images that it classifies correctly, [N].

    NaN for a model that classifies none correctly.
    """
    assert outcomes.noise is not None
    with np.errstate(invalid="ignore"):
        return (outcomes.noise & outcomes.correct).sum(axis=1) / outcomes.correct.sum(axis=1)


def pair_table(outcomes: Outcomes, z: float = Z_95) -> pl.DataFrame:
    """One row a pair, in the order of `netkin.similarity.pairs`.

    Columns: a, b; noise_fools_a, noise_fools_b (rates over the images that both classify
    correctly); above_noise, whether the pair's p is above the mean of these two, its 95 % interval
    for the difference being above 0; corrected, corrected_low, corrected_high (rates, 1 at most;
    95 % interval, see `_rate`).
    """
    n, tables = len(outcomes.members), []
    for a in range(n - 1):
        others = slice(a + 1, n)
        tables.append(
            pl.DataFrame(
                {
                    "a": [outcomes.members[a]] * (n - 1 - a),
                    "b": outcomes.members[others],
                    **_pairs(outcomes, a, others, z),
                }
            )
        )
    return pl.concat(tables) if tables else pl.DataFrame()


def corrected_matrix(outcomes: Outcomes) -> NDArray[np.float64]:
    """Chance-corrected rates, [N, N], symmetric, 1 at most; the diagonal is of models alone."""
    n = len(outcomes.members)
    result = np.empty((n, n))
    for a in range(n):
        counts = _counts(outcomes, a, slice(0, a + 1))
        result[a, : a + 1] = result[: a + 1, a] = _rates(counts)[0]
    return result


def directions_at_chance(outcomes: Outcomes) -> int:
    """How many of the N (N - 1) directions fool the target no more often than noise does."""
    n, count = len(outcomes.members), 0
    for a in range(n):
        counts = _counts(outcomes, a, slice(0, n))
        fooled, noise = counts.sum(axis=(2, 3, 4))[:, 1], counts.sum(axis=(1, 2, 4))[:, 1]
        count += int((fooled <= noise).sum() - (fooled[a] <= noise[a]))
    return count


VALUES = np.array([0.0, 1.0])


def _counts(outcomes: Outcomes, a: int, others: slice) -> NDArray[np.float64]:
    """How many images of X have each combination of outcomes, [P, 2, 2, 2, 2].

    The axes: whether a's images fool the other, the other's images a, noise the other, and noise a.
    Raises UserError, with the pair, where X is empty.
    """
    assert outcomes.noise is not None
    mask = outcomes.correct[a] & outcomes.correct[others]
    if not mask.any(axis=1).all():
        outcomes.both_correct(a, range(len(outcomes.members))[others][int(np.argmin(mask.any(1)))])
    code = 8 * outcomes.fooled[a, others].astype(np.uint8)
    code += 4 * outcomes.fooled[others, a].astype(np.uint8)
    code += 2 * outcomes.noise[others].astype(np.uint8) + outcomes.noise[a].astype(np.uint8)
    code[~mask] = 16
    places = code.astype(np.intp) + 17 * np.arange(len(code))[:, None]
    counts = np.bincount(places.ravel(), minlength=17 * len(code)).reshape(-1, 17)[:, :16]
    return counts.reshape(-1, 2, 2, 2, 2).astype(float)


def _pairs(outcomes: Outcomes, a: int, others: slice, z: float) -> dict[str, NDArray]:
    """The columns of `pair_table` for the pairs of a model."""
    counts = _counts(outcomes, a, others)
    n = counts.sum(axis=(1, 2, 3, 4))
    f, g, q, r = np.meshgrid(VALUES, VALUES, VALUES, VALUES, indexing="ij")
    excess = ((f - q) + (g - r)) / 2
    mean = (counts * excess).sum(axis=(1, 2, 3, 4)) / n
    square = (counts * excess**2).sum(axis=(1, 2, 3, 4)) / n
    half = z * np.sqrt(np.maximum(square - mean**2, 0)) / np.sqrt(n)
    rate, low, high = _rates(counts, z)
    return {
        "noise_fools_a": counts.sum(axis=(1, 2, 3))[:, 1] / n,
        "noise_fools_b": counts.sum(axis=(1, 2, 4))[:, 1] / n,
        "above_noise": mean - half > 1e-12,
        "corrected": rate,
        "corrected_low": low,
        "corrected_high": high,
    }


def _rates(
    counts: NDArray[np.float64], z: float = Z_95
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The corrected rates of pairs, [P], by `_counts`, and their intervals by the delta method.

    The variance includes that of q, and that of three more images, fooled in no direction, one (by
    half) and both, so that equal outcomes do not count as certain. A direction whose target noise
    always fools counts as 0, and the interval's upper end as 1.
    """
    n = counts.sum(axis=(1, 2, 3, 4))
    fooled = np.stack([counts.sum(axis=(2, 3, 4))[:, 1], counts.sum(axis=(1, 3, 4))[:, 1]])
    noise = np.stack([counts.sum(axis=(1, 2, 4))[:, 1], counts.sum(axis=(1, 2, 3))[:, 1]])
    kept, unfooled = 1 - noise / n, 1 - fooled / n  # [2, P]: 1 - q, 1 - p
    told = kept > 0
    safe = np.where(told, kept, 1.0)
    rates = np.where(told, 1 - unfooled / safe, 0.0)
    # How each image moves the rate: the derivatives of 1 - (1 - p) / (1 - q). An image's move is
    # linear in its outcomes, [fooled, noise] in each direction; three more have the mean noise.
    to_fooled, to_noise = told / safe, told * unfooled / safe**2
    mean = (1 - unfooled, 1 - kept)
    total, square = np.zeros(len(n)), np.zeros(len(n))
    for index in np.ndindex(2, 2, 2, 2):
        f, g, q, r = index
        moves = sum(
            to_fooled[k] * (x - mean[0][k]) - to_noise[k] * (y - mean[1][k])
            for k, (x, y) in enumerate(((f, q), (g, r)))
        )
        weight = counts[(slice(None), *index)]
        total += weight * moves / 2
        square += weight * (moves / 2) ** 2
    for x in (0.0, 0.5, 1.0):
        moves = sum(to_fooled[k] * (x - mean[0][k]) for k in range(2))
        total += moves / 2
        square += (moves / 2) ** 2
    images = n + 3
    deviation = np.sqrt(np.maximum(square / images - (total / images) ** 2, 0))
    half = z * deviation / np.sqrt(n)
    rate, untold = rates.mean(axis=0), (~told).mean(axis=0)  # an untold direction has any rate
    return rate, rate - half, np.minimum(rate + half + untold, 1.0)
