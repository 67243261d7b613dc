"""What single models contribute to scores: strong sources, brittle targets, and what is left.

A score mixes how related two models are with how far each one's adversarial images transfer to any
model, and how easily any image fools it. Two additive fits by least squares, over all pairs of
different models, separate these:

    ln 100 p(A -> B) = mean + strength(A) + brittleness(B) + rest
    s(A, B)          = mean + main(A) + main(B) + rest
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from netkin.analysis import clusters
from netkin.errors import UserError


@dataclass(frozen=True)
class Directions:
    """The fit of one-sided scores.

    Attributes:
        strength: [N] of each model as a source, in nats about a mean of 0.
        brittleness: [N] of each model as a target, in nats about a mean of 0.
        by_source, by_target: shares of the variance of one-sided scores that the sources' and the
            targets' means explain, in [0, 1].
    """

    strength: NDArray[np.float64]
    brittleness: NDArray[np.float64]
    by_source: float
    by_target: float


@dataclass(frozen=True)
class MainEffects:
    """The fit of two-sided scores.

    Attributes:
        effects: [N] of each model, in nats about a mean of 0.
        rest: [N, N] scores without them, symmetric, with the mean of all pairs; the diagonal is
            that of the scores.
        explained: share of the variance of scores that the effects explain, in [0, 1].
    """

    effects: NDArray[np.float64]
    rest: NDArray[np.float64]
    explained: float


@dataclass(frozen=True)
class Change:
    """What differs between two matrices of the same models.

    Attributes:
        rand: adjusted Rand index of their clusters; None where one has none.
        k: the number of clusters in both.
        nearest: number of models with another nearest relative.
        models: N.
    """

    rand: float | None
    k: int
    nearest: int
    models: int


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
    rows, columns = np.tril_indices(n, -1)
    explained = _explained(fitted[rows] + fitted[columns], scores[rows, columns])
    return MainEffects(effects, rest, explained)


def change(scores: NDArray[np.float64], other: NDArray[np.float64]) -> Change:
    """How clusters and nearest relatives differ between two matrices [N, N]."""
    n = len(scores)
    k, _ = clusters.choose_k(None, scores)
    try:
        rand = adjusted_rand_score(clusters.spectral(scores, k), clusters.spectral(other, k))
    except UserError:  # of equal scores there are no clusters
        rand = None
    own = np.eye(n, dtype=bool)
    nearest = [np.where(own, -np.inf, matrix).argmax(axis=1) for matrix in (scores, other)]
    return Change(
        None if rand is None else float(rand), k, int((nearest[0] != nearest[1]).sum()), n
    )


def _explained(fitted: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """R^2 of fitted values; 0 where y does not vary."""
    total = float(((y - y.mean()) ** 2).sum())
    if total < 1e-12:
        return 0.0
    return 1 - float(((y - fitted) ** 2).sum()) / total
