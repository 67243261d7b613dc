"""Correlations, trends and permutation tests: parity with SciPy, rates of errors; and verdicts."""

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from netkin.analysis.correlation import Definition, correlate, sentence
from netkin.analysis.statistics import (
    correlations,
    mantel,
    over_models,
    p_text,
    paired,
    pearson,
    permutation_test,
    together_test,
    trend,
)
from netkin.analysis.verdict import by_chance, verdict
from netkin.report.sentences import Sentences
from netkin.similarity import ALPHA
from tests.analysis.coverage import of_models

stats: Any = scipy_stats  # whose results are typed without their fields
seeds = st.integers(0, 10_000)
NAN = math.nan


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def correlated(a: np.ndarray, b: np.ndarray, permutations: int = 999) -> dict[str, Any]:
    return correlate(Definition("a", a), Definition("b", b), permutations)


def symmetric(n: int, seed: int) -> np.ndarray:
    a = normal(n, n, seed=seed)
    return a + a.T


@pytest.mark.parametrize("n", [3, 5])
def test_mantel_uses_all_permutations_of_few_models(n: int) -> None:
    a = symmetric(n, 0)
    b = 0.4 * a + symmetric(n, 1)
    pairs = np.tril_indices(n, k=-1)
    found = mantel(a, b, permutations=10)
    assert found.r == pytest.approx(stats.pearsonr(a[pairs], b[pairs]).statistic)
    orders = [np.array(order) for order in permutations(range(n))]
    moved = [abs(stats.pearsonr(a[pairs], b[np.ix_(o, o)][pairs]).statistic) for o in orders]
    assert found.permutations == len(orders) and found.every
    assert found.p == pytest.approx(np.mean([m >= abs(found.r) - 1e-12 for m in moved]))


def test_drawn_permutations_near_all_of_them() -> None:
    a = symmetric(8, 0)
    b = 0.3 * a + symmetric(8, 1)
    every, drawn = mantel(a, b, 40_320), mantel(a, b, 20_000)
    assert every.every and not drawn.every and drawn.permutations == 20_000
    assert drawn.p == pytest.approx(every.p, abs=4 * np.sqrt(every.p * (1 - every.p) / 20_000))


def test_the_observed_order_is_one_of_those_drawn() -> None:
    """Else p could be 0: the identity of eight models is 1 of 40,320 orders, and none of 99."""
    s = symmetric(8, 0)
    assert mantel(s, s, permutations=99).p == pytest.approx(1 / 100)


def test_mantel_is_uniform_where_there_is_nothing() -> None:
    """Pairs that share models: r varies more than for independent pairs, and p knows it."""
    found = []
    for seed in range(200):
        position = normal(2, 12, seed=seed)  # models on two lines that do not know of each other
        a, b = (np.abs(x[:, None] - x) for x in position)
        found.append((mantel(a, b, 199, seed).p, pearson(*paired(a, b)).p))
    sound, naive = np.mean(np.array(found) <= 0.05, axis=0)
    assert 0.01 <= sound <= 0.1
    assert naive > sound + 0.05


@given(st.integers(4, 9), seeds)
def test_mantel_does_not_know_the_order_or_direction(n: int, seed: int) -> None:
    a, b = symmetric(n, seed), symmetric(n, seed + 1)
    order = np.random.default_rng(seed).permutation(n)
    r = mantel(a, b, 199).r
    assert mantel(b, a, 199).r == pytest.approx(r)
    moved = mantel(a[np.ix_(order, order)], b[np.ix_(order, order)], 199)
    assert moved.r == pytest.approx(r) and 0 < moved.p <= 1
    same = mantel(a, a, 199)
    assert same.r == pytest.approx(1) and same.p < 0.15


def test_mantel_takes_both_directions_where_they_differ_and_skips_holes() -> None:
    a, b = symmetric(6, 3), normal(6, 6, seed=4)
    off = ~np.eye(6, dtype=bool)
    assert correlated(a, b, 99)["n"] == 30
    assert mantel(a, b, 99).r == pytest.approx(stats.pearsonr(a[off], b[off]).statistic)
    b = symmetric(6, 5)
    b[0, 1] = b[1, 0] = np.nan
    np.fill_diagonal(b, np.nan)
    found = correlated(a, b, 99)
    assert found["n"] == 14 and np.isfinite(found["p"])
    constant = mantel(a, np.ones((6, 6)), 99)
    assert np.isnan([constant.r, constant.p]).all() and constant.permutations == 0
    assert "too few" in sentence(correlated(a[:2, :2], b[:2, :2], 99))


def residual(y: np.ndarray, *controls: np.ndarray) -> np.ndarray:
    z = np.column_stack([np.ones(len(y)), *controls])
    return y - z @ np.linalg.lstsq(z, y, rcond=None)[0]


@given(st.integers(4, 8), seeds, st.booleans())
def test_partial_r_is_that_of_residuals(n: int, seed: int, holes: bool) -> None:
    a, b, c = (symmetric(n, seed + i) for i in range(3))
    pairs = np.tril_indices(n, k=-1)
    if holes:
        b[1, 0] = b[0, 1] = np.nan
        pairs = tuple(axis[1:] for axis in pairs)
    found = mantel(a, b, 99, controls=[c])
    x, y = (residual(m[pairs], c[pairs]) for m in (a, b))
    assert found.r == pytest.approx(stats.pearsonr(x, y).statistic)
    assert np.isnan(mantel(a, 2 * c, 99, controls=[c]).r)  # nothing is left of b


def test_partial_mantel_is_uniform_where_the_control_explains_all() -> None:
    """Both matrices follow the accuracies of the models, and have nothing else in common."""
    plain, partial = [], []
    for seed in range(150):
        accuracy, *u = normal(3, 10, seed=seed)
        control = accuracy[:, None] + accuracy
        a, b = (control + 0.5 * (np.abs(v[:, None] - v) + symmetric(10, seed)) for v in u)
        b = b - 0.5 * symmetric(10, seed) + 0.5 * symmetric(10, seed + 1000)
        plain.append(mantel(a, b, 199, seed).p)
        partial.append(mantel(a, b, 199, seed, [control]).p)
    assert np.mean(np.array(plain) <= 0.05) > 0.8
    assert np.mean(np.array(partial) <= 0.05) < 0.12


def test_the_interval_over_models_covers() -> None:
    """Matrices u_i + u_j + pair, of correlated u: the r of infinitely many models is 0.6."""
    assert 0.88 <= of_models(15, 0.6, 150) <= 0.99
    a, b = symmetric(4, 0), symmetric(4, 1)
    assert np.isnan(over_models(a, b)).all()
    a = symmetric(12, 2)
    b = a.copy()
    b[3, 5] += 0.003  # Fisher's z explodes without one of the two models that differ
    b[5, 3] += 0.003
    low, high = over_models(a, b)
    assert 0.999 < low < correlated(a, b)["r"] < high <= 1
    assert over_models(a, 2 * a + 1) == pytest.approx((1, 1))
    few = correlated(a[:4, :4], b[:4, :4])
    assert few["models_low"] is None and "nan" not in sentence(few)
    assert "too few models for an interval or a verdict" in sentence(few)


def test_permutation_of_observations_is_scipys() -> None:
    x = normal(25, seed=0)
    y = 0.3 * x + normal(25, seed=1)
    theirs = stats.pearsonr(x, y, method=stats.PermutationMethod(n_resamples=9999, rng=2))
    assert permutation_test(x, y).p == pytest.approx(theirs.pvalue, abs=0.025)
    assert permutation_test(x, y) == permutation_test(x, y, seed=0)
    assert np.isnan(permutation_test([1, 2], [1, 2]).p)
    assert permutation_test([1, 2, 3], [1, 2, 4]).text() == "p = 0.33 (all 6 permutations)"


def test_p_says_when_it_is_the_least_that_can_be() -> None:
    assert p_text(0.0001, 9999) == "≤ 0.0001"
    assert p_text(0.0002, 9999) == "= 0.0002"
    assert p_text(1 / 6, 6) == "= 0.17"  # of all 6
    assert p_text(np.nan) == "undefined"


def test_pearson_leaves_unknown_pairs_out_and_knows_when_it_cannot_say() -> None:
    x = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    y = np.array([2.0, np.nan, 3.0, 1.0, 5.0])
    assert pearson(x, y).n == 3
    assert pearson(x, y).r == pytest.approx(pearson(x[[0, 3, 4]], y[[0, 3, 4]]).r)
    assert np.isnan(pearson([1, 2], [3, 4]).r)
    four = pearson([1, 2, 3, 4], [1, 3, 2, 4])
    assert four.r == pytest.approx(0.8) and np.isnan([four.low, four.high]).all()
    assert np.isnan(pearson([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]).r)  # varies by rounding alone
    with pytest.raises(ValueError, match="one length"):
        pearson([1, 2, 3], [1, 2])


@given(st.integers(2, 6), st.integers(4, 30), seeds, st.booleans())
def test_rows_are_correlated_one_by_one(rows: int, n: int, seed: int, holes: bool) -> None:
    x, y = normal(2, rows, n, seed=seed)
    if holes:
        x[0, 0] = np.nan
    found = correlations(x, y)
    for i in range(rows):
        assert found[i] == pytest.approx(pearson(x[i], y[i]).r, nan_ok=True)


@given(st.integers(3, 30), seeds)
def test_trend_is_least_squares_with_students_band(n: int, seed: int) -> None:
    x, y = normal(2, n, seed=seed)
    x -= x.mean()
    line, theirs = trend(np.r_[x, np.nan], np.r_[y, 0.0], points=100_001), stats.linregress(x, y)
    assert line is not None and line.slope == pytest.approx(theirs.slope)
    assert line.y[0] == pytest.approx(theirs.intercept + theirs.slope * x.min())
    assert line.x[0] == x.min() and line.x[-1] == x.max()
    # At x = 0 the mean's standard error is that of the intercept.
    i, half = int(np.abs(line.x).argmin()), stats.t.ppf(0.95, n - 2) * theirs.intercept_stderr
    assert (line.high - line.low)[i] == pytest.approx(2 * half, rel=1e-2)
    assert (line.low <= line.y).all() and (line.y <= line.high).all()
    assert trend([1, 2], [1, 2]) is None and trend([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize(
    ("effect", "given", "expected"),
    [
        (0.4, {"interval": (0.1, 0.7)}, "Yes"),
        (-0.4, {"interval": (-0.7, -0.1)}, "No"),
        (0.4, {"interval": (0.0, 0.7)}, "Not certain"),
        (0.4, {"interval": (0.1, 0.7), "threshold": 0.5}, "Not certain"),
        (0.4, {"interval": (0.1, 0.45), "threshold": 0.5}, "No"),
        (0.4, {"interval": (NAN, 0.7)}, "Not certain"),
        (0.4, {"interval": (None, None)}, "Not certain"),
        (0.4, {"p": 0.05}, "Not certain"),
        (0.4, {"p": 0.049}, "Yes"),
        (-0.4, {"p": 0.01}, "No"),
        (0.4, {"p": NAN}, "Not certain"),
        (0.4, {"interval": (0.1, 0.7), "p": 0.2}, "Not certain"),
        (0.4, {"interval": (0.1, 0.7), "enough": False}, "Not certain"),
        (NAN, {"p": 0.01}, "Not certain"),
        (3, {"threshold": 2}, "Yes"),
        (3, {"null": range(100)}, "Not certain"),
        (0, {"null": range(100)}, "No"),
        (99, {"null": range(100)}, "Yes"),
        (99, {"null": range(100), "interval": (49, 120)}, "Not certain"),
        (99, {"null": range(30)}, "Not certain"),  # too few for p < 0.05
        (99, {"null": [1.0, NAN] * 50}, "Not certain"),
    ],
)
def test_verdict(effect: float, given: dict[str, Any], expected: str) -> None:
    assert verdict(effect, **given) == expected


@given(st.integers(0, 2**32 - 1), st.integers(50, 200))
@settings(max_examples=20, deadline=None)
def test_chance_alone_says_yes_in_2_5_percent(seed: int, m: int) -> None:
    """Where an effect is one more of those that chance gives, exactly so by exchangeability."""
    effects = np.random.default_rng(seed).permutation(m + 1).astype(float)
    found = [verdict(e, null=np.delete(effects, i)) for i, e in enumerate(effects)]
    assert found.count("Yes") == found.count("No") <= ALPHA / 2 * (m + 1)
    assert by_chance(np.inf, effects) == 2 / (m + 2) and by_chance(float(m // 2), effects) > 0.9


def test_sentences_are_filled_by_verdict_and_number(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[a]\nYes = "Yes: {n} model{n:s} {n:is} {share:.0%}."\nNo = "No."\n')
    text = Sentences(file)
    assert text("a", "Yes", n=1, share=0.5) == "Yes: 1 model is 50%."
    assert text("a", "Yes", n=2, share=0.5) == "Yes: 2 models are 50%."
    for wrong in (("a", "Not certain"), ("a.Yes",), ("b",)):
        with pytest.raises(KeyError):
            text(*wrong)


@given(st.integers(0, 10**6), st.integers(4, 9), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_together_is_mantel_whatever_the_order_of_models_and_groups(
    seed: int, n: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = symmetric(n, seed=seed), rng.integers(0, groups, n)
    found = together_test(scores, np.equal.outer(labels, labels))
    expected = mantel(scores, np.equal.outer(labels, labels).astype(float))
    assert found.r == pytest.approx(expected.r, nan_ok=True)
    if n <= 7 and not math.isnan(expected.p):
        assert found.every and found.p == pytest.approx(expected.p)  # all labelings, once or often
    order, names = rng.permutation(n), rng.permutation(groups)
    moved = names[labels[order]]
    again = together_test(scores[np.ix_(order, order)], np.equal.outer(moved, moved))
    assert again[2:] == found[2:]
    assert again.r == pytest.approx(found.r, nan_ok=True)
    if found.every:
        assert again.p == pytest.approx(found.p)


def test_p_of_groups_is_uniform_where_families_are_shuffled() -> None:
    """A false Yes at most as often as alpha says, also where single models have effects."""
    labels, rng = np.repeat([0, 1, 2, 3, 4], [3, 2, 2, 2, 1]), np.random.default_rng(0)
    p, found = [], []
    for seed in range(300):
        main = rng.normal(size=10)
        scores = symmetric(10, seed=seed) + main[:, None] + main
        test = together_test(scores, np.equal.outer(labels, labels), 199, seed)
        p.append(test.p)
        found.append(verdict(test.r, p=test.p))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert found.count("Yes") <= 15 and found.count("No") <= 15
    near = np.where(np.equal.outer(labels, labels), 3.0, 1.0) + 0.1 * symmetric(10, seed=1)
    assert together_test(near, np.equal.outer(labels, labels)).p <= 0.001


@pytest.mark.parametrize(
    ("sizes", "least"), [((2, 2), 1 / 3), ((3, 3), 0.1), ((2, 2, 1, 1), 1 / 45)]
)
def test_few_models_have_few_labelings(sizes: tuple[int, ...], least: float) -> None:
    """However alike the models of a family are, so that no verdict is drawn from too few."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    same = np.equal.outer(labels, labels)
    assert together_test(same.astype(float), same).p == pytest.approx(least)
