"""The importance of components for similarity, by gradient boosting on component differences.

Source: Sec. 3.1 and Appendix B. A pair of models is one row: a bit for each component, 1 where the
two differ, and their similarity. The importance of a component is the drop in R^2 when its bits are
shuffled among the pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score

from netkin.analysis.confounders import main_effects
from netkin.analysis.statistics import PERMUTATIONS, lazy, mantel_each
from netkin.errors import UserError


@dataclass(frozen=True)
class Boosting:
    """Gradient boosting's settings; the defaults are the paper's (Appendix B)."""

    stages: int = 500
    depth: int = 12
    min_samples: int = 4
    learning_rate: float = 0.02
    repeats: int = 10
    seed: int = 0


SHALLOW = Boosting(stages=100, depth=3, min_samples=2, learning_rate=0.1)
"""scikit-learn's defaults, for held-out models: trees of the paper's depth keep a leaf for nearly
every pattern of differences, and predict pairs of other models badly."""


class Importance(NamedTuple):
    """How well C components fit similarity: R^2, at most 1, and its drops [C, repeats] when a
    component is shuffled."""

    r2: float
    drops: NDArray[np.float64]


class _Boosted(GradientBoostingRegressor):
    """Predicts each pattern of bits once. There are few patterns and shuffling adds hardly any,
    which makes permutation importance about 40 times faster."""

    def fit(self, X: NDArray[np.bool_], y: NDArray[np.float64]) -> "_Boosted":
        self.known_: dict[bytes, float] = {}
        return super().fit(X, y)

    def predict(self, X: NDArray[np.bool_]) -> NDArray[np.float64]:
        keys = [row.tobytes() for row in np.ascontiguousarray(X, dtype=bool)]
        fresh = {key: i for i, key in enumerate(keys) if key not in self.known_}
        if fresh:
            values = super().predict(np.asarray(X)[list(fresh.values())])
            self.known_ |= dict(zip(fresh, values.tolist(), strict=True))
        return np.array([self.known_[key] for key in keys])


def _boosted(options: Boosting) -> _Boosted:
    return _Boosted(
        n_estimators=options.stages,
        max_depth=options.depth,
        min_samples_split=options.min_samples,
        learning_rate=options.learning_rate,
        random_state=options.seed,
    )


def boosted(
    x: NDArray[np.bool_], y: NDArray[np.float64], options: Boosting | None = None
) -> Importance:
    """Fit on P pairs, bits x [P, C] and scores y [P] in nats, and evaluate on the same ones."""
    options = options or Boosting()
    model = _boosted(options).fit(x, y)
    importance = permutation_importance(
        model, x, y, n_repeats=options.repeats, random_state=options.seed
    )
    drops = np.asarray(importance["importances"], dtype=float)
    return Importance(float(r2_score(y, model.predict(x))), drops)


def pairs(
    differ: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Rows for `boosted` from differences [N, N, C] and scores [N, N]: bits, scores, and the two
    models of each pair. Raises UserError for fewer than 4 models."""
    if len(scores) < 4:
        raise UserError(
            f"importance takes at least 4 models, got {len(scores)}: their pairs are the samples"
        )
    a, b = np.triu_indices(len(scores), k=1)
    return differ[a, b], scores[a, b], a, b


def alone(
    differ: NDArray[np.bool_], scores: NDArray[np.float64], permutations: int = PERMUTATIONS
) -> pl.DataFrame:
    """Each of C components by itself, a row each: mantel_r, mantel_p and holm_p.

    r correlates scores [N, N] without main effects, as in `confounders.related_test`, with whether
    two models differ in the component, [N, N, C]: below 0 where models that differ are less
    similar. p is of the Mantel test. Holm (1979) corrects it for the number of components. Null for
    a component in which all pairs differ, or none.
    """
    rest = main_effects(scores).rest
    tests = mantel_each(np.moveaxis(differ, 2, 0).astype(float), rest, permutations)
    table = pl.DataFrame({"mantel_r": [t.r for t in tests], "mantel_p": [t.p for t in tests]})
    p = pl.col("mantel_p")
    left = p.count() + 1 - p.rank("ordinal")
    return table.fill_nan(None).with_columns(
        holm_p=(p * left)
        .sort_by(p, nulls_last=True)
        .cum_max()
        .clip(upper_bound=1)
        .gather(p.rank("ordinal") - 1)
    )


def least_holm_p(models: int, components: int, permutations: int = PERMUTATIONS) -> float:
    """The least p after Holm's correction that `alone` can find for so many models, in (0, 1]."""
    possible = min(math.factorial(models), permutations + 1)
    return min(components / possible, 1.0)


def lookup_r2(x: NDArray[np.bool_], y: NDArray[np.float64]) -> tuple[float, int]:
    """R^2 of the mean score of each pattern of bits [P, C], and the number of patterns.

    No function of the bits fits the pairs [P] better.
    """
    _, pattern = np.unique(x, axis=0, return_inverse=True)
    means = np.bincount(pattern, y) / np.bincount(pattern)
    return float(r2_score(y, means[pattern])), len(means)


class HeldOut(NamedTuple):
    """R^2 on the pairs of models that were not fitted, at most 1 and below 0 where the mean of the
    fitted pairs predicts better: its mean over splits with the 95 % interval over models, and that
    of each split [S]."""

    r2: float
    low: float
    high: float
    splits: NDArray[np.float64]


def held_out(
    differ: NDArray[np.bool_],
    scores: NDArray[np.float64],
    splits: int = 20,
    share: float = 0.25,
    options: Boosting = SHALLOW,
    done: Callable[[], None] = lambda: None,
) -> HeldOut | None:
    """Fit on the pairs of some models, and evaluate on the pairs of all others, for each split.

    Pairs share models, so a split of pairs would put each model on both sides. Instead a share of
    the models is held out, at least 4, which have 6 pairs. Splits share models, too: the interval
    is Student's with the variance of Nadeau and Bengio (2003), whose 1/S + held out / fitted allows
    for it. None where fewer than 4 models would be left to fit on. `differ` and scores are those of
    `alone`; the seed of the options is that of the splits, 2 or more, too; `done` is called after
    each.
    """
    x, y, a, b = pairs(differ, scores)
    n = len(scores)
    out = max(4, round(share * n))
    if n - out < 4:
        return None
    rng, found = np.random.default_rng(options.seed), np.empty(splits)
    for i in range(splits):
        held = np.isin(np.arange(n), rng.permutation(n)[:out])
        fit, test = ~held[a] & ~held[b], held[a] & held[b]
        found[i] = r2_score(y[test], _boosted(options).fit(x[fit], y[fit]).predict(x[test]))
        done()
    spread = found.std(ddof=1) * (1 / splits + out / (n - out)) ** 0.5
    half = float(lazy.stats.t.ppf(0.975, splits - 1) * spread)
    mean = float(found.mean())
    return HeldOut(mean, mean - half, mean + half, found)
