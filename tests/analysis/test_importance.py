"""Importance of components, on data where the truth is known, and against scikit-learn."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.inspection import permutation_importance

from netkin.analysis.components import differences, keywords
from netkin.analysis.confounders import main_effects
from netkin.analysis.importance import (
    Boosting,
    alone,
    boosted,
    held_out,
    least_holm_p,
    lookup_r2,
    pairs,
)
from netkin.analysis.matrix import square
from netkin.errors import UserError

QUICK = Boosting(stages=40, learning_rate=0.1)


def planted(n: int = 24, seed: int = 0) -> tuple[pl.DataFrame, NDArray]:
    """Models whose similarity falls by 2 where a differs, by 0.5 where b does, never for c."""
    rng = np.random.default_rng(seed)
    table = pl.DataFrame(
        {
            "model": [f"m{i}" for i in range(n)],
            **{name: rng.choice(["x", "y", "z"], n) for name in ("a", "b", "c")},
        }
    )
    differ = differences(table).astype(float)
    return table, 4 - 2 * differ[..., 0] - 0.5 * differ[..., 1]


def test_planted_importance_comes_out_on_models_never_seen() -> None:
    table, scores = planted()
    differ = differences(table)
    x, y, *_ = pairs(differ, scores)
    fitted = boosted(x, y, QUICK)
    assert fitted.r2 > 0.99 and fitted.drops.shape == (3, 10)
    drops = fitted.drops.mean(axis=1)
    assert drops[0] > 4 * drops[1] > 0 and abs(drops[2]) < 0.01
    calls: list[int] = []
    out = held_out(differ, scores, 5, 0.25, QUICK, lambda: calls.append(1))
    assert out is not None and len(out.splits) == len(calls) == 5
    assert out.splits.min() > 0.95 and len({*out.splits}) > 1
    assert out.r2 == pytest.approx(out.splits.mean()) and out.low < out.r2 < out.high
    one = stats.t.interval(0.95, 4, out.r2, stats.sem(out.splits))  # of independent splits
    assert out.high - out.low == pytest.approx((one[1] - one[0]) * (1 + 5 * 6 / 18) ** 0.5)


def test_a_similarity_of_chance_is_not_foretold() -> None:
    """On the pairs it was fitted on it seems to be: the reason for holding models out."""
    rng = np.random.default_rng(0)
    n = 20
    differ = rng.random((n, n, 8)) < 0.5
    differ |= differ.transpose(1, 0, 2)
    scores = rng.random((n, n))
    scores += scores.T
    x, y, *_ = pairs(differ, scores)
    assert boosted(x, y, QUICK).r2 > 0.4
    out = held_out(differ, scores, 5, 0.3, QUICK)
    assert out is not None and out.low < 0


def test_predictions_and_importance_are_scikit_learns() -> None:
    table, scores = planted(10)
    x, y, *_ = pairs(differences(table), scores + np.random.default_rng(1).random((10, 10)))
    ours = boosted(x, y, QUICK)
    model = GradientBoostingRegressor(
        n_estimators=40, max_depth=12, min_samples_split=4, learning_rate=0.1, random_state=0
    ).fit(x, y)
    theirs = permutation_importance(model, x, y, n_repeats=10, random_state=0)
    assert ours.r2 == pytest.approx(model.score(x, y))
    np.testing.assert_allclose(
        ours.drops, np.asarray(theirs["importances"], dtype=float), atol=1e-12
    )


def test_components_by_themselves_and_holm_by_hand() -> None:
    """One component of three makes models similar; one in which all are alike tells nothing."""
    rng = np.random.default_rng(0)
    values = np.stack([np.repeat([0, 1], 5), rng.permutation(np.repeat([0, 1], 5)), np.ones(10)], 1)
    differ = values[:, None] != values[None]
    noise = rng.normal(scale=0.2, size=(10, 10))
    scores = 3.0 - differ[:, :, 0] + noise + noise.T
    (r, p, holm), (_, p_other, holm_other), nothing = alone(differ, scores, 999).rows()
    assert r < -0.5 and p < 0.05 and p < p_other
    assert holm == pytest.approx(2 * p)  # two components can be tested
    assert holm_other == pytest.approx(max(p_other, 2 * p))
    assert nothing == (None, None, None)


def test_main_effects_are_no_relation() -> None:
    """A kind of models that fools all others has high scores, but not for being alike."""
    rng = np.random.default_rng(0)
    kind = np.arange(20) < 14
    noise = rng.normal(scale=0.1, size=(20, 20))
    scores = 2.0 + kind[:, None] + kind + noise + noise.T
    ((r, p, _),) = alone((kind[:, None] != kind)[:, :, None], scores, 999).rows()
    assert abs(r) < 0.2 and p > 0.05


def test_few_models_cannot_show_anything() -> None:
    """The least p that the models' permutations allow is found where the order is perfect."""
    assert least_holm_p(4, 8) == pytest.approx(8 / 24)
    assert least_holm_p(3, 8) == 1.0
    assert least_holm_p(69, 13) == pytest.approx(13 / 10_000)
    apart = square(np.random.default_rng(0).normal(size=10), 5, 0.0)
    perfect: Any = main_effects(apart).rest[:, :, None]
    ((_, p, holm),) = alone(perfect, apart).rows()
    assert p == holm == pytest.approx(least_holm_p(5, 1))


def test_no_regressor_exceeds_the_table_of_patterns() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 3)) < 0.5, rng.normal(size=60)
    r2, patterns = lookup_r2(x, y)
    assert patterns == len({row.tobytes() for row in x})
    assert boosted(x, y).r2 <= r2 + 1e-9
    assert lookup_r2(np.arange(6)[:, None] == np.arange(6), y[:6]) == (1.0, 6)


def test_too_few_models() -> None:
    table, scores = planted(7)
    assert held_out(differences(table), scores, 3, 0.25, QUICK) is None
    with pytest.raises(UserError, match="importance takes at least 4 models, got 3"):
        pairs(differences(table[:3]), scores[:3, :3])


@given(seed=st.integers(0, 999))
@settings(max_examples=30)
def test_differences_are_a_symmetric_hamming_distance(seed: int) -> None:
    table, _ = planted(8, seed)
    differ = differences(table)
    assert not differ[np.arange(8), np.arange(8)].any()
    assert (differ == differ.transpose(1, 0, 2)).all()
    a, b = table.row(0)[1:], table.row(1)[1:]
    assert differ[0, 1].tolist() == [x != y for x, y in zip(a, b, strict=True)]


def test_keywords_by_hand() -> None:
    """Four models, of which two share a rare word: smoothed idf, unit documents, cluster means."""
    table = pl.DataFrame(
        {"model": ["p", "q", "r", "s"], "kind": ["k", "k", "l", "l"], "all": ["w"] * 4}
    )
    found = keywords(table, np.array([0, 0, 1, 1]), top=2)
    rare, common = np.log(5 / 3) + 1, 1.0
    length = np.hypot(rare, common)
    assert found.rows() == [
        (1, 1, "kind", "k", pytest.approx(rare / length), 1.0, 0.5),
        (1, 2, "all", "w", pytest.approx(common / length), 1.0, 1.0),
        (2, 1, "kind", "l", pytest.approx(rare / length), 1.0, 0.5),
        (2, 2, "all", "w", pytest.approx(common / length), 1.0, 1.0),
    ]
