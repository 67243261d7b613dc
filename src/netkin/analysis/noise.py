"""The noise of images in a correlation of two matrices, and an interval that covers.

A finite sample of images adds noise to both matrices. It lowers r below the r of infinitely many
images, and a bootstrap draw adds the same noise once more: percentile intervals of r over draws lie
too low (measured: experiments/results/statistics.md). `without_noise` removes the noise from r and
adds it once, not twice, to the draws. `ceiling` is the r that the noise allows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from netkin import similarity
from netkin.analysis.matrix import pair_values, square
from netkin.analysis.statistics import FEWEST, correlations, mean_known
from netkin.similarity import Outcomes, interval

FEWEST_IMAGES = 100  # of an interval of r over images
CLASSES = 4  # that random halves of the classes take
SPLITS = 20  # random splits of the images that a noise ceiling is averaged over


class OverImages(NamedTuple):
    """A correlation over pairs as infinitely many images would have it, for these models.

    r is in [-1, 1]; NaN where the noise of the images is as large as the spread of the pairs, or
    there are fewer than 3 pairs. low and high are its 95 % interval over images. All are NaN for
    fewer than FEWEST models or FEWEST_IMAGES images, of which intervals cover less. `ceiling` is
    that of the r that was measured.
    """

    r: float = np.nan
    low: float = np.nan
    high: float = np.nan
    ceiling: float = np.nan

    def row(self) -> dict[str, float | None]:
        """Columns of a table; null where unknown."""
        values = {
            "noise_ceiling": self.ceiling,
            "r_without_noise": self.r,
            "images_low": self.low,
            "images_high": self.high,
        }
        return {name: None if np.isnan(value) else value for name, value in values.items()}


def text(row: Mapping[str, Any]) -> str:
    """`OverImages.row` for a report, such as "noise ceiling 0.93; without the noise of the images
    r = 0.52 (95% interval over images 0.44 to 0.60)"; without what is null.

    An r of the row that is above the ceiling is noise that both share, and the text says so.
    """
    parts = []
    if row["noise_ceiling"] is not None:
        above = abs(row.get("r", 0)) > row["noise_ceiling"]
        why = ", which r exceeds: noise of the images that both share may be most of it"
        parts.append(f"noise ceiling {row['noise_ceiling']:.2f}{why if above else ''}")
    if row["images_low"] is not None:
        parts.append(
            f"without the noise of the images r = {row['r_without_noise']:.2f} (95% interval over "
            f"images {row['images_low']:.2f} to {row['images_high']:.2f})"
        )
    return "; ".join(parts)


class Sampled(NamedTuple):
    """A matrix of N models, or its pairs: values [...] on all images, on bootstrap draws of them,
    [draws, ...], and on `halves` of them, [2 * splits, ...]; and how many images these are, if it
    is known."""

    values: NDArray[np.float64]
    draws: NDArray[np.float64]
    halves: NDArray[np.float64]
    images: int | None = None

    def at(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> "Sampled":
        """The pairs of matrices, such as at `netkin.analysis.matrix.pair_index`."""
        return Sampled(*(part[..., rows, columns] for part in self[:3]), images=self.images)


def over_images(x: Sampled, y: Sampled, models: int) -> OverImages:
    """`without_noise` and `ceiling` of two measures of the pairs of so many models."""
    top = ceiling(x.halves, y.halves)
    few = any(of.images is not None and of.images < FEWEST_IMAGES for of in (x, y))
    if few or models < FEWEST:
        return OverImages(ceiling=top)
    return without_noise(x.values, y.values, x.draws, y.draws)._replace(ceiling=top)


def without_noise(x: NDArray, y: NDArray, x_draws: NDArray, y_draws: NDArray) -> OverImages:
    """The r of two vectors [pairs], NaN where unknown, without the noise of the images, and its
    interval.

    The bootstrap draws, [draws, pairs], of the same images for both unless they have different
    ones, show the variances and the covariance, over pairs, that images add to those of x and y.
    They are subtracted. For the interval, x and y are shrunk linearly until they have what remains,
    the deviations of each draw from the mean of the draws are added, and the noise is subtracted
    again: 2.5 and 97.5 % quantiles of the r that result.
    """
    known = ~np.isnan(x) & ~np.isnan(y)
    known &= ~np.isnan(x_draws).all(axis=0) & ~np.isnan(y_draws).all(axis=0)
    if known.sum() < 3:
        return OverImages()
    values = np.stack([x[known], y[known]])
    drawn = np.stack([x_draws[:, known], y_draws[:, known]])  # [2, draws, pairs]
    found = _moments(values)
    true = found - (mean_known(_moments(drawn), 0) - found)
    if not min(true[0, 0], true[1, 1]) > 1e-12 * found.max():
        return OverImages()
    most = float(np.sqrt(true[0, 0] * true[1, 1]))
    true[0, 1] = true[1, 0] = np.clip(true[0, 1], -most, most)
    shrink = _root(true) @ np.linalg.pinv(_root(found))
    start = shrink @ (values - values.mean(axis=1, keepdims=True))
    once = _moments(start[:, None] + drawn - mean_known(drawn, 1)[:, None])
    once -= mean_known(once, 0) - true
    with np.errstate(invalid="ignore", divide="ignore"):
        r = once[:, 0, 1] / np.sqrt(once[:, 0, 0] * once[:, 1, 1])
    return OverImages(float(true[0, 1] / most), *interval(np.clip(r, -1, 1)))


def _moments(values: NDArray) -> NDArray[np.float64]:
    """Variances and covariance over pairs of [2, ..., pairs]: [..., 2, 2], without NaN pairs."""
    known = np.where(np.isnan(values).any(axis=0), np.nan, values)
    x, y = known - mean_known(known, -1)[..., None]
    rows = [[mean_known(a * b, -1) for b in (x, y)] for a in (x, y)]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semidefinite matrix [2, 2]."""
    sizes, axes = np.linalg.eigh(matrix)
    return (axes * np.sqrt(np.clip(sizes, 0, None))) @ axes.T


def halves(n: int, splits: int = SPLITS, seed: int = 0) -> NDArray[np.float64]:
    """Weights of random halves of n images, [2 * splits, n] in {0, 1}: rows 2 i and 2 i + 1 are the
    two halves of one split."""
    rng = np.random.default_rng(seed)
    first = rng.permuted(np.tile(np.arange(n) < n // 2, (splits, 1)), axis=1)
    return np.stack([first, ~first], axis=1).reshape(2 * splits, n).astype(float)


class Agreement(NamedTuple):
    """How far scores depend on the stimuli: r over pairs between random halves of the images, and
    between those of the classes, in [-1, 1], means of SPLITS splits; NaN where unknown."""

    images: float
    classes: float = np.nan

    @property
    def reliability(self) -> float:
        """The share of the variance over pairs that is not noise of the images, in [0, 1]."""
        return _whole(self.images)


def agreement(outcomes: Outcomes, labels: Sequence[int] = ()) -> Agreement:
    """The agreement of halves of the images, and of the classes if there are CLASSES or more,
    by the label of each image, [I]."""
    images = len(outcomes.image_ids)
    _, of = np.unique(np.asarray(labels, dtype=np.intp), return_inverse=True)
    weights = [halves(images)]
    if of.size and (n := int(of.max()) + 1) >= CLASSES:
        weights.append(halves(n)[:, of])
    r = agreeing(outcomes, np.concatenate(weights)).reshape(len(weights), -1)
    return Agreement(*mean_known(r).tolist())


def agreeing(outcomes: Outcomes, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """r over pairs, [m], of scores of images of the weights' rows 2 i and 2 i + 1, [2 m, I]."""
    sums = np.zeros((6, len(weights) // 2))
    for a, scores in similarity.row_draws(outcomes, weights):
        x, y = scores[::2, :a], scores[1::2, :a]
        known = ~np.isnan(x) & ~np.isnan(y)
        x, y = np.where(known, x, 0), np.where(known, y, 0)
        sums += [part.sum(axis=1) for part in (known, x, y, x * x, y * y, x * y)]
    n, x, y, xx, yy, xy = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    return np.where(np.isfinite(r), r, np.nan)


def sampled_scores(outcomes: Outcomes, draws: int, one_sided: bool = False) -> Sampled:
    """The matrix of smoothed scores in nats on samples of the images, or that of one direction,
    [a, b] of a's images on b. NaN where a half or a draw leaves a pair without images."""
    images = len(outcomes.image_ids)
    samples = similarity.resample(images, draws), halves(images)
    if one_sided:
        whole, scores = similarity.one_sided(outcomes), similarity.one_sided
    else:
        whole, scores = similarity.smoothed_matrix(outcomes), similarity.bootstrap
    return Sampled(whole, *(scores(outcomes, counts=counts) for counts in samples), images=images)


def simulated_draws(
    scores: NDArray[np.float64], images: int, draws: int, seed: int = 0
) -> NDArray[np.float64]:
    """Smoothed scores that other samples of images would give, [draws, N, N], where outcomes are
    unknown.

    Each pair's fooling rate exp(s) / 100 is taken as true in both directions, and binomial counts
    of `images` images, that both models of a pair classify correctly, are drawn for each direction.
    All counts are independent: images that pairs share, and an image that transfers in both
    directions, are left out of account. The diagonal is that of `scores`, [N, N] in nats.
    """
    rates = np.clip(np.exp(pair_values(scores)) / 100, 0, 1)
    counts = np.random.default_rng(seed).binomial(2 * images, rates, (draws, len(rates))) / 2
    result = square(similarity.smoothed(counts, images), len(scores))
    result[:, *np.diag_indices(len(scores))] = np.diag(scores)
    return result


def ceiling(x_halves: NDArray, y_halves: NDArray) -> float:
    """The r over pairs, in [0, 1], that two measures of the same similarities would have on so many
    images, by their values [2 * splits, pairs] on `halves` of these; NaN where no split has an r.

    The square root of the product of their reliabilities. A reliability is the mean r of two halves
    of the images, corrected to all images (Spearman 1910; Brown 1910). It assumes that the noise of
    the two is independent; noise that they share can lift r above it.
    """
    return float(np.sqrt(reliability(x_halves) * reliability(y_halves)))


def reliability(values: NDArray) -> float:
    """The share of the variance over pairs that is not noise of the images, in [0, 1], by split
    halves [2 * splits, pairs]; see `ceiling`."""
    r = correlations(values[::2], values[1::2])
    if np.isnan(r).all():
        return np.nan
    return _whole(float(mean_known(r, 0)))


def _whole(r: float) -> float:
    """The reliability on all images, by the r of halves of them (Spearman 1910; Brown 1910)."""
    r = float(np.clip(r, 0, 1))
    return 2 * r / (1 + r)
