"""Correlations and trends, with p-values by permutation: pure functions of arrays.

The N (N - 1) / 2 pairs of N models share models, so a p-value that treats pairs as independent is
far too small. A correlation between two matrices is therefore tested by permuting models (Mantel
1967). The p-value for independent pairs, which the paper prints, is reported beside it under its
own name. Intervals over images are in `netkin.analysis.noise`.
"""

import itertools
from collections.abc import Callable, Sequence
from math import factorial
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from netkin.analysis.matrix import pair_index, pair_values
from netkin.similarity import ALPHA

lazy: Any = scipy  # whose stats take half a second to import: where they are used

FEWEST = 5
"""Models, or independent observations, below which there is neither an interval nor a verdict."""
ALIKE = 0.9  # the correlation from which two matrices count as the same
CERTAIN = 0.95
"""The share of draws of images from which a choice, such as a cluster, counts as certain."""
NEAREST = 3  # the nearest models that an answer names
LEAST_P = 0.0001  # the least p-value that is written with its digits


class Correlation(NamedTuple):
    """Pearson's r of n pairs of numbers, in [-1, 1]; NaN where n < 3 or where x or y does not vary.

    low and high are the 95 % interval by Fisher's transformation (NaN for n < FEWEST), and p is
    two-sided, by Student's t: both are for independent observations. For pairs of models print p,
    if at all, beside that of `mantel`, labelled as for independent pairs.
    """

    r: float
    low: float
    high: float
    p: float
    n: int


class Trend(NamedTuple):
    """A least-squares line of y on x, [points] over the range of the data, its slope, and the
    confidence band of its mean, for independent observations, of a level such as 0.9."""

    slope: float
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


def mean_known(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """The mean of what is not NaN; NaN where everything is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def varies(x: NDArray[np.float64]) -> bool:
    """Whether values differ by more than the rounding of their own mean."""
    return x.size > 1 and float(np.ptp(x)) > 1e-12 * max(1.0, float(np.abs(x).max()))


def pearson(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's correlation of two vectors [n]; entries with NaN in either are left out."""
    a, b = known_pairs(x, y)
    n = len(a)
    if n < 3 or not varies(a) or not varies(b):
        return Correlation(np.nan, np.nan, np.nan, np.nan, n)
    result: Any = lazy.stats.pearsonr(a, b)
    low, high = result.confidence_interval(0.95) if n >= FEWEST else (np.nan, np.nan)
    return Correlation(float(result.statistic), float(low), float(high), float(result.pvalue), n)


def paired(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values of two matrices over the same models, pair by pair; see `pair_positions`."""
    at = pair_positions(a, b)
    return a[at], b[at]


def pair_positions(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs in two matrices over the same models, without the diagonals:
    where both are symmetric [N (N - 1) / 2], each pair once, otherwise [N (N - 1)]."""
    if all(np.allclose(m, m.T, equal_nan=True) for m in (a, b)):
        return pair_index(len(a))
    rows, columns = np.nonzero(~np.eye(len(a), dtype=bool))
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
    if len(a) < 3 or not varies(a):
        return None
    line = lazy.stats.linregress(a, b)
    at = np.linspace(a.min(), a.max(), points)
    mean = line.intercept + line.slope * at
    half = lazy.stats.t.ppf((1 + level) / 2, len(a) - 2) * line.stderr
    half = half * np.sqrt(a.var() + (at - a.mean()) ** 2)
    return Trend(float(line.slope), at, mean, mean - half, mean + half, level)


def p_text(p: float, permutations: int | None = None) -> str:
    """A p-value such as "= 0.012", or "≤ 0.0001" at the least that so many drawn ones give."""
    if np.isnan(p):
        return "undefined"
    if p < LEAST_P:
        return f"< {LEAST_P}"
    smallest = permutations is not None and p <= 1 / (permutations + 0.5)
    return f"{'≤' if smallest else '='} {p:.2g}"


PERMUTATIONS = 9999
ALL = 5040  # permutations that are all used, however few are wanted: those of up to 7 models
_CHUNK = 4_000_000  # values of permuted matrices that are held at once: 32 MB


class Tested(NamedTuple):
    """Pearson's r in [-1, 1] with the two-sided p of a permutation test; NaN where undefined.

    Of m drawn `permutations` p = (k + 1) / (m + 1), where k have |r| at least as large; p = k / m
    where these are `every` permutation that there is, the identity included.
    """

    r: float
    p: float
    permutations: int
    every: bool = False

    def text(self) -> str:
        """The p-value such as "p = 0.17 (all 6 permutations)" or "p ≤ 0.0001 (9,999 ...)"."""
        number = f"{'all ' if self.every else ''}{self.permutations:,}"
        return f"p {p_text(self.p, self.permutations)} ({number} permutations)"


def _square(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.ndim != 2 or x.shape[0] != x.shape[1] or x.shape != y.shape:
        raise ValueError(f"expected two square matrices of one size, got {x.shape}, {y.shape}")
    return x, y


def _permuted(
    observed: float | NDArray[np.float64],
    statistic: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    n: int,
    wanted: int,
    seed: int,
    width: int,
) -> list[Tested]:
    """Test an observed r, or several, [C], against `statistic`, [m] r or [m, C] of orders [m, n] of
    `width` values each: all n! where these are at most ALL or `wanted`."""
    observed = np.atleast_1d(observed)
    known = ~np.isnan(observed)
    every = factorial(n) <= max(wanted, ALL)
    total = (factorial(n) if every else wanted) if known.any() else 0
    rng, listed = np.random.default_rng(seed), itertools.permutations(range(n))
    count, chunk = np.zeros(len(observed), dtype=int), max(_CHUNK // max(width, 1), 1)
    for start in range(0, total, chunk):
        m = min(chunk, total - start)
        if every:
            orders = np.array(list(itertools.islice(listed, m)), dtype=np.intp)
        else:
            orders = rng.permuted(np.tile(np.arange(n), (m, 1)), axis=1)
        found = np.abs(statistic(orders)).reshape(m, -1)
        count += (found >= np.abs(observed) - 1e-12).sum(axis=0)
    p = count / max(total, 1) if every else (count + 1) / (total + 1)
    return [
        Tested(float(r), float(of), total, every) if is_known else Tested(np.nan, np.nan, 0)
        for r, of, is_known in zip(observed, p, known, strict=True)
    ]


def together_test(
    scores: NDArray[np.float64],
    together: NDArray[np.bool_],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Tested:
    """Are pairs of models of one group more alike? By permuting which models are in which group.

    It is `mantel` of the scores and whether a pair is of one group, so p is that of the difference
    of the two means; a permutation reads the fewer of both kinds of pairs only. Where these are
    more than 5,000 pairs, as those of 1,000 models do, permutations are fewer, but at least 199.

    Scores and whether pairs are `together`, of one group, are symmetric, [N, N], without NaN off
    the diagonal, which is not read. NaN where all pairs or none are of one group, or all scores are
    the same.
    """
    n = len(scores)
    mask = together & ~np.eye(n, dtype=bool)
    values = pair_values(scores)
    r = pearson(pair_values(mask), values).r
    inside = int(pair_values(mask).sum())
    few = inside <= len(values) / 2
    rows, columns = np.nonzero(np.tril(mask if few else ~mask, k=-1))
    share = inside / len(values)
    spread = float(values.std() * np.sqrt(share * (1 - share))) * len(values)

    def statistic(orders: NDArray[np.intp]) -> NDArray[np.float64]:
        total = scores[orders[:, rows], orders[:, columns]].sum(axis=1) - len(rows) * values.mean()
        return total / spread if few else -total / spread

    drawn = min(permutations, max(199, 50_000_000 // max(len(rows), 1)))
    return _permuted(r, statistic, n, drawn, seed, len(rows))[0]


def mantel(
    a: ArrayLike,
    b: ArrayLike,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    controls: Sequence[ArrayLike] = (),
) -> Tested:
    """Pearson's r of two matrices [N, N] of the same models, and its p by permuting these (Mantel).

    Where both are symmetric each pair counts once, otherwise each direction; diagonals are not
    read. Pairs with NaN in either are left out, in permutations too. These are drawn with
    replacement; all N! are used where they are no more, or N is at most 7.

    With controls, matrices [N, N] without NaN off the diagonal, it is the partial r: that of the
    residuals of a and b on them (Smouse, Long and Sokal 1986). The residuals of a are permuted
    (Legendre 2000), and regressed on the controls again.

    NaN where r is undefined: fewer than 3 pairs more than controls, or a matrix that does not vary.
    Raises ValueError for matrices that are not square or differ in size.
    """
    x, y = _square(a, b)
    rows, columns = pair_positions(x, y)
    z = [np.asarray(c, dtype=float)[rows, columns] for c in controls]
    z = np.column_stack([np.ones(len(rows)), *z])
    moved = x
    if controls:  # the residuals of x, of both directions where each pair is there once
        moved = np.full_like(x, np.nan)
        moved[rows, columns] = _without(x[rows, columns][None], z)[0]
        if 2 * len(rows) == len(x) * (len(x) - 1):
            moved[columns, rows] = moved[rows, columns]
    known = ~np.isnan(y[rows, columns])
    rows, columns, z = rows[known], columns[known], z[known]
    fixed = _without(y[rows, columns][None], z)[0]

    def statistic(orders: NDArray[np.intp]) -> NDArray[np.float64]:
        values = moved[orders[:, rows], orders[:, columns]]  # [m, pairs]
        return correlations(fixed, _without(values, z) if controls else values)

    some = x[rows, columns], y[rows, columns]
    r = pearson(*some).r
    if controls and not np.isnan(r):
        enough = pearson(*some).n > z.shape[1] + 1 and varies(fixed)
        r = float(statistic(np.arange(len(x))[None])[0]) if enough else np.nan
    return _permuted(r, statistic, len(x), permutations, seed, len(rows))[0]


def mantel_each(
    matrices: NDArray[np.float64],
    b: NDArray[np.float64],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[Tested]:
    """`mantel` of each of C matrices [C, N, N] with b [N, N], all symmetric and without NaN off the
    diagonal: the same tests, in the time of one, because they share the permuted b."""
    at = pair_index(b.shape[0])
    fixed, y = matrices[:, *at], b[at]
    observed = np.array([pearson(x, y).r for x in fixed])
    fixed = fixed - fixed.mean(axis=1, keepdims=True)
    size = np.linalg.norm(fixed, axis=1) * np.linalg.norm(y - y.mean())
    fixed = np.where(np.isnan(observed), 0, fixed.T / np.where(size > 0, size, 1))  # [pairs, C]

    def statistic(orders: NDArray[np.intp]) -> NDArray[np.float64]:
        back = np.argsort(orders, axis=1)  # permutes b as the matrices would be
        return b[back[:, at[0]], back[:, at[1]]] @ fixed

    return _permuted(observed, statistic, len(b), permutations, seed, len(y))


def _without(values: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The residuals of rows [m, n] on the columns of z [n, controls]; NaN stays."""
    known = ~np.isnan(values)
    if known.all():
        u, size, _ = np.linalg.svd(z, full_matrices=False)
        u = u[:, size > 1e-10 * size.max(initial=0)]
        return values - (values @ u) @ u.T
    result = np.full_like(values, np.nan)
    for i, (row, k) in enumerate(zip(values, known, strict=True)):
        result[i, k] = _without(row[k][None], z[k])[0]
    return result


def over_models(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of r between two matrices [N, N] when models are the sample.

    By the jackknife over models, on Fisher's scale or, brought to it by the derivative, that of r
    itself, whichever is narrower: near r = 1 Fisher's z is far higher without the one model
    that differs. r itself where it is 1 or -1. NaN for fewer than FEWEST models, or where r without
    one of the models is undefined.
    """
    x, y = _square(a, b)
    n = len(x)
    if n < FEWEST:
        return np.nan, np.nan
    kept = [np.delete(np.arange(n), i) for i in range(n)]
    some = [pearson(*paired(x[np.ix_(k, k)], y[np.ix_(k, k)])).r for k in kept]
    r, every = pearson(*paired(x, y)).r, np.array(some)
    if abs(r) > 1 - 1e-12:
        return r, r
    half = jackknife(np.arctanh(np.clip(every, -1 + 1e-12, 1 - 1e-12)))
    half = np.minimum(half, jackknife(every) / (1 - r**2))  # NaN stays
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))


def jackknife(without: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a statistic, from its values without one of n observations at a
    time, [n] (Arvesen 1969): Student's."""
    n = len(without)
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return float(lazy.stats.t.ppf(0.975, n - 1) * error)


def over_images(
    value: float, without: NDArray[np.float64], limits: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """The 95 % interval of a statistic over images, by the jackknife: from its values without one
    of m parts of the images (`netkin.similarity.leave_out`), [m].

    It is about the value less the jackknife's estimate of its bias (Quenouille 1956), which adds
    to the error as an error of its own: of few images a mean of logarithms is biased, in a
    direction that bootstrap draws repeat. Cut to `limits`. Without NaN, such as of parts without
    which a pair has no image; NaN where fewer than two values are left.
    """
    without = without[~np.isnan(without)]
    if (m := len(without)) < 2:
        return np.nan, np.nan
    bias = (m - 1) * (without.mean() - value)
    half = np.hypot(jackknife(without), lazy.stats.t.ppf(0.975, m - 1) * bias)
    low, high = np.clip((value - bias - half, value - bias + half), *limits)
    return float(low), float(high)


def permutation_test(
    x: ArrayLike, y: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> Tested:
    """Pearson's r and its p by permuting y, for independent observations, such as students.

    All permutations are used where they are few, as in `mantel`; NaN where r is undefined.
    """
    a, b = known_pairs(x, y)
    r = pearson(a, b).r
    return _permuted(r, lambda o: correlations(a, b[o]), len(a), permutations, seed, len(a))[0]


def t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of independent values [n], n of 2 or more."""
    half = lazy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def power(r: float, n: int, alpha: float = ALPHA) -> float:
    """How often a two-sided test of r finds a correlation r of n pairs of numbers, in [0, 1], by
    Fisher's transformation. NaN for n below 4."""
    if n < 4:
        return np.nan
    z, norm = abs(np.arctanh(r)) * np.sqrt(n - 3), lazy.stats.norm
    return float(norm.cdf(z - norm.isf(alpha / 2)) + norm.cdf(-z - norm.isf(alpha / 2)))


def target_test(
    x: ArrayLike, y: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> Tested:
    """Pearson's r between two matrices of S sources and N targets, [S, N], and its p.

    The targets of y are permuted, in the same way for all sources. Entries that are NaN, such as a
    source with itself, are left out. NaN where r is undefined.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    r = pearson(a.ravel(), b.ravel()).r

    def statistic(orders: NDArray[np.intp]) -> NDArray[np.float64]:
        return correlations(a.ravel(), b[:, orders].transpose(1, 0, 2).reshape(len(orders), -1))

    return _permuted(r, statistic, b.shape[1], permutations, seed, b.size)[0]
