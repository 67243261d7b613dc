"""All scores of N models from their scores with a few of them, the landmarks.

Two models with similar scores with the landmarks are similar themselves. A regression learns how
similar from the pairs with a landmark, which are measured, and predicts the pairs without one.

- A pair is described by the profiles of its models, their scores with the landmarks (`features`).
  To learn from a pair of a landmark and a model, both profiles leave out these two: no profile has
  the score that it is to predict.
- The prediction is the mean of gradient boosting and of a ridge regression on the features of a
  Gaussian kernel.
- Intervals are cross-conformal (Vovk 2015): some landmarks at a time are taken for other models,
  and their pairs with the true others are predicted from the remaining landmarks. The half-width is
  a multiple of the error that is expected at such a prediction: the quantile of their ratios. It is
  valid for models like the landmarks: draw these at random.
- A model is outside what the landmarks show where it is less like any landmark than all but one
  landmark is like another one. A score with it is predicted without an interval. A random draw of m
  landmarks leaves a model outside with a probability of 2 / (m + 1) at most; where far more are,
  the landmarks' own scores say little about the others' (`Completed.represented`).

On the published 69 models: experiments/results/landmarks.md.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom
from sklearn.ensemble import GradientBoostingRegressor, VotingRegressor
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from netkin.analysis.matrix import pair_index
from netkin.analysis.statistics import mean_known
from netkin.analysis.verdict import Verdict, verdict
from netkin.errors import UserError
from netkin.similarity import interval

FEWEST = 5  # landmarks
FITTED = 4_000  # pairs that a regression is fitted on, about; of more, so many are drawn
FOLDS = 10  # groups of landmarks that are held out, one after another; at most one a landmark
USEFUL = 0.5  # the share of the variance of held-out scores from which predictions are said to work
BLOCK = 10_000  # pairs that are predicted at once, which bounds the memory
HIGHEST = 0.05  # the share of scores that `HeldOut.highest_covered` takes


class HeldOut(NamedTuple):
    """How well pairs with a landmark are predicted while it is taken for another model: [P] each,
    positions of the models, scores in nats, and whether the interval that follows from the other
    landmarks' errors has the measured score; and whether the nearest relative is found of each
    landmark, [m]: its highest score, measured with the other landmarks and predicted otherwise."""

    landmark: NDArray[np.intp]
    other: NDArray[np.intp]
    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]
    covered: NDArray[np.bool_]
    nearest_found: NDArray[np.bool_]

    @property
    def r2(self) -> float:
        return r2(self.predicted, self.measured)

    @property
    def highest_covered(self) -> float:
        """The share of the HIGHEST measured scores that are inside their intervals: fewer than of
        all, since what is the highest is often higher than expected."""
        return float(self.covered[self.measured >= np.quantile(self.measured, 1 - HIGHEST)].mean())

    def r2_interval(self, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """The 95 % percentile interval of `r2` over draws of landmarks, with all their pairs."""
        pairs = [np.flatnonzero(self.landmark == one) for one in np.unique(self.landmark)]
        rng, y = np.random.default_rng(seed), self.measured - self.measured.mean()
        parts = np.stack([np.ones(len(y)), y, y**2, (self.predicted - self.measured) ** 2])
        sums = np.array([parts[:, of].sum(axis=1) for of in pairs])  # [landmarks, 4]
        drawn = sums[rng.integers(0, len(pairs), (draws, len(pairs)))].sum(axis=1)
        n, total, squares, errors = drawn.T
        with np.errstate(invalid="ignore", divide="ignore"):
            return interval(1 - errors / (squares - total**2 / n))


class Completed(NamedTuple):
    """All scores of N models, [N, N] in nats, symmetric unless one-sided, with intervals that are
    to cover a share, `level`, of the predicted ones; which scores were measured, whose interval is
    the score itself; the errors of such predictions; and which models, [N], are outside what the
    landmarks show, with whom a predicted score has no interval (NaN). The diagonal is as given, or,
    where that is NaN, the mean of the others'."""

    scores: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    measured: NDArray[np.bool_]
    held_out: HeldOut
    level: float
    outside: NDArray[np.bool_]

    @property
    def represented(self) -> bool:
        """Whether landmarks that are drawn at random would leave as many models outside, or more,
        with a probability above 1 - level.

        Where all models are alike, how many are below the second lowest of m landmarks' values is a
        beta-binomial number, Beta(2, m - 1).
        """
        landmarks = len(self.held_out.nearest_found)
        rest = len(self.outside) - landmarks
        tail = betabinom.sf(int(self.outside.sum()) - 1, rest, 2, landmarks - 1)
        return bool(tail >= 1 - self.level)

    @property
    def verdict(self) -> Verdict:
        """Whether at least USEFUL of the variance of other models' scores is predicted: of the
        landmarks' by `HeldOut.r2_interval`, which is no Yes unless they represent the others."""
        held = verdict(self.held_out.r2, self.held_out.r2_interval(), threshold=USEFUL)
        return held if self.represented or held == "No" else "Not certain"

    def against(self, truth: NDArray[np.float64]) -> dict[str, float]:
        """How well the scores that were not given are predicted, by all scores, [N, N].

        r2, see `r2`; r; error, mean absolute, in nats; with_interval, the share that have one;
        coverage, the share of these inside, and of the HIGHEST of them; nearest_found, the share of
        the models without landmarks whose nearest relative is that of all scores.
        """
        pair = ~np.eye(len(truth), dtype=bool)
        hidden = ~self.measured & np.tri(len(truth), k=-1, dtype=bool)
        predicted, true = self.scores[hidden], truth[hidden]
        inside = (self.low[hidden] <= true) & (true <= self.high[hidden])
        known = ~np.isnan(self.low[hidden])
        highest = known & (true >= np.quantile(true, 1 - HIGHEST))
        ours, theirs = (np.where(pair, s, -np.inf).argmax(axis=1) for s in (self.scores, truth))
        rest = (~self.measured & pair).any(axis=1)
        return {
            "r2": r2(predicted, true),
            "r": float(np.corrcoef(predicted, true)[0, 1]),
            "error": float(np.abs(predicted - true).mean()),
            "with_interval": float(known.mean()),
            "coverage": float(mean_known(np.where(known, inside, np.nan))),
            "coverage_of_highest": float(mean_known(np.where(highest, inside, np.nan))),
            "nearest_found": float((ours == theirs)[rest].mean()),
        }


def r2(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    """The share of the variance of measured values [P] that is predicted; NaN without variance.

    Below 0 the predictions are worse than the mean of the measured values.
    """
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((predicted - measured) ** 2).sum()) / spread if spread > 0 else np.nan


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
    level: float = 0.9,
    seed: int = 0,
    one_sided: bool = False,
) -> Completed:
    """The scores with landmarks, and with intervals the predicted scores of all other pairs.

    Args:
        scores: [N, N], in nats, symmetric unless `one_sided`; of the pairs, only those with a
            landmark are read.
        landmarks: positions of models, at least 5.
        level: of the intervals, in (0, 1).
        seed: of the regressions.
        one_sided: whether scores are one-sided, entry [a, b] of how often a's images fool b. Rows
            of landmarks are read. Both directions of other pairs are predicted; a landmark's column
            repeats its row where the other model is none.

    Raises UserError as `check_number`, and where a pair with a landmark has no score.
    """
    chosen, n = np.unique(np.asarray(landmarks, dtype=np.intp)), len(scores)
    check_number(len(chosen), n)
    rest = np.setdiff1d(np.arange(n), chosen)
    given = np.zeros((n, n), dtype=bool)
    given[chosen] = given[:, chosen] = True
    np.fill_diagonal(given, False)
    if one_sided:
        scores = scores.copy()
        scores[np.ix_(rest, chosen)] = scores[np.ix_(chosen, rest)].T
    if missing := int(np.isnan(scores[given]).sum()) // 2:
        raise UserError(f"{missing} pairs with a landmark have no score; leave their models out")
    diagonal = np.diag(scores)
    known = ~np.isnan(diagonal)
    if not known[chosen].all():
        raise UserError("a landmark has no score with itself, which is its white-box success")
    predict = partial(_predicted, scores, seed, one_sided)
    with threadpool_limits(1):  # small matrices: other threads cost more than they save
        held = _held_out(predict, scores, chosen, rest, level, seed)
        i, j = pair_index(len(rest))
        a, b = rest[i], rest[j]
        if one_sided:
            a, b = np.concatenate([a, b]), np.concatenate([b, a])
        predicted = predict(chosen, a, b)
    outside = _outside(scores, chosen, rest)
    half = half_widths(held.predicted, held.measured, level)(predicted)
    half[outside[a] | outside[b]] = np.nan
    full, low, high = (np.where(given, scores, np.nan) for _ in range(3))
    for matrix, values in ((full, predicted), (low, predicted - half), (high, predicted + half)):
        matrix[a, b] = values
        if not one_sided:
            matrix[b, a] = values
        np.fill_diagonal(matrix, np.where(known, diagonal, diagonal[known].mean()))
    np.fill_diagonal(given, known)
    return Completed(full, low, high, given, held, level, outside)


def _outside(
    scores: NDArray[np.float64], chosen: NDArray[np.intp], rest: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which models, [N], are less like any landmark than all but one landmark is."""
    among = np.where(np.eye(len(chosen), dtype=bool), -np.inf, scores[np.ix_(chosen, chosen)])
    least, found = np.sort(among.max(axis=0))[1], np.zeros(len(scores), dtype=bool)
    found[rest] = scores[np.ix_(chosen, rest)].max(axis=0) < least
    return found


Predict = Callable[[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]], NDArray[np.float64]]
"""Landmarks, and the models a and b of P pairs without one -> their scores [P]."""


def _held_out(
    predict: Predict,
    scores: NDArray[np.float64],
    chosen: NDArray[np.intp],
    rest: NDArray[np.intp],
    level: float,
    seed: int,
) -> HeldOut:
    """The predictions of landmarks that are held out, some at a time."""
    shuffled = np.random.default_rng(seed).permutation(chosen)
    folds = np.array_split(shuffled, min(FOLDS, len(chosen)))
    a, b = np.repeat(shuffled, len(rest)), np.tile(rest, len(shuffled))
    parts = np.split(np.arange(len(a)), np.cumsum([len(f) * len(rest) for f in folds])[:-1])
    values, truth, covered = np.empty(len(a)), scores[a, b], np.empty(len(a), dtype=bool)
    for fold, part in zip(folds, parts, strict=True):
        values[part] = predict(np.setdiff1d(chosen, fold), a[part], b[part])
    for part in parts:
        others = np.delete(np.arange(len(a)), part)
        half = half_widths(values[others], truth[others], level)(values[part])
        covered[part] = np.abs(values[part] - truth[part]) <= half
    nearest = []
    for fold, part in zip(folds, parts, strict=True):
        known = scores[np.ix_(fold, np.setdiff1d(chosen, fold))]
        each = (np.hstack([v[part].reshape(len(fold), -1), known]) for v in (values, truth))
        nearest += np.equal(*(row.argmax(axis=1) for row in each)).tolist()
    return HeldOut(a, b, truth, values, covered, np.array(nearest))


def half_widths(
    predicted: NDArray[np.float64], measured: NDArray[np.float64], level: float
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """From predictions to half-widths that cover a share of errors such as those given: a multiple,
    the conformal quantile (of n ratios the k-th smallest, k = level (n + 1) rounded up), of a mean
    absolute error that is linear in the prediction."""
    errors = np.abs(predicted - measured)
    mean = max(float(errors.mean()), 1e-6)
    slope, start = np.polyfit(predicted, errors, 1)

    def expected(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(start + slope * values, mean / 3, 3 * mean)

    k = min(int(np.ceil(level * (len(errors) + 1))), len(errors))
    ratio = float(np.sort(errors / expected(predicted))[k - 1])
    return lambda values: ratio * expected(values)


def _predicted(
    scores: NDArray[np.float64],
    seed: int,
    one_sided: bool,
    landmarks: NDArray[np.intp],
    a: NDArray[np.intp],
    b: NDArray[np.intp],
) -> NDArray[np.float64]:
    """The scores of pairs, by a regression on the pairs with a landmark; see `complete`, `Predict`.

    Of a pair that is learned from, the features leave out its own columns.
    """

    def rows(marks: NDArray[np.intp], a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray:
        p, q = (scores[np.ix_(marks, models)].T for models in (a, b))
        return features(p, q, scores[np.ix_(marks, marks)].T, one_sided)

    rng, x, y = np.random.default_rng(seed), [], []
    rest = np.setdiff1d(np.arange(len(scores)), landmarks)
    each = min(len(rest), -(-FITTED // len(landmarks)))
    for number, mark in enumerate(landmarks):
        others = rest if each == len(rest) else rng.choice(rest, each, replace=False)
        pairs = [(np.full(each, mark), others)]
        for other in landmarks[:number]:
            two = np.array([mark]), np.array([other])
            pairs += [two, two[::-1]] if one_sided else [two]
        for first, second in pairs:
            kept = landmarks[(landmarks != first[0]) & (landmarks != second[0])]
            x.append(rows(kept, first, second))
            y.append(scores[first, second])
    model = regression(sum(map(len, y)), seed).fit(np.concatenate(x), np.concatenate(y))
    parts = [slice(start, start + BLOCK) for start in range(0, len(a), BLOCK)]
    return np.concatenate([model.predict(rows(landmarks, a[part], b[part])) for part in parts])


def features(
    p: NDArray[np.float64],
    q: NDArray[np.float64],
    between: NDArray[np.float64],
    directed: bool = False,
) -> NDArray[np.float64]:
    """Features [P, F] of pairs of models; F does not depend on the number of landmarks.

    p and q are the profiles [P, c] of the two models, their scores with c landmarks (of one-sided
    scores, how often the landmarks' images fool them), `between` those of the landmarks, [c, c].
    With `directed` features tell the source p from the target q.
    """
    difference, least, first = np.abs(p - q), np.minimum(p, q), np.arange(len(p))
    mean_p, mean_q = p.mean(axis=1), q.mean(axis=1)
    centred_p, centred_q = p - mean_p[:, None], q - mean_q[:, None]
    length = np.sqrt(_dot(centred_p, centred_p) * _dot(centred_q, centred_q))
    # The score of the pair if scores were of low rank (Nystrom's method, with a ridge of 0.5).
    middle = between[~np.eye(len(between), dtype=bool)].mean()
    offset = between - middle
    inverse = np.linalg.solve(offset @ offset + 0.5 * np.eye(len(between)), offset)
    columns = [
        difference.mean(axis=1),
        np.sqrt((difference**2).mean(axis=1)),
        difference.max(axis=1),
        _dot(centred_p, centred_q) / np.maximum(length, 1e-9),
        least.mean(axis=1),
        least.max(axis=1),
        _dot(p, q) / p.shape[1],
        middle + _dot((p - middle) @ inverse, q - middle),
    ]
    for of_p, of_q in (
        (mean_p, mean_q),
        (p.std(axis=1), q.std(axis=1)),
        (p.max(axis=1), q.max(axis=1)),
        (q[first, p.argmax(axis=1)], p[first, q.argmax(axis=1)]),  # by the nearest landmark
    ):
        columns += [of_p, of_q] if directed else [np.minimum(of_p, of_q), np.maximum(of_p, of_q)]
    return np.stack(columns, axis=1)


def regression(pairs: int, seed: int = 0) -> VotingRegressor:
    """The regression from features of so many pairs to scores."""
    trees = GradientBoostingRegressor(
        max_depth=5, min_samples_leaf=3, subsample=0.5, max_features=0.3, random_state=seed
    )
    nearby = Nystroem(n_components=min(300, pairs), gamma=0.005, random_state=seed)
    smooth = make_pipeline(StandardScaler(), nearby, Ridge(alpha=0.02))
    return VotingRegressor([("trees", trees), ("smooth", smooth)])


def _dot(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", x, y)
