"""Correlations, their p-values, trends and bootstrap: properties, and parity with SciPy."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from netkin.analysis import statistics
from netkin.analysis.statistics import associate, correlations, mantel, pearson, permutation_p

stats: Any = scipy_stats  # whose results are typed without their fields


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def symmetric(n: int, seed: int) -> np.ndarray:
    a = normal(n, n, seed=seed)
    return a + a.T


seeds = st.integers(0, 10_000)


@given(st.integers(4, 40), seeds)
def test_pearson_is_scipys(n: int, seed: int) -> None:
    x, y = normal(2, n, seed=seed)
    ours, theirs = pearson(x, y), stats.pearsonr(x, y)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.r, ours.p, ours.n) == pytest.approx((theirs.statistic, theirs.pvalue, n))
    assert (ours.low, ours.high) == pytest.approx((low, high))
    assert -1 <= ours.low <= ours.r <= ours.high <= 1


@given(st.integers(4, 20), seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_pearson_does_not_know_units(n: int, seed: int, scale: float, shift: float) -> None:
    x, y = normal(2, n, seed=seed)
    r = pearson(x, y).r
    assert pearson(y, x).r == pytest.approx(r)
    assert pearson(scale * x + shift, y).r == pytest.approx(r)
    assert pearson(-x, y).r == pytest.approx(-r)


def test_pearson_leaves_unknown_pairs_out_and_knows_when_it_cannot_say() -> None:
    x = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    y = np.array([2.0, np.nan, 3.0, 1.0, 5.0])
    assert pearson(x, y).n == 3
    assert pearson(x, y).r == pytest.approx(pearson(x[[0, 3, 4]], y[[0, 3, 4]]).r)
    assert np.isnan(pearson([1, 2], [3, 4]).r)
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


def test_mantel_is_exact_in_the_limit_of_all_permutations() -> None:
    """Five models have 120 permutations: their share with |r| as large is what sampling nears."""
    a = symmetric(5, 0)
    b = 0.4 * a + symmetric(5, 1)
    pairs = np.tril_indices(5, k=-1)
    r, p = mantel(a, b, permutations=20_000)
    assert r == pytest.approx(stats.pearsonr(a[pairs], b[pairs]).statistic)
    orders = [np.array(order) for order in permutations(range(5))]
    moved = [abs(stats.pearsonr(a[pairs], b[np.ix_(o, o)][pairs]).statistic) for o in orders]
    exact = np.mean([m >= abs(r) - 1e-12 for m in moved])
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_mantel_is_uniform_where_there_is_nothing() -> None:
    """Pairs that share models: r varies more than for independent pairs, and p knows it."""
    found = []
    for seed in range(200):
        position = normal(2, 12, seed=seed)  # models on two lines that do not know of each other
        a, b = (np.abs(x[:, None] - x) for x in position)
        found.append(associate(a, b, permutations=199, seed=seed))
    sound = np.mean([a.p <= 0.05 for a in found])
    naive = np.mean([a.pairs.p <= 0.05 for a in found])
    assert 0.01 <= sound <= 0.1
    assert naive > sound + 0.05


@settings(deadline=None)
@given(st.integers(4, 9), seeds)
def test_mantel_does_not_know_the_order_or_direction(n: int, seed: int) -> None:
    a, b = symmetric(n, seed), symmetric(n, seed + 1)
    order = np.random.default_rng(seed).permutation(n)
    r, p = mantel(a, b, 199)
    assert mantel(b, a, 199)[0] == pytest.approx(r)
    assert mantel(a[np.ix_(order, order)], b[np.ix_(order, order)], 199)[0] == pytest.approx(r)
    assert 1 / 200 <= p <= 1
    assert mantel(a, a, 199) == (pytest.approx(1), p_least(a, 199))


def p_least(a: np.ndarray, m: int) -> float:
    """A matrix against itself: only permutations that change nothing do as well."""
    p = mantel(a, a, m)[1]
    assert p < 0.15
    return p


def test_mantel_takes_both_directions_where_they_differ_and_skips_holes() -> None:
    a, b = symmetric(6, 3), normal(6, 6, seed=4)
    off = ~np.eye(6, dtype=bool)
    assert associate(a, b, 99).pairs.n == 30
    assert mantel(a, b, 99)[0] == pytest.approx(stats.pearsonr(a[off], b[off]).statistic)
    b = symmetric(6, 5)
    b[0, 1] = b[1, 0] = np.nan
    np.fill_diagonal(b, np.nan)
    found = associate(a, b, 99)
    assert found.pairs.n == 14 and np.isfinite(found.p)
    assert all(np.isnan(v) for v in mantel(a, np.ones((6, 6)), 99))
    assert "too few" in associate(a[:2, :2], b[:2, :2], 99).sentence()


def test_permutation_p_is_scipys() -> None:
    x = normal(25, seed=0)
    y = 0.3 * x + normal(25, seed=1)
    theirs = stats.pearsonr(x, y, method=stats.PermutationMethod(n_resamples=9999, rng=2))
    assert permutation_p(x, y) == pytest.approx(theirs.pvalue, abs=0.025)
    assert permutation_p(x, y) == permutation_p(x, y, seed=0)
    assert np.isnan(permutation_p([1, 2], [1, 2]))


@given(st.integers(3, 30), seeds)
def test_trend_is_least_squares_with_students_band(n: int, seed: int) -> None:
    x, y = normal(2, n, seed=seed)
    line = statistics.trend(x, y, level=0.9, points=7)
    assert line is not None
    theirs = stats.linregress(x, y)
    assert (line.slope, line.intercept) == pytest.approx((theirs.slope, theirs.intercept))
    assert line.x[0] == x.min() and line.x[-1] == x.max()
    # At x = 0 the mean's standard error is that of the intercept.
    at_zero = statistics.trend(np.r_[x, np.nan], np.r_[y, 0.0], points=100_001)
    assert at_zero is not None
    if x.min() < 0 < x.max():
        i = int(np.abs(at_zero.x).argmin())
        half = stats.t.ppf(0.95, n - 2) * theirs.intercept_stderr
        assert (at_zero.high - at_zero.low)[i] == pytest.approx(2 * half, rel=1e-2)
    assert (line.low <= line.y).all() and (line.y <= line.high).all()


def test_there_is_no_trend_of_two_points_or_a_constant() -> None:
    assert statistics.trend([1, 2], [1, 2]) is None
    assert statistics.trend([1, 1, 1], [1, 2, 3]) is None


def test_p_says_when_it_is_the_least_that_can_be() -> None:
    assert statistics.p_text(0.0001, 9999) == "≤ 0.0001"
    assert statistics.p_text(0.0002, 9999) == "= 0.0002"
    assert statistics.p_text(np.nan) == "undefined"
