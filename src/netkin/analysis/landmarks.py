"""All scores of N models from their scores with a few of them, the landmarks.

Two models with similar scores with the landmarks are similar themselves. A regression learns how
similar from the pairs with a landmark, which are measured, and predicts the pairs without one.

- A pair is described by the profiles of its models, their scores with the landmarks (see
  `netkin.analysis.profiles`). To learn from a pair of a landmark and a model, both profiles leave
  out these two: no profile has the score that it is to predict.
- The prediction is the mean of gradient boosting and of a ridge regression on the features of a
  Gaussian kernel (Nystroem).
- Intervals are cross-conformal (Vovk 2015): some landmarks at a time are taken for other models,
  and their pairs with the true others are predicted from the remaining landmarks. The quantile of
  these errors, relative to the error that is expected at such a prediction, is the half-width. It
  is valid for models like the landmarks: draw these at random.

On the published 69 models: experiments/results/landmarks.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor, VotingRegressor
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from netkin.analysis.profiles import Profiles
from netkin.errors import UserError
from netkin.similarity import interval

FEWEST = 5
"""Landmarks."""
FITTED = 10_000
"""Pairs that a regression is fitted on, about; of more, so many are drawn."""
FOLDS = 10
"""Groups of landmarks that are held out, one after another; at most one a landmark."""
USEFUL = 0.5
"""The share of the variance of held-out scores from which predictions are said to work."""
BLOCK = 50_000
"""Pairs that are predicted at once, which bounds the memory."""


@dataclass(frozen=True)
class HeldOut:
    """How well pairs with a landmark are predicted while it is taken for another model.

    Attributes:
        landmark, other: [P] positions of the models of the pairs.
        measured, predicted: [P] scores, in nats.
        covered: [P] bool, whether the interval that follows from the other landmarks' errors has
            the measured score.
    """

    landmark: NDArray[np.intp]
    other: NDArray[np.intp]
    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]
    covered: NDArray[np.bool_]

    @property
    def r2(self) -> float:
        """See `r2`."""
        return r2(self.predicted, self.measured)

    @property
    def error(self) -> float:
        """Mean absolute error, in nats."""
        return float(np.abs(self.predicted - self.measured).mean())

    def r2_interval(self, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The 95 % percentile interval of `r2` over draws of landmarks, with all their pairs."""
        marks = [np.flatnonzero(self.landmark == mark) for mark in np.unique(self.landmark)]
        rng, found = np.random.default_rng(seed), []
        for _ in range(draws):
            drawn = np.concatenate([marks[i] for i in rng.integers(0, len(marks), len(marks))])
            found.append(r2(self.predicted[drawn], self.measured[drawn]))
        return interval(np.array(found))


@dataclass(frozen=True)
class Completed:
    """All scores of N models, measured or predicted.

    Attributes:
        scores: [N, N], symmetric unless one-sided, in nats. The diagonal is as given, or, where
            that is NaN, the mean of the others'.
        low, high: [N, N], the interval of a predicted score; the score itself where it was given.
        measured: [N, N] bool, which scores were given.
        held_out: the errors of such predictions.
        level: the share of predicted scores that the intervals are to cover.
    """

    scores: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    measured: NDArray[np.bool_]
    held_out: HeldOut
    level: float

    def against(self, truth: NDArray[np.float64]) -> dict[str, float]:
        """How well the scores that were not given are predicted, by all scores, [N, N].

        r2, see `r2`; r; error, mean absolute, in nats; coverage, the share inside the intervals.
        """
        hidden = ~self.measured & np.tri(len(truth), k=-1, dtype=bool)
        predicted, true = self.scores[hidden], truth[hidden]
        inside = (self.low[hidden] <= true) & (true <= self.high[hidden])
        return {
            "r2": r2(predicted, true),
            "r": float(np.corrcoef(predicted, true)[0, 1]),
            "error": float(np.abs(predicted - true).mean()),
            "coverage": float(inside.mean()),
        }


def r2(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    """The share of the variance of measured values [P] that is predicted; NaN without variance.

    Below 0 the predictions are worse than the mean of the measured values.
    """
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((predicted - measured) ** 2).sum()) / spread if spread > 0 else np.nan


def verdict(held: HeldOut) -> str:
    """Yes, No or Not certain: whether the interval of `HeldOut.r2` lies above or below USEFUL."""
    low, high = held.r2_interval()
    return "Yes" if low >= USEFUL else "No" if high < USEFUL else "Not certain"


def check_number(landmarks: int, models: int) -> None:
    """Raises UserError unless `complete` can work with so many landmarks among so many models."""
    if landmarks < FEWEST:
        raise UserError(f"landmarks must be {FEWEST} models or more, got {landmarks}")
    if landmarks > models - 2:
        raise UserError(
            f"landmarks must be at most {models - 2} of the {models} models, got {landmarks}: a "
            "pair has to be left to predict"
        )


def complete(
    scores: NDArray[np.float64],
    landmarks: Sequence[int],
    components: NDArray | None = None,
    level: float = 0.9,
    seed: int = 0,
    one_sided: bool = False,
) -> Completed:
    """The scores with landmarks, and with intervals the predicted scores of all other pairs.

    Args:
        scores: [N, N], in nats, symmetric unless `one_sided`; of the pairs, only those with a
            landmark are read.
        landmarks: positions of models, at least 5.
        components: [N, C] values of any kind that describe the models; whether two models differ in
            one is a feature of the pair.
        level: of the intervals, in (0, 1).
        seed: of the regressions.
        one_sided: whether scores are one-sided, entry [a, b] of how often a's images fool b. Rows
            of landmarks are read. Both directions of other pairs are predicted; a landmark's column
            repeats its row where the other model is none.

    Raises UserError as `check_number`, and where a pair with a landmark has no score.
    """
    marks, n = np.unique(np.asarray(landmarks, dtype=np.intp)), len(scores)
    check_number(len(marks), n)
    given = np.zeros((n, n), dtype=bool)
    given[marks] = given[:, marks] = True
    np.fill_diagonal(given, False)
    if one_sided:
        others = np.setdiff1d(np.arange(n), marks)
        scores = scores.copy()
        scores[np.ix_(others, marks)] = scores[np.ix_(marks, others)].T
    if missing := int(np.isnan(scores[given]).sum()) // 2:
        raise UserError(f"{missing} pairs with a landmark have no score; leave their models out")
    own = np.diag(scores)
    known_own = ~np.isnan(own)
    if not known_own[marks].all():
        raise UserError("a landmark has no score with itself, which is its white-box success")
    with threadpool_limits(1):  # small matrices: other threads cost more than they save
        held, expected, ratio = _held_out(scores, marks, components, level, seed, one_sided)
        rest = np.setdiff1d(np.arange(n), marks)
        i, j = np.tril_indices(len(rest), -1)
        a, b = rest[i], rest[j]
        if one_sided:
            a, b = np.concatenate([a, b]), np.concatenate([b, a])
        predicted = _predict(scores, marks, a, b, components, seed, one_sided)
    half = ratio * expected(predicted)
    full, low, high = (np.where(given, scores, np.nan) for _ in range(3))
    for matrix, values in ((full, predicted), (low, predicted - half), (high, predicted + half)):
        matrix[a, b] = values
        if not one_sided:
            matrix[b, a] = values
        np.fill_diagonal(matrix, np.where(known_own, own, own[known_own].mean()))
    np.fill_diagonal(given, known_own)
    return Completed(full, low, high, given, held, level)


def _held_out(
    scores: NDArray[np.float64],
    marks: NDArray[np.intp],
    components: NDArray | None,
    level: float,
    seed: int,
    one_sided: bool,
) -> tuple[HeldOut, "_Expected", float]:
    """The predictions of held-out landmarks, the error to expect, and its multiple of `level`."""
    rest = np.setdiff1d(np.arange(len(scores)), marks)
    shuffled = np.random.default_rng(seed).permutation(marks)
    folds = np.array_split(shuffled, min(FOLDS, len(marks)))
    pairs, predicted, fold_of = [], [], []
    for number, fold in enumerate(folds):
        a, b = np.repeat(fold, len(rest)), np.tile(rest, len(fold))
        kept = np.setdiff1d(marks, fold)
        predicted.append(_predict(scores, kept, a, b, components, seed, one_sided))
        pairs.append((a, b))
        fold_of.append(np.full(len(a), number))
    a, b = (np.concatenate([pair[k] for pair in pairs]) for k in range(2))
    values, fold = np.concatenate(predicted), np.concatenate(fold_of)
    truth = scores[a, b]
    errors = np.abs(values - truth)
    covered = np.zeros(len(a), dtype=bool)
    for number in range(len(folds)):
        out = fold == number
        expected = _Expected(values[~out], errors[~out])
        ratio = _quantile(errors[~out] / expected(values[~out]), level)
        covered[out] = errors[out] <= ratio * expected(values[out])
    expected = _Expected(values, errors)
    ratio = _quantile(errors / expected(values), level)
    return HeldOut(a, b, truth, values, covered), expected, ratio


class _Expected:
    """The mean absolute error of a prediction, which grows or shrinks linearly with it."""

    def __init__(self, predicted: NDArray[np.float64], errors: NDArray[np.float64]):
        mean = float(errors.mean())
        self.least, self.most = max(mean / 3, 1e-6), max(3 * mean, 1e-6)
        self.slope, self.start = np.polyfit(predicted, errors, 1) if len(errors) > 2 else (0, mean)

    def __call__(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(self.start + self.slope * predicted, self.least, self.most)


def _quantile(values: NDArray[np.float64], level: float) -> float:
    """The conformal quantile: the k-th smallest of n values, k = level (n + 1) rounded up."""
    k = min(int(np.ceil(level * (len(values) + 1))), len(values))
    return float(np.sort(values)[k - 1])


def _predict(
    scores: NDArray[np.float64],
    marks: NDArray[np.intp],
    a: NDArray[np.intp],
    b: NDArray[np.intp],
    components: NDArray | None,
    seed: int,
    one_sided: bool,
) -> NDArray[np.float64]:
    """The scores of pairs without a landmark, [pairs]."""
    x, y = _measured_pairs(scores, marks, components, seed, one_sided)
    model = regression(len(y), seed).fit(x, y)
    profiles = Profiles(scores, marks, np.arange(len(scores)))
    parts = []
    for start in range(0, len(a), BLOCK):
        of = a[start : start + BLOCK], b[start : start + BLOCK]
        features = profiles.features(*of, one_sided)
        parts.append(model.predict(np.hstack([features, _differ(components, *of)])))
    return np.concatenate(parts)


def regression(pairs: int, seed: int = 0) -> VotingRegressor:
    """The regression from features of so many pairs to scores."""
    trees = GradientBoostingRegressor(
        n_estimators=300,
        learning_rate=0.05,
        max_depth=5,
        min_samples_leaf=3,
        subsample=0.5,
        max_features=0.3,
        random_state=seed,
    )
    smooth = make_pipeline(
        StandardScaler(),
        Nystroem(n_components=min(300, pairs), gamma=0.005, random_state=seed),
        Ridge(alpha=0.02),
    )
    return VotingRegressor([("trees", trees), ("smooth", smooth)])


def _measured_pairs(
    scores: NDArray[np.float64],
    marks: NDArray[np.intp],
    components: NDArray | None,
    seed: int,
    one_sided: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features and scores of the pairs with a landmark, each without the pair's own columns."""
    rng = np.random.default_rng(seed)
    rest = np.setdiff1d(np.arange(len(scores)), marks)
    each = min(len(rest), -(-FITTED // len(marks)))
    rows, targets = [], []
    for number, mark in enumerate(marks):
        others = rest if each == len(rest) else rng.choice(rest, each, replace=False)
        profiles = Profiles(scores, marks[marks != mark], np.append(others, mark))
        last = np.full(each, each, dtype=np.intp)
        features = profiles.features(last, np.arange(each), one_sided)
        rows.append(np.hstack([features, _differ(components, np.full(each, mark), others)]))
        targets.append(scores[mark, others])
        for other in marks[:number]:
            pair = np.array([mark, other])
            both = Profiles(scores, marks[~np.isin(marks, pair)], pair)
            for i, j in ((0, 1), (1, 0))[: 2 if one_sided else 1]:
                one = both.features(np.array([i]), np.array([j]), one_sided)
                rows.append(np.hstack([one, _differ(components, pair[[i]], pair[[j]])]))
                targets.append(scores[pair[i], pair[[j]]])
    return np.concatenate(rows), np.concatenate(targets)


def _differ(
    components: NDArray | None, a: NDArray[np.intp], b: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Whether the models of pairs differ in each component, and in how many, [pairs, C + 1]."""
    if components is None:
        return np.empty((len(a), 0))
    bits = (components[a] != components[b]).astype(float)
    return np.hstack([bits, bits.sum(axis=1, keepdims=True)])
