"""Correlations and trends: pure functions of arrays.

Their p-values by permutation are in `netkin.analysis.permutation`, their intervals over images in
`netkin.analysis.noise`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from netkin.similarity import Z_95

LEAST_P = 0.0001
"""The least p-value that is written with its digits."""
FEWEST = 5
"""Models, or independent observations, below which there is neither an interval nor a verdict."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of n pairs of numbers.

    Attributes:
        r: in [-1, 1]; NaN where n < 3 or where x or y does not vary.
        low, high: 95 % interval by Fisher's transformation, for independent observations; NaN where
            r is, or n < FEWEST.
        p: two-sided, by Student's t: valid for independent observations only. For pairs of models
            print it, if at all, beside the p of `mantel`, labelled as for independent pairs.
        n: number of (x, y) without NaN.
    """

    r: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class Trend:
    """A least-squares line with the confidence band of its mean.

    Attributes:
        slope, intercept: of y = slope x + intercept.
        x, y: [points] the line, over the range of the data.
        low, high: [points] the band, for independent observations.
        level: its confidence, such as 0.9.
    """

    slope: float
    intercept: float
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    level: float


def known_pairs(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two vectors [n] without the entries that are NaN in either.

    Raises ValueError unless they have one length.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two vectors of one length, got {a.shape} and {b.shape}")
    known = ~np.isnan(a) & ~np.isnan(b)
    return a[known], b[known]


def varies(x: NDArray[np.float64]) -> bool:
    """Whether values differ by more than the rounding of their own mean."""
    return x.size > 1 and float(np.ptp(x)) > 1e-12 * max(1.0, float(np.abs(x).max()))


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's correlation of two vectors [n]; entries with NaN in either are left out."""
    a, b = known_pairs(x, y)
    n = len(a)
    if n < 3 or not varies(a) or not varies(b):
        return Correlation(np.nan, np.nan, np.nan, np.nan, n)
    result: Any = stats.pearsonr(a, b)
    r, p = float(result.statistic), float(result.pvalue)
    low = high = np.nan
    if n >= FEWEST:
        with np.errstate(divide="ignore"):
            z, half = np.arctanh(r), Z_95 / np.sqrt(n - 3)
        low, high = float(np.tanh(z - half)), float(np.tanh(z + half))
    return Correlation(r, low, high, p, n)


def pair_values(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values of two matrices over the same models, pair by pair; see `pair_positions`."""
    rows, columns = pair_positions(a, b)
    return a[rows, columns], b[rows, columns]


def pair_positions(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs in two matrices over the same models.

    Where both are symmetric each unordered pair once, [N (N - 1) / 2]; otherwise each ordered
    pair, [N (N - 1)]. Diagonals are left out.
    """
    n = len(a)
    if all(np.allclose(m, m.T, equal_nan=True) for m in (a, b)):
        rows, columns = np.tril_indices(n, k=-1)
    else:
        rows, columns = np.nonzero(~np.eye(n, dtype=bool))
    return rows, columns


def correlations(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r row by row, [m], of x and y [m, n]; either may be [n], the same in every row.

    Entries with NaN in either are left out. NaN where a row of x or y does not vary.
    """
    x, y = np.broadcast_arrays(np.atleast_2d(x), np.atleast_2d(y))
    known = ~np.isnan(x) & ~np.isnan(y)
    if known.all():
        x = x - x.mean(axis=1, keepdims=True)
        y = y - y.mean(axis=1, keepdims=True)
    else:
        n = np.maximum(known.sum(axis=1, keepdims=True), 1)
        x = np.where(known, x - np.where(known, x, 0).sum(axis=1, keepdims=True) / n, 0)
        y = np.where(known, y - np.where(known, y, 0).sum(axis=1, keepdims=True) / n, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        together = np.einsum("ij,ij->i", x, y)
        return together / np.sqrt(np.einsum("ij,ij->i", x, x) * np.einsum("ij,ij->i", y, y))


def trend(x: ArrayLike, y: ArrayLike, level: float = 0.9, points: int = 100) -> Trend | None:
    """The least-squares line of y on x [n], with the `level` confidence band of its mean.

    None for fewer than 3 points, or an x that does not vary. The band is Student's, for
    independent observations: over pairs of models it is too narrow, as is the paper's.
    """
    a, b = known_pairs(x, y)
    n = len(a)
    if n < 3 or not varies(a):
        return None
    spread = float(((a - a.mean()) ** 2).sum())
    slope = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
    intercept = float(b.mean() - slope * a.mean())
    residual = float(((b - intercept - slope * a) ** 2).sum())
    line_x = np.linspace(a.min(), a.max(), points)
    line_y = intercept + slope * line_x
    error = np.sqrt(residual / (n - 2) * (1 / n + (line_x - a.mean()) ** 2 / spread))
    half = stats.t.ppf((1 + level) / 2, n - 2) * error
    return Trend(slope, intercept, line_x, line_y, line_y - half, line_y + half, level)


def verdict(low: float, high: float, no: str = "No") -> str:
    """Yes where an interval lies above 0, `no` where it lies below, and else Not certain."""
    return "Yes" if low > 0 else no if high < 0 else "Not certain"


def p_text(p: float, permutations: int | None = None) -> str:
    """A p-value such as "= 0.012", or "≤ 0.0001" at the least that so many drawn ones give."""
    if np.isnan(p):
        return "undefined"
    if p < LEAST_P:
        return f"< {LEAST_P}"
    smallest = permutations is not None and p <= 1 / (permutations + 0.5)
    return f"{'≤' if smallest else '='} {p:.2g}"


def naive_text(p: float) -> str:
    """A p-value of Student's t such as "= 0.012", or "< 0.0001"."""
    return f"= {p:.2g}" if p >= LEAST_P else f"< {LEAST_P}"
