"""Correlations, trends and their uncertainty: pure functions of arrays.

The N (N - 1) / 2 pairs of N models share models, so a p-value that treats pairs as independent is
far too small. A correlation between two matrices is therefore tested by permuting models (Mantel
1967). The p-value for independent pairs, which the paper prints, is reported beside it under its
own name.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from netkin.similarity import Z_95

PERMUTATIONS = 9999
_CHUNK = 4_000_000
"""Values of permuted matrices that are held at once: 32 MB."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of n pairs of numbers.

    Attributes:
        r: in [-1, 1]; NaN where n < 3 or where x or y does not vary.
        low, high: 95 % interval by Fisher's transformation; NaN where r is, or n = 3.
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
class Association:
    """The correlation of two matrices over the same N models.

    Attributes:
        pairs: Pearson's r over the pairs of models, with the p for independent pairs.
        p: of the Mantel test, which permutes models.
        permutations: their number.
        models: N.
    """

    pairs: Correlation
    p: float
    permutations: int
    models: int

    def __str__(self) -> str:
        """For a figure, such as "r = -0.31, Mantel p = 0.0012"."""
        return f"r = {self.pairs.r:.2f}, Mantel p {p_text(self.p, self.permutations)}"

    def sentence(self) -> str:
        """For a report: r, the Mantel p, and the interval and p for independent pairs."""
        c = self.pairs
        if np.isnan(c.r):
            return f"{c.n} pair{'s' * (c.n != 1)} of models: too few for a correlation."
        return (
            f"Pearson r = {c.r:.3f} over {c.n} pairs of {self.models} models; Mantel p "
            f"{p_text(self.p, self.permutations)} ({self.permutations} permutations of the "
            f"models). If pairs were independent, which they are not: 95% interval {c.low:.3f} to "
            f"{c.high:.3f}, p {naive_text(c.p)}."
        )


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


def _known(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two vectors of one length, got {a.shape} and {b.shape}")
    known = ~np.isnan(a) & ~np.isnan(b)
    return a[known], b[known]


def _varies(x: NDArray[np.float64]) -> bool:
    """Whether values differ by more than the rounding of their own mean."""
    return x.size > 1 and float(np.ptp(x)) > 1e-12 * max(1.0, float(np.abs(x).max()))


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's correlation of two vectors [n]; entries with NaN in either are left out."""
    a, b = _known(x, y)
    n = len(a)
    if n < 3 or not _varies(a) or not _varies(b):
        return Correlation(np.nan, np.nan, np.nan, np.nan, n)
    result: Any = stats.pearsonr(a, b)
    r, p = float(result.statistic), float(result.pvalue)
    low = high = np.nan
    if n > 3:
        with np.errstate(divide="ignore"):
            z, half = np.arctanh(r), Z_95 / np.sqrt(n - 3)
        low, high = float(np.tanh(z - half)), float(np.tanh(z + half))
    return Correlation(r, low, high, p, n)


def _square(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.ndim != 2 or x.shape[0] != x.shape[1] or x.shape != y.shape:
        raise ValueError(f"expected two square matrices of one size, got {x.shape}, {y.shape}")
    return x, y


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


def mantel(
    a: ArrayLike, b: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Pearson's r of two matrices over the same models, and its p by permuting models (Mantel).

    Args:
        a, b: [N, N]; diagonals are not read. Where both are symmetric each pair counts once,
            otherwise each direction. Pairs with NaN in either are left out, in permutations too.
        permutations: m, drawn with replacement.
        seed: of the permutations.

    Returns:
        r and the two-sided p = (k + 1) / (m + 1), where k of the permutations have |r| at least as
        large. Both NaN where r is undefined (N < 3, or a constant matrix).

    Raises ValueError for matrices that are not square or differ in size.
    """
    x, y = _square(a, b)
    n = len(x)
    rows, columns = pair_positions(x, y)
    r = pearson(x[rows, columns], y[rows, columns]).r
    if np.isnan(r):
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    count, done = 0, 0
    fixed = x[rows, columns]
    while done < permutations:
        m = min(permutations - done, max(_CHUNK // len(rows), 1))
        order = rng.permuted(np.tile(np.arange(n), (m, 1)), axis=1)
        permuted = y[order[:, rows], order[:, columns]]  # [m, pairs]
        count += int((np.abs(correlations(fixed, permuted)) >= abs(r) - 1e-12).sum())
        done += m
    return r, (count + 1) / (permutations + 1)


def associate(
    a: ArrayLike, b: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> Association:
    """Pearson's r over pairs of models with the Mantel p beside it; see `mantel`."""
    x, y = _square(a, b)
    correlation = pearson(*pair_values(x, y))
    return Association(correlation, mantel(x, y, permutations, seed)[1], permutations, len(x))


def permutation_p(
    x: ArrayLike, y: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p of Pearson's r by permuting y, for independent observations, such as students.

    (k + 1) / (m + 1) as in `mantel`; NaN where r is undefined.
    """
    a, b = _known(x, y)
    r = pearson(a, b).r
    if np.isnan(r):
        return np.nan
    rng = np.random.default_rng(seed)
    count, done = 0, 0
    while done < permutations:
        m = min(permutations - done, max(_CHUNK // len(a), 1))
        permuted = rng.permuted(np.tile(b, (m, 1)), axis=1)
        count += int((np.abs(correlations(a, permuted)) >= abs(r) - 1e-12).sum())
        done += m
    return (count + 1) / (permutations + 1)


def target_p(x: ArrayLike, y: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of Pearson's r between two matrices of S sources and N targets, [S, N].

    The targets of y are permuted, in the same way for all sources. Entries that are NaN, such as a
    source with itself, are left out. NaN where r is undefined.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    r = pearson(a.ravel(), b.ravel()).r
    if np.isnan(r):
        return np.nan
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(permutations):
        permuted = b[:, rng.permutation(b.shape[1])]
        count += int(abs(correlations(a.ravel(), permuted.ravel())[0]) >= abs(r) - 1e-12)
    return (count + 1) / (permutations + 1)


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
    a, b = _known(x, y)
    n = len(a)
    if n < 3 or not _varies(a):
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


def p_text(p: float, permutations: int | None = None) -> str:
    """A p-value such as "= 0.012", or "≤ 0.0001" at the least that so many permutations give."""
    if np.isnan(p):
        return "undefined"
    smallest = permutations is not None and p <= 1.5 / (permutations + 1)
    return f"{'≤' if smallest else '='} {p:.2g}"


def naive_text(p: float) -> str:
    """A p-value of Student's t such as "= 1.7e-54", or "< 1e-300" where it underflows."""
    return f"= {p:.2g}" if p > 0 else "< 1e-300"
