"""Correlations and trends: properties, and parity with SciPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from netkin.analysis import statistics
from netkin.analysis.statistics import correlations, pearson

stats: Any = scipy_stats  # whose results are typed without their fields


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


seeds = st.integers(0, 10_000)


@given(st.integers(5, 40), seeds)
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
