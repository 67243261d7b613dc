"""Transfer beyond chance: how much of a pair's transfer noise of the same size explains.

A brittle model errs under any change of its input. Where q is how often noise of the attack's eps
makes the target err (`netkin.transfer.noise`), the chance-corrected rate of one direction is

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


def pair_table(outcomes: Outcomes) -> pl.DataFrame:
    """One row a pair, in the order of `netkin.similarity.pairs`.

    Columns: a, b; noise_fools_a, noise_fools_b (rates over the images that both classify
    correctly); above_noise, whether the pair's p is above the mean of these two, its 95 % interval
    for the difference being above 0; corrected, corrected_low, corrected_high (rates, 1 at most;
    95 % interval, see `_rate`).
    """
    rows = []
    n = len(outcomes.members)
    for a in range(n):
        for b in range(a + 1, n):
            rows.append(
                {"a": outcomes.members[a], "b": outcomes.members[b], **_pair(outcomes, a, b)}
            )
    return pl.DataFrame(rows)


def corrected_matrix(outcomes: Outcomes) -> NDArray[np.float64]:
    """Chance-corrected rates, [N, N], symmetric, 1 at most; the diagonal is of models alone."""
    n = len(outcomes.members)
    result = np.empty((n, n))
    for a in range(n):
        for b in range(a + 1):
            result[a, b] = result[b, a] = _rate(*_pair_values(outcomes, a, b))[0]
    return result


def directions_at_chance(outcomes: Outcomes) -> int:
    """How many of the N (N - 1) directions fool the target no more often than noise does."""
    n, count = len(outcomes.members), 0
    for a in range(n):
        for b in range(n):
            if a != b:
                values, noise = _pair_values(outcomes, a, b)
                count += bool(values[:, 0].mean() <= noise[:, 0].mean())
    return count


def _pair_values(
    outcomes: Outcomes, a: int, b: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(fooled, noise), each [|X|, 2]: of target b by a's images, and of target a by b's."""
    assert outcomes.noise is not None
    mask = outcomes.both_correct(a, b)
    fooled = np.stack([outcomes.fooled[a, b, mask], outcomes.fooled[b, a, mask]], axis=1)
    return fooled.astype(float), outcomes.noise[[b, a]][:, mask].T.astype(float)


def _pair(outcomes: Outcomes, a: int, b: int) -> dict[str, float | bool]:
    fooled, noise = _pair_values(outcomes, a, b)
    n = len(fooled)
    excess = (fooled - noise).mean(axis=1)
    half = Z_95 * float(excess.std()) / np.sqrt(n)
    rate, low, high = _rate(fooled, noise)
    return {
        "noise_fools_a": float(noise[:, 1].mean()),
        "noise_fools_b": float(noise[:, 0].mean()),
        "above_noise": bool(excess.mean() - half > 0),
        "corrected": rate,
        "corrected_low": low,
        "corrected_high": high,
    }


def _rate(fooled: NDArray[np.float64], noise: NDArray[np.float64]) -> tuple[float, float, float]:
    """The corrected rate of [n, 2] outcomes, and its 95 % interval by the delta method.

    The variance includes that of q, and that of three more images, fooled in no direction, one (by
    half) and both, so that equal outcomes do not count as certain. A direction whose target noise
    always fools counts as 0, and the interval's upper end as 1.
    """
    n = len(fooled)
    kept, unfooled = 1 - noise.mean(axis=0), 1 - fooled.mean(axis=0)  # [2]: 1 - q, 1 - p
    told = kept > 0
    safe = np.where(told, kept, 1.0)
    rates = np.where(told, 1 - unfooled / safe, 0.0)
    more = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    fooled, noise = np.vstack([fooled, more]), np.vstack([noise, np.tile(1 - kept, (3, 1))])
    # How each image moves the rate: the derivatives of 1 - (1 - p) / (1 - q).
    moves = (fooled - (1 - unfooled)) / safe - unfooled * (noise - (1 - kept)) / safe**2
    half = Z_95 * float((moves * told).mean(axis=1).std()) / np.sqrt(n)
    rate = float(rates.mean())
    untold = float((~told).mean())  # such a direction may have any rate
    return rate, rate - half, min(rate + half + untold, 1.0)
