"""Advice from a similarity matrix: which models to combine, and which teacher to distil from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.analysis.matrix import pair_index
from netkin.analysis.statistics import FEWEST, lazy, pearson, power, t_interval
from netkin.data.tables import read_text
from netkin.errors import UserError, and_more, reading

KEEP = 20_000
"""Ensembles of one size that are extended to the next; with at most so many the search is exact."""

Rank = Callable[[NDArray[np.intp]], NDArray[np.float64]]
"""Ranks G ensembles of k models: positions [G, k] -> [G], lower is better."""


def mean_similarity(scores: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean score of the pairs within each ensemble, [G, k] -> [G]; NaN for ensembles of one."""
    k = groups.shape[1]
    rows, columns = pair_index(k)
    if not len(rows):
        return np.full(len(groups), np.nan)
    return scores[groups[:, rows], groups[:, columns]].mean(axis=1)


def check_size(size: int, n: int, include: Sequence[int] = ()) -> None:
    """Raises UserError unless `search` can form ensembles of `size` of n models."""
    if not 2 <= size <= n:
        raise UserError(f"size must be 2 to {n}, the number of models, got {size}")
    if len(include) > size:
        raise UserError(f"include names {len(include)} models, more than size={size}")


def search(
    rank: Rank,
    n: int,
    size: int,
    include: Sequence[int] = (),
    params: NDArray[np.float64] | None = None,
    max_params: float | None = None,
    keep: int = KEEP,
) -> NDArray[np.intp]:
    """Ensembles of `size` of n models, [G, size], the best by `rank` first.

    Extends ensembles model by model. While there are at most `keep` of a size, all are extended;
    otherwise only the best (a beam search). Each has the models at the positions `include`, and at
    most max_params parameters, of those of its models, [n]. Raises UserError when there is none.
    """
    check_size(size, n, include)
    limit = np.inf if params is None or max_params is None else max_params
    sizes = np.zeros(n) if params is None else params
    groups = np.array([sorted(include)], dtype=np.intp)
    while len(groups) and groups.shape[1] < size:
        if groups.shape[1] > 1 and len(groups) > keep:
            groups = groups[np.argsort(rank(groups), kind="stable")[:keep]]
        # every ensemble and every other model, without duplicates, models in order
        larger = [np.repeat(groups, n, axis=0), np.tile(np.arange(n), len(groups))]
        groups = np.sort(np.column_stack(larger).astype(np.intp), axis=1)
        groups = np.unique(groups[(np.diff(groups) > 0).all(axis=1)], axis=0)
        groups = groups[sizes[groups].sum(axis=1) <= limit]
    groups = groups[sizes[groups].sum(axis=1) <= limit]
    if not len(groups):
        raise UserError(
            f"max_params={max_params:g} is less than any ensemble of {size} models has; allow more "
            "parameters or fewer models"
        )
    return groups[np.argsort(rank(groups), kind="stable")]


@dataclass(frozen=True)
class Prediction:
    """Error of an ensemble = mean error of its members * (1 - ERR), where ERR = intercept + slope *
    (mean similarity of the pairs), by the errors [n] of the models and their scores [n, n]."""

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

    Ensembles whose members never err are left out, because they have no ERR. With fewer than 3
    others, or with the same similarity for all, ERR is assumed to be constant.
    """
    alone = errors[groups].mean(axis=1)
    defined = alone > 0
    reduction = 1 - measured[defined] / alone[defined]
    x = mean_similarity(scores, groups[defined])
    if len(x) < 3 or np.ptp(x) < 1e-9:
        return Prediction(float(reduction.mean()) if len(x) else 0.0, 0.0, errors, scores)
    slope, intercept = np.polyfit(x, reduction, 1)
    return Prediction(float(intercept), float(slope), errors, scores)


LIKELY, LEAST, MOST = 0.85, 0.75, 0.95
"""Correlations of the margins of two classifiers; see `expected_error`."""


def expected_error(
    errors: NDArray[np.float64], groups: NDArray[np.intp], correlation: float = LIKELY
) -> NDArray[np.float64]:
    """Errors of ensembles [G, k] that follow from the errors [n] of their members alone, [G].

    The margin of each model (true logit less the highest other one) is taken as normal over images,
    and all pairs of models as equally correlated; 1 makes an ensemble no better than its mean
    member. The mean of k margins is then normal, too, and negative with this probability. ImageNet
    classifiers that err on 19% to 26% and of which just one errs on 12% to 15% of the images have a
    correlation of 0.83 to 0.85; of models trained on other data it can be far lower (Gontijo-Lopes
    et al. 2022).
    """
    z = lazy.stats.norm.ppf(np.clip(errors, 1e-6, 1 - 1e-6))[groups]
    k = groups.shape[1]
    spread = np.sqrt(correlation + (1 - correlation) / k)
    return lazy.stats.norm.cdf(z.mean(axis=1) / spread)


def least_similar_of_the_best(
    expected: NDArray[np.float64], similarity: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.intp], int]:
    """The order of G ensembles by expected errors [G] and mean scores [G], and how many have an
    error within `tolerance` of the lowest. These come first, the least similar ahead; the others
    follow by their errors."""
    near = expected <= expected.min() + tolerance
    order = np.lexsort((np.where(near, similarity, expected), ~near))
    return order.astype(np.intp), int(near.sum())


def held_out_models(
    scores: NDArray[np.float64],
    errors: NDArray[np.float64],
    groups: NDArray[np.intp],
    measured: NDArray[np.float64],
) -> dict[str, float] | None:
    """What similarity adds to the errors of members, on ensembles with a model that no fitted
    ensemble has.

    The arguments are those of `fit_prediction`. A model is held out where at least 3 ensembles have
    it and 3 have not. None for fewer than FEWEST such `models`. r is Pearson's, of predicted and
    measured errors, and error their mean absolute difference, a mean over the models; r_alone and
    error_alone are of a prediction from the members' mean error alone, with a constant ERR; gain is
    error_alone - error, with its 95 % interval over the models, low and high: Student's, of N / k
    models, because each ensemble is held out with each of its k models.
    """
    off, values = [], []
    for model in range(len(scores)):
        out = (groups == model).any(axis=1)
        if min(out.sum(), (~out).sum()) < 3:
            continue
        of, truth = (errors, groups[~out], measured[~out]), measured[out]
        predicted = fit_prediction(scores, *of)(groups[out])
        alone = fit_prediction(np.zeros_like(scores), *of)(groups[out])
        off.append([np.abs(p - truth).mean() for p in (predicted, alone)])
        values.append(np.stack([predicted, alone, truth]))
    if len(off) < FEWEST:
        return None
    error, error_alone = np.mean(off, axis=0).tolist()
    gains = np.array(off)[:, 1] - np.array(off)[:, 0]
    gain = float(gains.mean())
    half = (t_interval(gains)[1] - gain) * groups.shape[1] ** 0.5
    predicted, alone, truth = np.concatenate(values, axis=1)
    errors_of = {"error": error, "error_alone": error_alone, "gain": gain}
    r = {"r": pearson(predicted, truth).r, "r_alone": pearson(alone, truth).r}
    return {"models": len(off), **r, **errors_of, "low": gain - half, "high": gain + half}


def read_accuracies(path: str | Path, names: Sequence[str]) -> NDArray[np.float64]:
    """[N] accuracies in [0, 1] of N models, from a CSV file with the columns model and accuracy.

    Raises UserError for a file that cannot be read, lacks a model, or has another value.
    """
    table = read_text(path, ("model", "accuracy"))
    expected = "expected a CSV file with the columns model and accuracy"
    with reading(path, expected, pl.exceptions.PolarsError):
        accuracies = dict(zip(table["model"], table["accuracy"].cast(pl.Float64), strict=True))
    if missing := [name for name in names if accuracies.get(name) is None]:
        raise UserError(f"{path} lacks {and_more(missing, 3)}")
    values = np.array([accuracies[name] for name in names])
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError(f"{path}: accuracies must be rates in [0, 1]")
    return values


STUDENTS_R = -0.32
"""The paper's r of the accuracy of 25 students and the similarity of their teachers (Sec. 4.2)."""
POWER = 0.8
"""How often a study should find an effect that is there."""


def teachers_for_power(r: float = STUDENTS_R, share: float = POWER) -> int:
    """The fewest teachers with which a study finds r in so large a share of studies."""
    return next(n for n in range(4, 1_000_000) if power(r, n) >= share)


def teachers(
    scores: NDArray[np.float64], student: int, bases: Sequence[str], names: Sequence[str]
) -> pl.DataFrame:
    """All other models as teachers of a student, by its position, the most promising first
    (Sec. 4.2).

    Among teachers with the student's base architecture the more similar one is better, among others
    the more dissimilar one (Fig. 5b and c). Ties go to the teacher with another base architecture:
    the best of the paper's students had a very different teacher.

    Returns a row a teacher: position, rank, teacher, base_architecture, similarity, and fit: in
    [0, 1], 1 for the most similar of the student's base architecture, and the least similar other.
    """
    listed = {"teacher": names, "base_architecture": bases, "similarity": scores[student]}
    table = pl.DataFrame(listed).with_row_index("position").filter(pl.col("position") != student)
    s, same = pl.col("similarity"), pl.col("base_architecture") == bases[student]
    toward = ((s - s.min()) / (s.max() - s.min())).fill_nan(0.5)
    fit = pl.when(same).then(toward).otherwise(1 - toward)
    table = table.with_columns(fit=fit).sort(-pl.col("fit"), same, "teacher")
    return table.insert_column(1, pl.Series("rank", range(1, table.height + 1)))


def choose_teachers(
    names: Sequence[str],
    similarities: NDArray[np.float64],
    number: int = 25,
    above: float = 2.5,
    seed: int = 0,
) -> pl.DataFrame:
    """All candidates whose similarity to the student, [N] in nats, is above one, and a sample of
    the others with their distribution.

    The others are sorted by similarity and split into as many runs of (nearly) equal length as
    teachers are still needed, and one is drawn from each run. The `number` is larger where more
    candidates are above; for fewer candidates UserError is raised.

    Returns a row a candidate, the most similar first: teacher, similarity, and chosen, which is
    "above", "sampled" or null.
    """
    if len(names) < number:
        raise UserError(
            f"number must be at most {len(names)}, since there are {len(names)} candidates, got "
            f"{number}; choose fewer teachers, or from more models"
        )
    order = np.argsort(-similarities, kind="stable")
    high = int((similarities > above).sum())
    rng, runs = np.random.default_rng(seed), np.arange(high, len(order))
    needed = max(0, number - high)
    sampled = [int(rng.choice(run)) for run in np.array_split(runs, needed)] if needed else []
    how = {**dict.fromkeys(range(high), "above"), **dict.fromkeys(sampled, "sampled")}
    chosen = pl.Series("chosen", [how.get(i) for i in range(len(order))], pl.String)
    listed = {"teacher": [names[i] for i in order], "similarity": similarities[order]}
    return pl.DataFrame(listed).with_columns(chosen)
