"""Advice from a similarity matrix: which models to put together, and whom to learn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netkin.errors import UserError

KEEP = 20_000
"""Ensembles of a size from which larger ones are built; with fewer, none is passed over."""

Rank = Callable[[NDArray[np.intp]], NDArray[np.float64]]
"""How promising ensembles are: [G, k] positions of models -> [G], the lower the better."""


def mean_similarity(scores: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean score of the pairs within each ensemble, [G, k] -> [G]; NaN for ensembles of one."""
    k = groups.shape[1]
    rows, columns = np.tril_indices(k, k=-1)
    if not len(rows):
        return np.full(len(groups), np.nan)
    return scores[groups[:, rows], groups[:, columns]].mean(axis=1)


def search(
    rank: Rank,
    n: int,
    size: int,
    include: Sequence[int] = (),
    params: NDArray[np.float64] | None = None,
    max_params: float | None = None,
    keep: int = KEEP,
) -> NDArray[np.intp]:
    """Ensembles of `size` of n models, [G, size], the most promising first.

    Grows ensembles model by model. All of a size are looked at while there are at most `keep`;
    beyond that the most promising are grown on (a beam search).

    Args:
        rank: of ensembles of any size from 2 on.
        n, size: how many models there are, and in an ensemble.
        include: models that every ensemble has.
        params: [n] parameters of the models.
        max_params: most parameters of an ensemble's models together.
        keep: width of the beam.

    Raises UserError when there is no such ensemble.
    """
    if not 2 <= size <= n:
        raise UserError(f"select.size must be 2 to {n}, the number of models, got {size}")
    if len(include) > size:
        raise UserError(f"select.include names {len(include)} models, more than size={size}")
    groups = np.array([sorted(include)], dtype=np.intp)
    while len(groups) and groups.shape[1] < size:
        if groups.shape[1] > 1 and len(groups) > keep:
            groups = groups[np.argsort(rank(groups), kind="stable")[:keep]]
        groups = _grown(groups, n)
        if params is not None and max_params is not None:
            groups = groups[params[groups].sum(axis=1) <= max_params]
    if params is not None and max_params is not None:
        groups = groups[params[groups].sum(axis=1) <= max_params]
    if not len(groups):
        raise UserError(
            f"no ensemble of {size} models has at most select.max_params={max_params:g} parameters "
            "in all; allow more, or fewer models"
        )
    return groups[np.argsort(rank(groups), kind="stable")]


def _grown(groups: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Every ensemble with every other model, each once, its models in order."""
    larger = np.column_stack(
        [np.repeat(groups, n, axis=0), np.tile(np.arange(n), len(groups))]
    ).astype(np.intp)
    new = (larger[:, :-1] != larger[:, -1:]).all(axis=1)
    return np.unique(np.sort(larger[new], axis=1), axis=0)


@dataclass(frozen=True)
class Prediction:
    """Error of an ensemble = mean error of its members * (1 - ERR), ERR linear in mean similarity.

    Attributes:
        intercept, slope: of ERR = intercept + slope * (mean similarity of the pairs).
        errors: [n] error of each model.
        scores: [n, n].
    """

    intercept: float
    slope: float
    errors: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __call__(self, groups: NDArray[np.intp]) -> NDArray[np.float64]:
        """Predicted errors of ensembles, [G, k] -> [G], 0 or more."""
        reduction = self.intercept + self.slope * mean_similarity(self.scores, groups)
        return self.errors[groups].mean(axis=1) * np.clip(1 - reduction, 0, None)


def fit_prediction(
    scores: NDArray[np.float64],
    errors: NDArray[np.float64],
    groups: NDArray[np.intp],
    measured: NDArray[np.float64],
) -> Prediction:
    """Least squares over ensembles [G, k] whose errors [G] were measured.

    Ensembles none of whose members errs say nothing. With too few others, or all of one
    similarity, ERR is taken for constant.
    """
    alone = errors[groups].mean(axis=1)
    told = alone > 0
    reduction = 1 - measured[told] / alone[told]
    x = mean_similarity(scores, groups[told])
    if len(x) < 3 or np.ptp(x) < 1e-9:
        return Prediction(float(reduction.mean()) if len(x) else 0.0, 0.0, errors, scores)
    slope, intercept = np.polyfit(x, reduction, 1)
    return Prediction(float(intercept), float(slope), errors, scores)


@dataclass(frozen=True)
class Teacher:
    """A teacher for a student, ranked by the paper's guideline (Sec. 4.2).

    Attributes:
        model: its position.
        similarity: to the student, in nats.
        same: whether it has the student's base architecture.
        fit: how near its similarity is to the wanted end of the range of all teachers', in [0, 1].
        reason: in words.
    """

    model: int
    similarity: float
    same: bool
    fit: float
    reason: str


def teachers(
    scores: NDArray[np.float64], student: int, bases: Sequence[str], names: Sequence[str]
) -> list[Teacher]:
    """All other models as teachers of a student, the most promising first.

    Of teachers with the student's base architecture the more similar is the better, of others the
    more dissimilar (Fig. 5b and c). The two are ranked together by how near to that end of the
    range of all teachers' similarities each one is, and of equals the different one comes first:
    the best of the paper's students had a very different teacher.
    """
    own = bases[student]
    others = [i for i in range(len(names)) if i != student]
    low, high = scores[student, others].min(), scores[student, others].max()
    found = []
    for model in others:
        s, same = float(scores[student, model]), bases[model] == own
        toward_high = (s - low) / (high - low) if high > low else 0.5
        fit = float(toward_high if same else 1 - toward_high)
        found.append(Teacher(model, s, same, fit, _reason(bases[model], own, same, fit, s)))
    return sorted(found, key=lambda t: (-t.fit, t.same, names[t.model]))


def _reason(base: str, own: str, same: bool, near: float, s: float) -> str:
    kind = f"same base architecture ({own})" if same else f"{base}, unlike the student ({own})"
    wanted = "similar" if same else "dissimilar"
    if near >= 2 / 3:
        fit = f"and {wanted}: " + (
            "easy to follow"
            if same
            else "a strong regulariser, as of the best students in the paper"
        )
    elif near >= 1 / 3:
        fit = f"but only moderately {wanted}"
    else:
        fit = f"but not {wanted}: " + (
            "hard to follow, without being a different view" if same else "regularises little"
        )
    return f"{kind}, s = {s:.2f}, {fit}"
