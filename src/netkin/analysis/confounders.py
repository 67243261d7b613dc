"""Confounders of a score: noise, and what each single model contributes.

A brittle model errs under any change of its input. Where q is how often noise of the attack's eps
makes the target err, the chance-corrected rate of one direction is

    (p - q) / (1 - q)

0 where adversarial images transfer no better than noise fools, 1 where all transfer, and negative
where noise fools more often, as Cohen's kappa corrects agreement. A pair's rate is the mean of its
directions, over the images that both models classify correctly, as in the score of the paper. It
has no logarithm, since rates about 0 are those that matter here.

A score also mixes how related two models are with how far each one's adversarial images transfer to
any model, and how easily any image fools it. Two additive fits by least squares, over all pairs of
different models, separate these:

    ln 100 p(A -> B) = mean + strength(A) + brittleness(B) + rest
    s(A, B)          = mean + main(A) + main(B) + rest
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.analysis import clusters
from netkin.analysis.matrix import pair_values, square
from netkin.analysis.statistics import Tested, together_test
from netkin.errors import UserError
from netkin.similarity import Z_95, Outcomes, both_correct, pair_rows


def noise_rates(outcomes: Outcomes) -> NDArray[np.float64]:
    """How often noise fools each model, over the images that it classifies correctly, [N].

    NaN for a model that classifies none correctly.
    """
    assert outcomes.noise is not None
    with np.errstate(invalid="ignore"):
        return (outcomes.noise & outcomes.correct).sum(axis=1) / outcomes.correct.sum(axis=1)


LEFT = 10
"""Images that noise leaves correct, below which a corrected rate has no interval."""
OUTCOMES = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=float)
"""[16, 4]: whether a's image fools the other, the other's image a, noise the other, and noise a."""


def _counts(outcomes: Outcomes, a: int, others: slice) -> NDArray[np.float64]:
    """How many images of X have each of OUTCOMES, of a model and others [P, 16]."""
    assert outcomes.noise is not None
    mask = both_correct(outcomes, a, others)
    noise = np.broadcast_to(outcomes.noise[a], mask.shape)
    columns = (
        outcomes.fooled[a, others],
        outcomes.fooled[others, a],
        outcomes.noise[others],
        noise,
    )
    code = sum(column.astype(np.intp) << (3 - k) for k, column in enumerate(columns))
    cells = np.where(mask, code, 16) + 17 * np.arange(len(mask))[:, None]
    counts = np.bincount(cells.ravel(), minlength=17 * len(mask)).reshape(-1, 17)
    return counts[:, :16].astype(float)


def pair_table(outcomes: Outcomes, z: float = Z_95) -> pl.DataFrame:
    """One row a pair, in the order of `netkin.similarity.pairs`.

    Columns: a, b; noise_fools_a, noise_fools_b (rates over the images that both classify
    correctly); above_noise, whether the pair's p is above the mean of these two, its 95 % interval
    for the difference being above 0; corrected, corrected_low, corrected_high (rates, 1 at most;
    95 % interval, null where noise leaves few images, see `_rates`).
    """

    def columns(a: int, others: slice) -> dict[str, NDArray]:
        counts = _counts(outcomes, a, others)
        n, excess = counts.sum(axis=1), OUTCOMES @ (0.5, 0.5, -0.5, -0.5)
        mean, square = counts @ excess / n, counts @ excess**2 / n
        half = z * np.sqrt(np.maximum(square - mean**2, 0)) / np.sqrt(n)
        *_, noise_b, noise_a = (counts @ OUTCOMES / n[:, None]).T
        rate, low, high = _rates(counts, z)
        return {
            "noise_fools_a": noise_a,
            "noise_fools_b": noise_b,
            "above_noise": mean - half > 1e-12,
            "corrected": rate,
            "corrected_low": low,
            "corrected_high": high,
        }

    return pair_rows(outcomes, columns).with_columns(pl.col("^corrected_.*$").fill_nan(None))


def corrected_matrix(outcomes: Outcomes, pairs: pl.DataFrame) -> NDArray[np.float64]:
    """Chance-corrected rates, [N, N], symmetric, 1 at most, of `pair_table`; the diagonal is of
    models alone."""
    n = len(outcomes.members)
    alone = [_rates(_counts(outcomes, a, slice(a, a + 1)))[0].item() for a in range(n)]
    result = np.diag(alone)
    rows, columns = np.triu_indices(n, k=1)
    result[rows, columns] = result[columns, rows] = pairs["corrected"].to_numpy()
    return result


def _rates(
    counts: NDArray[np.float64], z: float = Z_95
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The corrected rates of pairs, [P], by `_counts`, and their intervals by the delta method.

    The variance includes that of q, and that of three more images, fooled in no direction, one (by
    half) and both, so that equal outcomes do not count as certain. A direction whose target noise
    always fools counts as 0. NaN for an interval where noise leaves fewer than LEFT images correct
    in a direction.
    """
    n = counts.sum(axis=1)
    p, q = np.hsplit(counts @ OUTCOMES / n[:, None], 2)  # [P, 2], by direction
    known = q < 1
    kept = np.where(known, 1 - q, 1.0)
    rate = np.where(known, 1 - (1 - p) / kept, 0.0).mean(axis=1)
    # How each image moves the rate: the derivatives of 1 - (1 - p) / (1 - q), times its outcomes'
    # differences from their means [P, image, direction]; three more images have the mean noise.
    by_p, by_q = (known / kept)[:, None], (known * (1 - p) / kept**2)[:, None]
    moves = (OUTCOMES[:, :2] - p[:, None]) * by_p - (OUTCOMES[:, 2:] - q[:, None]) * by_q
    more = (np.array([[0.0], [0.5], [1.0]]) - p[:, None]) * by_p
    moves = np.concatenate([moves, more], axis=1).mean(axis=2)
    weights = np.hstack([counts, np.ones((len(counts), 3))])
    mean, square = ((weights * moves**k).sum(axis=1) / (n + 3) for k in (1, 2))
    half = z * np.sqrt(np.maximum(square - mean**2, 0)) / np.sqrt(n)
    few = (n[:, None] * (1 - q) < LEFT - 1e-9).any(axis=1)
    half[few] = np.nan
    return rate, rate - half, np.minimum(rate + half, 1.0)


class Directions(NamedTuple):
    """The fit of one-sided scores: of each model its strength as a source and its brittleness as a
    target, [N] in nats about a mean of 0, and the shares of the variance that the sources' and the
    targets' means explain, in [0, 1]."""

    strength: NDArray[np.float64]
    brittleness: NDArray[np.float64]
    by_source: float
    by_target: float


class MainEffects(NamedTuple):
    """The fit of two-sided scores: of each model its effect, [N] in nats about a mean of 0; scores
    without them, [N, N] with the mean and the diagonal of the scores; and the share of the variance
    that effects explain, in [0, 1]."""

    effects: NDArray[np.float64]
    rest: NDArray[np.float64]
    explained: float


class Change(NamedTuple):
    """What differs between two matrices of N models: the adjusted Rand index of their k clusters
    (None where one has none), and how many models have another nearest relative."""

    rand: float | None
    k: int
    nearest: int


def asymmetry(a_fools_b: NDArray, b_fools_a: NDArray) -> NDArray[np.float64]:
    """The share of the larger direction in the sum of both, in [0.5, 1]; NaN where both are 0."""
    total = a_fools_b + b_fools_a
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, np.maximum(a_fools_b, b_fools_a) / total, np.nan)


def directions(one_sided: NDArray[np.float64]) -> Directions:
    """The fit of one-sided scores [N, N] (`netkin.similarity.one_sided`), N of 3 or more."""
    n = len(one_sided)
    y = np.where(np.eye(n, dtype=bool), 0.0, one_sided)
    of_source, of_target = y.sum(axis=1), y.sum(axis=0)
    # The normal equations of all pairs without the diagonal, solved for each model by itself.
    strength = ((n - 1) * of_source + of_target) / (n * (n - 2))
    brittleness = ((n - 1) * of_target + of_source) / (n * (n - 2))
    by_source = np.broadcast_to((of_source / (n - 1))[:, None], (n, n))
    by_target = np.broadcast_to(of_target / (n - 1), (n, n))
    pairs = ~np.eye(n, dtype=bool)
    return Directions(
        strength - strength.mean(),
        brittleness - brittleness.mean(),
        _explained(by_source[pairs], y[pairs]),
        _explained(by_target[pairs], y[pairs]),
    )


def main_effects(scores: NDArray[np.float64]) -> MainEffects:
    """The fit of scores [N, N], symmetric, N of 3 or more."""
    n = len(scores)
    sums = np.where(np.eye(n, dtype=bool), 0.0, scores).sum(axis=1)
    fitted = (sums - sums.sum() / (2 * (n - 1))) / (n - 2)  # the normal equations' solution
    effects = fitted - fitted.mean()
    rest = scores - effects[:, None] - effects
    np.fill_diagonal(rest, np.diag(scores))
    explained = _explained(pair_values(fitted[:, None] + fitted), pair_values(scores))
    return MainEffects(effects, rest, explained)


def related_test(scores: NDArray[np.float64], together: NDArray[np.bool_]) -> Tested:
    """`together_test` of scores [N, N] without main effects: a group of models that all fool, or
    are fooled by, any model is no more related for that."""
    return together_test(main_effects(scores).rest, together)


def unrelated(
    scores: NDArray[np.float64], draws: int, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """Matrices of models that are not related: what chance gives of anything that is selected for
    being alike, such as nearest models and clusters.

    Each keeps the main effects of `scores` ([N, N], symmetric, N of 4 or more) and shuffles the
    rest among the pairs, so that a model that fools all, or is fooled by all, still does. The rest
    is as large as it was before N effects were fitted to it.
    """
    n, rng = len(scores), np.random.default_rng(seed)
    rest = main_effects(scores).rest
    fitted, values = np.where(np.eye(n), scores, scores - rest), pair_values(rest)
    values = values.mean() + (values - values.mean()) * np.sqrt((n - 1) / (n - 3))
    for _ in range(draws):
        yield fitted + square(rng.permutation(values), n, 0.0)


def change(
    scores: NDArray[np.float64],
    other: NDArray[np.float64],
    labels: NDArray[np.intp] | None = None,
) -> Change:
    """How clusters and nearest relatives differ between two matrices [N, N]; `labels` are the
    clusters of `scores`, where they are known."""
    k, _ = clusters.choose_k(None, scores)
    try:
        labels = clusters.spectral(scores, k) if labels is None else labels
        rand = clusters.rand_index(labels, clusters.spectral(other, k))
    except UserError:  # of equal scores there are no clusters
        rand = None
    return Change(rand, k, int((nearest(scores) != nearest(other)).sum()))


def nearest(scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """The most similar other model of each, [N, N] -> [N]."""
    return np.where(np.eye(len(scores), dtype=bool), -np.inf, scores).argmax(axis=1)


def _explained(fitted: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """R^2 of fitted values; 0 where y does not vary."""
    total = float(((y - y.mean()) ** 2).sum())
    if total < 1e-12:
        return 0.0
    return 1 - float(((y - fitted) ** 2).sum()) / total
