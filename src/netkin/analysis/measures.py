"""Six other measures of similarity, and what each of them predicts: pure functions of arrays.

Each measure gives matrices [draws, N, N] over the same models and images; higher is more similar.
Weights [draws, I] are how often each image is in each bootstrap draw; weights of ones, [1, I], give
the measure itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.analysis.matrix import pair_index, pair_values
from netkin.analysis.noise import Sampled
from netkin.analysis.statistics import FEWEST, correlations, jackknife, mean_known
from netkin.analysis.verdict import Verdict, verdict
from netkin.similarity import Outcomes, exact_limits, interval, pair_rows

Matrices = NDArray[np.float64]
"""[draws, N, N], symmetric."""
Limits = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The ends of the 95 % intervals of P pairs, [P] each, in the order of `pair_values`."""


def share(k: NDArray, m: NDArray) -> tuple[NDArray[np.float64], Limits]:
    """The shares sum k / sum m of pairs, [P] in [0, 1], where 0 <= k <= m on each image, [P, I].

    Images are the sample. The limits are exact ones (Clopper and Pearson 1934) of as many
    independent draws as would have the variance of the ratio, linearised (Korn and Graubard 1998),
    with the three more images of `netkin.similarity.with_intervals`, which is the case of m = 1.
    NaN, with limits of 0 and 1, where m is 0 on all images.
    """
    total, most = k.sum(axis=1), m.sum(axis=1)
    mean, known = (total + 1.5) / (most + 3), most > 0
    more = (np.array([0.0, 0.5, 1.0]) - mean[:, None]) ** 2
    spread = ((k - mean[:, None] * m) ** 2).sum(axis=1) + more.sum(axis=1)
    p = total / np.where(known, most, 1)
    low, high = exact_limits(p, most * (most + 3) * mean * (1 - mean) / spread)
    return np.where(known, p, np.nan), (np.where(known, low, 0.0), np.where(known, high, 1.0))


# Mistakes on adversarial images


class Mistakes(NamedTuple):
    """Adversarial images of a source on P targets, [P, I]: which fool both source and target, which
    of these both assign to the same class, and how often they would by chance.

    Chance is how often the mistakes of source and target on two different images of one true class
    are equal. That any model mistakes some classes for each other is in it, and not in 1 / (K - 1)
    for K classes. `expected` is the sum over the images `known` [P] of that chance, [P]: those of a
    class with two or more of the images in `both`.
    """

    both: NDArray[np.bool_]
    same: NDArray[np.bool_]
    expected: NDArray[np.float64]
    known: NDArray[np.float64]


def mistakes(
    own: NDArray[np.integer], theirs: NDArray[np.integer], labels: NDArray[np.integer]
) -> Mistakes:
    """The mistakes of sources, `own`, and targets, `theirs`, by the classes that they predict on
    the sources' adversarial images, [P, I]; -1 where one of them is wrong on the clean image.
    labels: [I].
    """
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
    return Mistakes(both, same, all_of - itself, np.where(n > 1, n, 0).sum(axis=1))


def same_mistake(
    classes: NDArray[np.integer], labels: NDArray[np.integer], weights: NDArray
) -> Matrices:
    """How often a target makes the source's mistake, in [0, 1]: of the adversarial images that fool
    source and target, both directions together, the share that both assign to one class. NaN where
    there is none. classes: [N, N, I], by source and target, as in `mistakes`.
    """
    n = len(classes)
    counts = np.empty((2, len(weights), n, n))
    for a in range(n):
        found = mistakes(np.broadcast_to(classes[a, a], classes[a].shape), classes[a], labels)
        counts[:, :, a] = weights @ found.both.T, weights @ found.same.T
    both, same = counts + counts.swapaxes(2, 3)
    with np.errstate(invalid="ignore"):
        return same / both


def mistake_table(
    outcomes: Outcomes, classes: NDArray[np.integer], labels: NDArray[np.integer]
) -> pl.DataFrame:
    """`same_mistake` as a row a pair: a, b, mistakes (the adversarial images it is a share of),
    same_mistake, same_mistake_low, same_mistake_high (its 95 % interval; see `share`) and
    same_mistake_chance (see `Mistakes`). Null where there are no such images.
    """
    own = np.stack([classes[a, a] for a in range(len(classes))])

    def columns(a: int, others: slice) -> dict[str, Any]:
        of_a, theirs = np.broadcast_to(own[a], own[others].shape), classes[a, others]
        there = mistakes(of_a, theirs, labels)
        back = mistakes(own[others], classes[others, a], labels)
        both, same = (np.add(x, y, dtype=float) for x, y in zip(there[:2], back[:2], strict=True))
        p, (low, high) = share(same, both)
        with np.errstate(invalid="ignore"):
            chance = (there.expected + back.expected) / (there.known + back.known)
        rates = {"": p, "_low": low, "_high": high, "_chance": chance}
        known = {f"same_mistake{end}": pl.Series(r).fill_nan(None) for end, r in rates.items()}
        return {"mistakes": both.sum(axis=1).astype(int), **known}

    return pair_rows(outcomes, columns)


# Measures of clean predictions, gradients and features


def prediction_agreement(predictions: NDArray[np.int64], weights: NDArray) -> Matrices:
    """How often two models predict the same class, in [0, 1]. predictions: [N, I]."""
    same = (predictions[:, None] == predictions).reshape(-1, predictions.shape[1])
    n = len(predictions)
    return (_shares(weights) @ same.T.astype(float)).reshape(-1, n, n)


def error_consistency(correct: NDArray[np.bool_], weights: NDArray) -> Matrices:
    """Cohen's kappa of two models' errors (Geirhos et al. 2020, Eq. 1 and 2), at most 1, by which
    images [N, I] each model classifies correctly.

    kappa = (o - e) / (1 - e), where o is how often two models are both right or both wrong, and e
    how often two independent models of the same accuracies would be. NaN where e = 1: both are
    always right, or both always wrong.
    """
    return _beyond_chance(*both_or_neither(correct), weights)


def both_or_neither(correct: NDArray[np.bool_]) -> tuple[NDArray, NDArray, int]:
    """Error consistency is CAPA with two classes, right and wrong; see `agreements`."""
    return (correct[:, None] == correct).astype(float), correct.astype(float), 2


def capa(probabilities: NDArray, labels: NDArray[np.integer], weights: NDArray) -> Matrices:
    """Chance-adjusted probabilistic agreement of models (Goel et al. 2025, "Great Models Think
    Alike and this Undermines AI Oversight", kappa_p in Sec. 2), at most 1.

    kappa_p = (o - e) / (1 - e), where o is how often the classes drawn from two models'
    probabilities, [N, I, K], are equal, and e how often they would be if the models were
    independent, with their mean probabilities of the label, [I], and all other classes equally
    likely. Two models with the same probabilities have 1 only where these are 0 or 1.
    """
    return _beyond_chance(*agreements(probabilities, labels), weights)


def agreements(probabilities: NDArray, labels: NDArray[np.integer]) -> tuple[NDArray, NDArray, int]:
    """What `capa` is computed from: how often two models agree, [N, N, I], and each is right,
    [N, I], in [0, 1], and the number of classes."""
    agree = np.einsum("aik,bik->abi", probabilities, probabilities, optimize=True)
    return agree, probabilities[:, np.arange(len(labels)), labels], probabilities.shape[2]


def _beyond_chance(agree: NDArray, right: NDArray, classes: int, weights: NDArray) -> Matrices:
    """(o - e) / (1 - e) of `agreements`."""
    shares, n = _shares(weights), len(right)
    observed = (shares @ agree.reshape(n * n, -1).T).reshape(-1, n, n)
    expected = _expected(shares @ right.T, classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(1 - expected > 1e-9, (observed - expected) / (1 - expected), np.nan)


def _expected(right: NDArray, classes: int) -> NDArray[np.float64]:
    """How often independent models that are right so often, [..., N], agree, [..., N, N]."""
    a, b = right[..., :, None], right[..., None, :]
    return a * b + (1 - a) * (1 - b) / (classes - 1)


def beyond_chance_limits(agree: NDArray, right: NDArray, classes: int) -> Limits:
    """The intervals of `error_consistency` and `capa` over images, by `agreements`.

    Two models disagree, 1 - o, at most as often as they err together: o = 1 - q (u + v), where q in
    [0, 1] is a `share` and u and v are their errors. What differs is q: a bootstrap of the few
    images with errors, none of which may be shared, would find hardly any spread.
    """
    rows, columns = pair_index(len(right))
    errors = (1 - right[rows]) + (1 - right[columns])  # [P, I]
    _, limits = share(1 - agree[rows, columns], errors)
    beyond = 1 - _expected(right.mean(axis=1), classes)[rows, columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        high, low = (1 - q * errors.mean(axis=1) / beyond for q in limits)
    return low, high


def mean_cosine(cosines: NDArray, weights: NDArray) -> Matrices:
    """Mean over images of the cosine of two models' input gradients, [I, N, N], in [-1, 1]."""
    images, n, _ = cosines.shape
    return (_shares(weights) @ cosines.reshape(images, -1)).reshape(-1, n, n)


def linear_cka(grams: NDArray, weights: NDArray) -> Matrices:
    """Linear centred kernel alignment of features with unbiased HSIC, at most about 1.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019, Eq. 3), where HSIC is the
    unbiased estimator of Song et al. 2012, Eq. 5, as in Nguyen et al. 2021. Unrelated features have
    0 on average, and can therefore be slightly negative; with the biased estimator they are far
    above 0 where features are wider than images are many. NaN for fewer than 4 different images.

    Of a draw it is the mean over all tuples of four different images, each weighted by the product
    of its counts: an image that is in a draw twice is not compared with itself.

    Args:
        grams: [N, I, I], X X' of each model; see `gram`.
        weights: [draws, I], how often each image is in each draw.
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


@dataclass(frozen=True)
class Measure:
    """A measure of N models on all images and on samples of them, with its cost in seconds for all
    models, one after another, and the part of it that grows with the square of N; and the intervals
    of pairs, which are those of the draws unless given."""

    name: str
    sampled: Sampled
    seconds: float
    paired: float = 0.0
    limits: Limits | None = None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[N, N], on all images."""
        return self.sampled.values

    @classmethod
    def of(
        cls,
        name: str,
        matrices: Matrices,
        draws: int,
        seconds: float,
        limits: Limits | None = None,
        paired: float = 0.0,
    ) -> "Measure":
        """From the matrix and, after it, the draws and the halves, [1 + draws + halves, N, N]."""
        sampled = Sampled(matrices[0], matrices[1 : 1 + draws], matrices[1 + draws :])
        return cls(name, sampled, seconds, paired, limits)

    @property
    def ends(self) -> Limits:
        """The 95 % intervals of pairs."""
        if self.limits is not None:
            return self.limits
        low, high = np.array([interval(of) for of in pair_values(self.sampled.draws).T]).T
        return low, high

    def apart(self) -> float:
        """The share of pairs whose interval leaves out the mean of all pairs, in [0, 1]. Of equal
        pairs it would be 5 %: no more than that, and the measure does not tell pairs apart."""
        values, (low, high) = pair_values(self.matrix), self.ends
        known = ~np.isnan(values)
        if not known.any():
            return 0.0
        mean = values[known].mean()
        return float(((low > mean) | (high < mean))[known].mean())

    def summary(self) -> dict[str, Any]:
        """Stability and cost as a row of a table.

        mean and spread (standard deviation) are over pairs of models; noise is the standard
        deviation of a pair over bootstrap draws, averaged over pairs; agreement is Pearson's r
        between the matrix of a draw and that of all images, averaged over draws; told_apart is of
        `apart`.
        """
        values, draws = pair_values(self.matrix), pair_values(self.sampled.draws)
        known = ~np.isnan(values)
        values, draws = values[known], draws[:, known]
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
            "told_apart": self.apart(),
            "seconds": self.seconds,
            "seconds_for_pairs": self.paired,
            "seconds_a_model": self.seconds / len(self.matrix),
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
        of_model = sum(np.bincount(column, moment, x.shape[1]) for column in models.T)
        return moment.sum() - of_model[models].sum(axis=1) + (size - 1) * moment

    n, of_y, square = (part.sum(axis=0) for part in (known.astype(float), y, y**2))
    fitted, fitted_y = others(n), others(of_y)
    use_it = (fitted > 2) & (n > 0)
    fitted = np.where(use_it, fitted, 1)
    mean = fitted_y / fitted
    total = (square - 2 * mean * of_y + n * mean**2)[use_it].sum()
    result = np.empty(len(orders))
    for i, order in enumerate(orders):
        moved = x[:, *order[models].T]  # [S, P]
        of_x, xx, xy = ((moved * part).sum(axis=0) for part in (known, moved * known, y))
        mean_x, fitted_xx = others(of_x) / fitted, others(xx)
        varied = fitted_xx - fitted * mean_x**2
        flat = varied <= 1e-9 * fitted_xx
        slope = np.where(flat, 0, others(xy) - fitted * mean_x * mean) / np.where(flat, 1, varied)
        start = mean - slope * mean_x
        left = square + n * start**2 + slope**2 * xx
        left += 2 * (start * slope * of_x - start * of_y - slope * xy)
        result[i] = 1 - left[use_it].sum() / total if total > 0 else np.nan
    return result


class Predicted(NamedTuple):
    """How well M measures predict a use: r2 [M] of `held_out`, its 95 % interval over models, r [M]
    (Pearson's on all values, a mean over the samples), p [M]: that the best of the measures, their
    models shuffled in the same way, predicts as well; and r2 without each model, [M, N]."""

    names: tuple[str, ...]
    r: NDArray[np.float64]
    r2: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]
    without: NDArray[np.float64]

    def best(self, uses: int = 1) -> tuple[int, Verdict]:
        """The measure that predicts best, and whether it does beyond chance: p times the number of
        uses that are looked at, and the interval over models, decide."""
        i = int(np.nanargmax(self.r2)) if (~np.isnan(self.r2)).any() else 0
        ends, p = (self.low[i], self.high[i]), min(self.p[i] * uses, 1)
        found = verdict(self.r2[i], ends, p, enough=self.without.shape[1] >= FEWEST)
        return i, "Not certain" if found == "No" else found

    def ahead(self, i: int, k: int) -> tuple[float, float, float]:
        """How much r2 of one measure is above another's, with the 95 % interval over models."""
        difference = float(self.r2[i] - self.r2[k])
        half = jackknife(self.without[i] - self.without[k])
        return difference, difference - half, difference + half


def predict(use: Use, permutations: int = 999, seed: int = 0) -> Predicted:
    """`Predicted` of a use, by so many permutations of the models."""
    n = next(iter(use.measures.values())).shape[1]
    same = np.tile(np.arange(n), (permutations + 1, 1))
    orders = np.vstack([same[:1], np.random.default_rng(seed).permuted(same[1:], axis=1)])
    r2, r, without = [], [], []
    for x in use.measures.values():
        r2.append(held_out(x, use, orders))
        of_pairs = x[:, *use.models.T]
        r.append(float(mean_known(correlations(of_pairs, use.values))))
        gone = [(use.models == model).any(axis=1) for model in range(n)]
        rest = [use._replace(values=np.where(out, np.nan, use.values)) for out in gone]
        without.append([held_out(x, part, orders[:1])[0] for part in rest])
    half = np.array([jackknife(np.array(of)) for of in without])
    found = np.nan_to_num(r2, nan=-np.inf)
    p = np.array([(found.max(axis=0) >= own - 1e-12).mean() for own in found[:, 0]])
    first = np.array(r2)[:, 0]
    ends = first - half, np.minimum(first + half, 1)
    return Predicted(tuple(use.measures), np.array(r), first, *ends, p, np.array(without))
