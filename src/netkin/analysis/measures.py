"""Six other measures of similarity, and what each of them predicts: pure functions of arrays.

Each measure gives matrices [draws, N, N] over the same models and images; higher is more similar.
Weights [draws, I] are how often each image is in each bootstrap draw; weights of ones, [1, I], give
the measure itself.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.analysis.matrix import pair_index, pair_values
from netkin.analysis.noise import Sampled
from netkin.analysis.statistics import correlations, jackknife, mean_known
from netkin.similarity import Outcomes, exact_limits, interval, pair_rows

Matrices = NDArray[np.float64]
"""[draws, N, N], symmetric."""
Limits = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The ends of the 95 % intervals of P pairs, [P] each, in the order of `pair_values`."""


def share(k: NDArray, m: NDArray) -> tuple[NDArray[np.float64], Limits]:
    """The shares sum k / sum m of pairs, [P] in [0, 1], where 0 <= k <= m on each image, [P, I].

    Images are the sample. The limits are exact ones (Clopper and Pearson 1934) of as many
    independent draws as would have the variance of the ratio, linearised (Korn and Graubard 1998),
    with the two more images of `netkin.similarity.with_intervals`, which is the case of m = 1.
    NaN, with limits of 0 and 1, where m is 0 on all images.
    """
    total, most = k.sum(axis=1), m.sum(axis=1)
    mean, known = (total + 1) / (most + 2), most > 0
    spread = ((k - mean[:, None] * m) ** 2).sum(axis=1) + mean**2 + (1 - mean) ** 2
    p = total / np.where(known, most, 1)
    low, high = exact_limits(p, most * (most + 2) * mean * (1 - mean) / spread)
    return np.where(known, p, np.nan), (np.where(known, low, 0.0), np.where(known, high, 1.0))


# Mistakes on adversarial images


class Mistakes(NamedTuple):
    """The adversarial images that fool both source and target, of P pairs and both directions.

    Attributes:
        both: [P, I], of an image, 0 to 2.
        same: [P, I], of these, those that both assign to one class.
        chance: [P], the share of `both` that would be the same by chance: how often the mistakes of
            source and target on two different images of one true class are equal. That any model
            mistakes some classes for each other is in it, and not in 1 / (K - 1) for K classes. NaN
            where there are no two such images.
    """

    both: NDArray[np.intp]
    same: NDArray[np.intp]
    chance: NDArray[np.float64]


def mistakes(
    classes: NDArray[np.integer], labels: NDArray[np.integer], a: int, others: slice
) -> Mistakes:
    """The mistakes of model a and each of some others. classes: [N, N, I], by source and target,
    what is predicted on adversarial images, -1 where one of the two is wrong on the clean image;
    labels: [I].
    """
    own = np.stack([classes[b, b] for b in range(len(classes))[others]])
    there = _one_way(np.broadcast_to(classes[a, a], own.shape), classes[a, others], labels)
    back = _one_way(own, classes[others, a], labels)
    both, same, equal, compared = (
        np.add(x, y, dtype=float) for x, y in zip(there, back, strict=True)
    )
    with np.errstate(invalid="ignore"):
        return Mistakes(both.astype(int), same.astype(int), equal / compared)


def _one_way(
    own: NDArray[np.integer], theirs: NDArray[np.integer], labels: NDArray[np.integer]
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """By the classes of sources and targets, [P, I]: `both` and `same` of one direction, the sum of
    the chances of images with others of their class, and how many these images are, [P]."""
    from scipy.sparse import csr_array  # a command that needs no mistakes does not wait for it

    both = (own >= 0) & (own != labels) & (theirs >= 0) & (theirs != labels)
    same, (pair, image) = both & (own == theirs), np.nonzero(both)
    y, k = labels[image], int(max(own.max(), theirs.max(), labels.max(), 0)) + 1
    n = np.bincount(pair * k + y, minlength=len(both) * k).reshape(-1, k)
    others = np.where(n > 1, n - 1, np.inf)  # images that each one is compared with
    by_class = [
        csr_array((np.ones(len(pair)), (pair, y * k + of[pair, image])), (len(both), k * k))
        for of in (own, theirs)
    ]
    equal = (by_class[0] * by_class[1]).tocoo()  # also of an image with itself
    row, column = equal.coords
    all_of = np.bincount(row, equal.data / others[row, column // k], len(both))
    itself = np.bincount(pair, same[pair, image] / others[pair, y], len(both))
    return both, same, all_of - itself, np.where(n > 1, n, 0).sum(axis=1)


def same_mistake(
    classes: NDArray[np.integer], labels: NDArray[np.integer], weights: NDArray
) -> tuple[Matrices, Limits]:
    """How often a target makes the source's mistake, in [0, 1]: of the adversarial images that fool
    source and target, both directions together, the share that both assign to one class. NaN where
    there is none. The arguments are those of `mistakes`.
    """
    n = len(classes)
    result, limits = np.empty((len(weights), n, n)), []
    for a in range(n):
        both, same, _ = mistakes(classes, labels, a, slice(0, a + 1))
        with np.errstate(invalid="ignore"):
            of = weights @ same.T / (weights @ both.T)
        result[:, a, : a + 1] = result[:, : a + 1, a] = of
        limits.append(share(same[:a], both[:a])[1])
    low, high = np.concatenate(limits, axis=1)
    return result, (low, high)


def mistake_table(
    outcomes: Outcomes, classes: NDArray[np.integer], labels: NDArray[np.integer]
) -> pl.DataFrame:
    """`same_mistake` as a row a pair: a, b, mistakes (the adversarial images it is a share of),
    same_mistake, same_mistake_low, same_mistake_high (its 95 % interval; see `share`) and
    same_mistake_chance (see `Mistakes`). Null where there are no such images.
    """

    def columns(a: int, others: slice) -> dict[str, Any]:
        both, same, chance = mistakes(classes, labels, a, others)
        p, (low, high) = share(same, both)
        rates = {"": p, "_low": low, "_high": high, "_chance": chance}
        known = {f"same_mistake{end}": pl.Series(r).fill_nan(None) for end, r in rates.items()}
        return {"mistakes": both.sum(axis=1), **known}

    return pair_rows(outcomes, columns)


# Measures of clean predictions, gradients and features


def prediction_agreement(
    predictions: NDArray[np.int64], weights: NDArray
) -> tuple[Matrices, Limits]:
    """How often two models predict the same class, in [0, 1]. predictions: [N, I]."""
    same = (predictions[:, None] == predictions).astype(float)
    pairs = same[pair_index(len(same))]
    return mean_over_images(same, weights), share(pairs, np.ones_like(pairs))[1]


def error_consistency(correct: NDArray[np.bool_], weights: NDArray) -> tuple[Matrices, Limits]:
    """Cohen's kappa of two models' errors (Geirhos et al. 2020, Eq. 1 and 2), at most 1, by which
    images [N, I] each model classifies correctly: `capa` of two classes, right and wrong. NaN where
    both models are always right, or both always wrong.
    """
    return capa(np.eye(2)[correct.astype(int)], np.ones(correct.shape[1], int), weights)


def capa(
    probabilities: NDArray, labels: NDArray[np.integer], weights: NDArray
) -> tuple[Matrices, Limits]:
    """Chance-adjusted probabilistic agreement of models (Goel et al. 2025, "Great Models Think
    Alike and this Undermines AI Oversight", kappa_p in Sec. 2), at most 1.

    kappa_p = (o - e) / (1 - e), where o is how often the classes drawn from two models'
    probabilities, [N, I, K], are equal, and e how often they would be if the models were
    independent, with their mean probabilities of the label, [I], and all other classes equally
    likely. Two models with the same probabilities have 1 only where these are 0 or 1.

    The intervals are of q: two models disagree, 1 - o, at most as often as they err together,
    o = 1 - q (u + v), where q in [0, 1] is a `share` and u and v are their errors. A bootstrap of
    the few images with errors, none of which may be shared, would find hardly any spread.
    """
    agree = np.einsum("aik,bik->abi", probabilities, probabilities, optimize=True)
    right = probabilities[:, np.arange(len(labels)), labels]  # [N, I]

    def expected(right: NDArray) -> NDArray[np.float64]:
        a, b = right[..., :, None], right[..., None, :]
        return a * b + (1 - a) * (1 - b) / (probabilities.shape[2] - 1)

    observed, chance = mean_over_images(agree, weights), expected(_shares(weights) @ right.T)
    rows, columns = pair_index(len(right))
    errors = (1 - right[rows]) + (1 - right[columns])  # [P, I]
    beyond = 1 - expected(right.mean(axis=1))[rows, columns]
    _, limits = share(1 - agree[rows, columns], errors)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(1 - chance > 1e-9, (observed - chance) / (1 - chance), np.nan)
        high, low = (1 - q * errors.mean(axis=1) / beyond for q in limits)
    return kappa, (low, high)


def mean_over_images(values: NDArray, weights: NDArray) -> Matrices:
    """The weighted means of values of pairs, [N, N, I], such as the cosines of two models' input
    gradients, in [-1, 1]."""
    n, _, images = values.shape
    return (_shares(weights) @ values.reshape(-1, images).T).reshape(-1, n, n)


def linear_cka(grams: NDArray, weights: NDArray) -> Matrices:
    """Linear centred kernel alignment of features with unbiased HSIC, at most about 1.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019, Eq. 3), where HSIC is the
    unbiased estimator of Song et al. 2012, Eq. 5, as in Nguyen et al. 2021. Unrelated features have
    0 on average, and can therefore be slightly negative; with the biased estimator they are far
    above 0 where features are wider than images are many. NaN for fewer than 4 different images.

    Of a draw it is the mean over all tuples of four different images, each weighted by the product
    of its counts: an image that is in a draw twice is not compared with itself. grams: [N, I, I],
    X X' of each model; see `gram`.
    """
    n, images = grams.shape[:2]
    flat = grams.reshape(n, -1).astype(np.float32)
    off = grams * ~np.eye(images, dtype=bool)
    result = np.empty((len(weights), n, n))
    for d, w in enumerate(weights.astype(float)):
        s1, s2, s3, s4 = (float((w**power).sum()) for power in (1, 2, 3, 4))
        tuples = s1**4 - 6 * s1**2 * s2 + 3 * s2**2 + 8 * s1 * s3 - 6 * s4
        if tuples < 0.5:
            result[d] = np.nan
            continue
        product = np.outer(w, w)
        shared = product * (s1**2 - s2 - s1 * np.add.outer(w, w) + 2 * product) / tuples
        weighted = (off * shared.astype(np.float32)).reshape(n, -1)
        rows, squares = off @ w, off @ w**2  # [N, I]
        totals = rows @ w
        crossed = (rows * w) @ squares.T
        rest = np.outer(totals, totals) - (rows * (2 * s1 * w + 2 * w**2)) @ rows.T
        hsic = (weighted @ flat.T).astype(float) + (rest + 2 * (crossed + crossed.T)) / tuples
        hsic = (hsic + hsic.T) / 2  # they differ by rounding
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.sqrt(np.diag(hsic))
            result[d] = hsic / np.outer(norms, norms)
    return result


def gram(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """X X' of features X [I, D], scaled to a mean square row of 1."""
    x = features - features.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=1).mean()) or 1.0
    x = x / scale
    return (x @ x.T).astype(np.float32)


def _shares(weights: NDArray) -> NDArray[np.float64]:
    """Weights that sum to 1 in each draw."""
    return weights / weights.sum(axis=1, keepdims=True)


class Measure(NamedTuple):
    """A measure of N models on all images and on samples of them; and the intervals of pairs, which
    are those of the draws unless given."""

    name: str
    sampled: Sampled
    limits: Limits | None = None

    @property
    def ends(self) -> Limits:
        """The 95 % intervals of pairs."""
        if self.limits is not None:
            return self.limits
        low, high = np.array([interval(of) for of in pair_values(self.sampled.draws).T]).T
        return low, high

    def summary(self) -> dict[str, Any]:
        """Its stability as a row of a table.

        mean and spread (standard deviation) are over pairs of models; noise is the standard
        deviation of a pair over bootstrap draws, averaged over pairs; agreement is Pearson's r
        between the matrix of a draw and that of all images, averaged over draws; told_apart is the
        share of pairs whose interval leaves out the mean of all pairs: of equal pairs it would be
        5 %, and of no more than that the measure does not tell pairs apart.
        """
        values, draws = pair_values(self.sampled.values), pair_values(self.sampled.draws)
        known = ~np.isnan(values)
        values, draws, (low, high) = values[known], draws[:, known], np.array(self.ends)[:, known]
        mean = spread = noise = agreement = np.nan
        if len(values):
            mean, spread = float(values.mean()), float(values.std())
            noise = float(np.nanmean(np.nanstd(draws, axis=0)))
        if len(values) > 2:
            agreement = float(mean_known(correlations(values, draws)))
        return {
            "measure": self.name,
            "mean": mean,
            "spread": spread,
            "noise": noise,
            "noise_to_spread": noise / spread if spread else None,
            "agreement": agreement,
            "told_apart": float(((low > mean) | (high < mean)).mean()) if len(values) else 0.0,
            "undefined_pairs": int((~known).sum()),
        }


# What a measure predicts


class Use(NamedTuple):
    """What measures shall predict, of pairs of N models, such as the error reduction of ensembles,
    or of single ones, such as what students of a teacher learn.

    Attributes:
        values: [S, P], on S samples of images; NaN where unknown.
        models: [P, 2] or [P, 1], the positions of the models that a value is of.
        measures: [S, N, N] or [S, N] by name. Where the values are of images, too, these are other
            images: what one mistake does to both would be taken for a prediction.
    """

    values: NDArray[np.float64]
    models: NDArray[np.intp]
    measures: Mapping[str, NDArray[np.float64]]


def held_out(x: NDArray[np.float64], use: Use, orders: NDArray[np.intp]) -> NDArray[np.float64]:
    """R^2 of a line on a measure x for models that are held out, [m], at most 1, under m `orders`
    [m, N] of the models of x.

    The values of two models are predicted by the line that is fitted on those of all pairs without
    either, those of one by the line of all others. R^2 is relative to the mean of the values that
    were fitted: 0 for a measure that says nothing, and below 0 for a misleading one. Where x is NaN
    it says nothing.
    """
    models, (size, known) = use.models, (use.models.shape[1], ~np.isnan(use.values))
    y = np.where(known, use.values - mean_known(use.values.ravel()), 0)
    x = np.nan_to_num(x - mean_known(x.ravel()))

    def others(moment: NDArray) -> NDArray:
        """The sum of a moment over the values that share no model with each one, [P]."""
        each = [np.bincount(column, moment, x.shape[1]) for column in models.T]
        of_model = np.sum(each, axis=0)
        return moment.sum() - of_model[models].sum(axis=1) + (size - 1) * moment

    n, fitted = known.sum(axis=0), others(known.sum(axis=0))
    use_it = (fitted > 2) & (n > 0)
    fitted = np.where(use_it, fitted, 1)
    mean = others(y.sum(axis=0)) / fitted
    total = ((known * (y - mean))[:, use_it] ** 2).sum()
    result = np.empty(len(orders))
    for i, order in enumerate(orders):
        moved = x[:, *order[models].T] * known  # [S, P]
        mean_x, squares = others(moved.sum(axis=0)) / fitted, others((moved**2).sum(axis=0))
        varied = squares - fitted * mean_x**2
        together = others((moved * y).sum(axis=0)) - fitted * mean_x * mean
        flat = varied <= 1e-9 * squares
        slope = np.where(flat, 0, together) / np.where(flat, 1, varied)
        left = known * (y - mean - slope * (moved - mean_x))
        result[i] = 1 - (left[:, use_it] ** 2).sum() / total if total > 0 else np.nan
    return result


def predict(use: Use, permutations: int = 999, seed: int = 0) -> pl.DataFrame:
    """How well M measures predict a use, a row a measure.

    Columns: measure, values (how many are known), r (Pearson's on all values, a mean over the
    samples), r2 of `held_out`, its 95 % interval over models, low and high, by the jackknife, and
    p: that the best of the measures, their models shuffled in the same way, predicts as well, by so
    many permutations.
    """
    n, measures = next(iter(use.measures.values())).shape[1], use.measures.values()
    same = np.tile(np.arange(n), (permutations + 1, 1))
    orders = np.vstack([same[:1], np.random.default_rng(seed).permuted(same[1:], axis=1)])
    found = np.array([held_out(x, use, orders) for x in measures])
    gone = [(use.models == model).any(axis=1) for model in range(n)]
    rest = [use._replace(values=np.where(out, np.nan, use.values)) for out in gone]
    without = [np.array([held_out(x, part, orders[:1])[0] for part in rest]) for x in measures]
    half, r2, ranked = list(map(jackknife, without)), found[:, 0], np.nan_to_num(found, nan=-np.inf)
    best = ranked.max(axis=0)
    return pl.DataFrame(
        {
            "measure": list(use.measures),
            "values": [int((~np.isnan(use.values).all(axis=0)).sum())] * len(found),
            "r": [
                float(mean_known(correlations(x[:, *use.models.T], use.values))) for x in measures
            ],
            "r2": r2,
            "low": r2 - half,
            "high": np.minimum(r2 + half, 1),
            "p": [(best >= own - 1e-12).mean() for own in ranked[:, 0]],
        }
    )
