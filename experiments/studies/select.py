"""Advice from a matrix: which models to put together, and whom to distil from. (Sec. 4.1 and 4.2.)

Ensembles are ranked by predicted error: the mean error of the members, less an error reduction
that is a line in their mean similarity, fitted on sampled ensembles of stored logits. Without
logits there is no error to predict; then accuracies (if given) and diversity weigh alike.
Writes select_ensembles and select_teachers, each as PNG, PDF and CSV, and report.html.
"""

import os
from collections.abc import Callable

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.common.members import build_members
from experiments.common.study import Study, study, with_logits
from experiments.common.values import positive, positive_int
from experiments.studies.components import components_of
from netkin.analysis import ensemble, select
from netkin.analysis.matrix import Matrix
from netkin.analysis.select import Prediction, mean_similarity
from netkin.analysis.statistics import pearson
from netkin.errors import UserError, and_more, near
from netkin.jobs.progress import Bars
from netkin.report.scatter import scatter
from netkin.report.study import Section
from netkin.report.style import MARKERS, PALETTE, panels, style
from netkin.similarity import interval, resample
from netkin.transfer.setting import Setting
from netkin.transfer.stored import logits_by_block, params
from netkin.zoo.member import Member

BASE = "Base architecture"


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    for name in ("size", "top", "samples"):
        positive_int(config.select[name], f"select.{name}")
    with study(config) as s:
        known = logits_if_any(s)
        matrix = s.matrix if known is None else known[2]
        if not 2 <= config.select.size <= len(matrix.names):
            raise UserError(
                f"select.size must be 2 to {len(matrix.names)}, the number of models, got "
                f"{config.select.size}"
            )
        include = [position(matrix, name, "select.include") for name in config.select.include]
        sections, said = [], []
        if config.select.student is not None:
            section, words = teacher_section(s, s.matrix)
            sections.append(section)
            said += words
        section, words = (
            blind_section(s, matrix, include)
            if known is None
            else measured_section(s, *known, include)
        )
        sections.append(section)
        said += words
        s.finish(
            f"Which of {len(matrix.names)} models to choose?",
            f"Advice from the similarity of {s.source}.",
            said,
            sections,
        )


def position(matrix: Matrix, name: str, key: str) -> int:
    """Where a model is; a UserError that names the key otherwise."""
    if name not in matrix.names:
        raise UserError(f"{key}: the matrix has no model {name!r}{near(name, matrix.names)}")
    return matrix.names.index(name)


def logits_if_any(s: Study) -> tuple[Setting, list[Member], Matrix] | None:
    """Members with stored logits, where the matrix is theirs; None where it is someone else's."""
    if s.measured is None:
        names = {member.name for member in build_members(s.config)}
        if not names <= {*s.names}:
            return None
    return with_logits(s)


def measured_section(
    s: Study, setting: Setting, members: list[Member], matrix: Matrix, include: list[int]
) -> tuple[Section, list[str]]:
    """Ensembles by predicted error, with what they measure."""
    options, scores, n = s.config.select, matrix.scores, len(members)
    sizes = np.array([float(params(setting, member)) for member in members])
    sampled, _ = ensemble.sample(
        range(n), options.size, options.size, options.samples, options.seed
    )
    measure = measurer(s, setting, members)
    alone = ~measure([(i,) for i in range(n)])
    errors = alone.mean(axis=1)
    trained_on = np.array(sampled, dtype=np.intp).reshape(-1, options.size)
    errors_of_sampled = (~measure(sampled)).mean(axis=1)
    predict = select.fit_prediction(scores, errors, trained_on, errors_of_sampled)
    best = select.search(predict, n, options.size, include, sizes, _max_params(options))
    best = best[: options.top]
    wrong = ~measure([tuple(map(int, group)) for group in best])
    draws = resample(len(setting.subset), s.config.score.bootstrap) @ wrong.T / wrong.shape[1]
    ends = [error_interval(row, column) for row, column in zip(wrong, draws.T, strict=True)]
    table = pl.DataFrame(
        {
            "rank": range(1, len(best) + 1),
            "models": [" + ".join(matrix.names[i] for i in group) for group in best],
            "mean_similarity": mean_similarity(scores, best),
            "mean_member_error": errors[best].mean(axis=1),
            "best_member_error": errors[best].min(axis=1),
            "predicted_error": predict(best),
            "measured_error": wrong.mean(axis=1),
            "measured_low": [low for low, _ in ends],
            "measured_high": [high for _, high in ends],
            "params": sizes[best].sum(axis=1).astype(int),
        }
    )
    picture = s.outputs.figure(
        "select_ensembles",
        ensemble_figure(
            mean_similarity(scores, trained_on),
            100 * errors_of_sampled,
            mean_similarity(scores, best),
            100 * wrong.mean(axis=1),
            "measured top-1 error (%)",
        ),
        table,
        f"Ensembles of {options.size}: {len(sampled)} that were sampled, and the "
        f"{len(best)} most promising.",
    )
    said = [first_words(table, options.size)]
    said[0] += (
        f" Predicted error {table['predicted_error'][0]:.2%}, measured "
        f"{table['measured_error'][0]:.2%} (95% interval over images {ends[0][0]:.2%} to "
        f"{ends[0][1]:.2%}); its best member alone {table['best_member_error'][0]:.2%}."
    )
    said.append(
        trust(scores, errors, trained_on, errors_of_sampled, predict)
        + " The same images chose and measured: expect a little more error on others."
    )
    section = Section(
        f"Ensembles of {options.size}", said, {"The most promising ensembles": table}, [picture]
    )
    return section, said[:1]


def error_interval(wrong: NDArray[np.bool_], draws: NDArray) -> tuple[float, float]:
    """95 % interval of an error over bootstrap draws of images, exact where no image is wrong."""
    if not wrong.any():
        return 0.0, 1 - 0.05 ** (1 / len(wrong))
    return interval(draws)


def measurer(
    s: Study, setting: Setting, members: list[Member]
) -> Callable[[list[tuple[int, ...]]], NDArray[np.bool_]]:
    """Which images ensembles classify correctly, [G, I], from stored logits."""

    def measure(groups: list[tuple[int, ...]]) -> NDArray[np.bool_]:
        with Bars(s.console) as bars, logits_by_block(setting, members) as read:
            bars.start("ensemble", ["images"], len(setting.subset))
            correct = ensemble.ensembles_correct(
                read,
                setting.labels.numpy(),
                groups,
                len(os.sched_getaffinity(0)),
                lambda images: bars.advance("ensemble", images),
            )
            bars.end("ensemble")
        return correct

    return measure


def trust(
    scores: NDArray, errors: NDArray, groups: NDArray, measured: NDArray, fitted: Prediction
) -> str:
    """How well errors are predicted of ensembles that the line was not fitted on."""
    words = (
        f"An ensemble's ERR is predicted as {fitted.intercept:.3f} "
        f"{fitted.slope:+.3f} x mean similarity"
    )
    half = len(groups) // 2
    if half < 3:
        return f"{words}, from {len(groups)} ensembles."
    order = np.random.default_rng(0).permutation(len(groups))
    told, held = order[:half], order[half:]
    fit = select.fit_prediction(scores, errors, groups[told], measured[told])
    r = pearson(fit(groups[held]), measured[held]).r
    alone = pearson(errors[groups[held]].mean(axis=1), measured[held]).r
    return (
        f"{words}. Fitted on half of {len(groups)} ensembles, predicted and measured error of the "
        f"others correlate with r = {r:.2f} (r = {alone:.2f} for the members' mean error alone)."
    )


def blind_section(s: Study, matrix: Matrix, include: list[int]) -> tuple[Section, list[str]]:
    """Ensembles by diversity, and by accuracy where it is given; no error is predicted."""
    options, scores, n = s.config.select, matrix.scores, len(matrix.names)
    if options.max_params is not None:
        raise UserError(
            "select.max_params needs the models themselves: their names in model.members, and "
            "their logits in the store"
        )
    accuracy = None
    if options.accuracies is not None:
        accuracy = read_accuracies(options.accuracies, matrix)

    def rank(groups: NDArray[np.intp]) -> NDArray[np.float64]:
        alike = mean_similarity(scores, groups)
        if accuracy is None:
            return alike
        return _z(alike) - _z(accuracy[groups].mean(axis=1))

    found = select.search(rank, n, options.size, include)
    best = found[: options.top]
    rows, columns = np.tril_indices(options.size, k=-1)
    closest = scores[found[:, rows], found[:, columns]].max(axis=1)
    columns_ = {
        "rank": range(1, len(best) + 1),
        "models": [" + ".join(matrix.names[i] for i in group) for group in best],
        "mean_similarity": mean_similarity(scores, best),
        "closest_pair": closest[: len(best)],
    }
    if accuracy is not None:
        columns_["mean_accuracy"] = accuracy[best].mean(axis=1)
    table = pl.DataFrame(columns_)
    shown = np.random.default_rng(options.seed).permutation(len(found))[: options.samples]
    y = closest if accuracy is None else 100 * accuracy[found].mean(axis=1)
    picture = s.outputs.figure(
        "select_ensembles",
        ensemble_figure(
            mean_similarity(scores, found[shown]),
            y[shown],
            table["mean_similarity"].to_numpy(),
            y[: len(best)],
            "closest pair (nats)" if accuracy is None else "mean member accuracy (%)",
        ),
        table,
        f"Ensembles of {options.size}: {len(shown)} at random, and the {len(best)} most promising.",
    )
    by = "diversity alone" if accuracy is None else "accuracy and diversity, which weigh alike"
    said = [first_words(table, options.size) + f" Ranked by {by}."]
    if accuracy is None:
        said.append(
            "No errors are predicted: the matrix comes from a file and its models have no logits "
            "here. Give select.accuracies=path.csv, or run experiment=pairwise on the models."
        )
    section = Section(
        f"Ensembles of {options.size}", said, {"The most promising ensembles": table}, [picture]
    )
    return section, said


def _z(values: NDArray) -> NDArray:
    return (values - values.mean()) / (values.std() or 1.0)


def _max_params(options: DictConfig) -> float | None:
    if options.max_params is None:
        return None
    return positive(options.max_params, "select.max_params")


def read_accuracies(path: str, matrix: Matrix) -> NDArray[np.float64]:
    """[N] accuracies in [0, 1] of the matrix's models, from a CSV file of model, accuracy."""
    try:
        table = pl.read_csv(path, schema_overrides={"accuracy": pl.Float64})
        found = dict(zip(table["model"], table["accuracy"], strict=True))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"select.accuracies={path} cannot be read ({str(error).splitlines()[0]}); expected a "
            "CSV file with the columns model and accuracy"
        ) from None
    missing = [name for name in matrix.names if found.get(name) is None]
    if missing:
        raise UserError(f"select.accuracies={path} lacks {and_more(missing, 3)}")
    values = np.array([found[name] for name in matrix.names])
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError(f"select.accuracies={path}: accuracies must be rates in [0, 1]")
    return values


def first_words(table: pl.DataFrame, size: int) -> str:
    return (
        f"The most promising {size} together: {table['models'][0]} (mean similarity "
        f"{table['mean_similarity'][0]:.2f})."
    )


@style()
def ensemble_figure(x: NDArray, y: NDArray, best_x: NDArray, best_y: NDArray, label: str) -> Figure:
    """Ensembles at random, and the most promising."""
    figure, (ax,) = panels(1, 4.6, 3.0)
    scatter(
        ax,
        np.r_[x, best_x],
        np.r_[y, best_y],
        "mean similarity of the pairs (nats)",
        label,
        groups=["others"] * len(x) + ["most promising"] * len(best_x),
    )
    return figure


def teacher_section(s: Study, matrix: Matrix) -> tuple[Section, list[str]]:
    """Teachers of a student, ranked, with the reason of each."""
    name = s.config.select.student
    student = position(matrix, name, "select.student")
    bases = components_of(s)[BASE].to_list()
    ranked = select.teachers(matrix.scores, student, bases, matrix.names)
    table = pl.DataFrame(
        {
            "rank": range(1, len(ranked) + 1),
            "teacher": [matrix.names[t.model] for t in ranked],
            "base_architecture": [bases[t.model] for t in ranked],
            "similarity": [t.similarity for t in ranked],
            "fit": [t.fit for t in ranked],
            "reason": [t.reason for t in ranked],
        }
    )
    picture = s.outputs.figure(
        "select_teachers",
        teacher_figure(table, name, bases[student]),
        table,
        f"Teachers for {name} ({bases[student]}), the most promising at the top.",
    )
    best = table.row(0, named=True)
    said = [f"The most promising teacher for {name} is {best['teacher']}: {best['reason']}."]
    alike = table.filter(base_architecture=bases[student])
    if alike.height and best["base_architecture"] != bases[student]:
        said[0] += f" Among {bases[student]}s it is {alike['teacher'][0]}."
    note = (
        "The guideline (Sec. 4.2): of the student's own base architecture the more similar teacher "
        "is the better one, of another the more dissimilar. It comes from 25 ViT-Ti students on "
        "ImageNet; the teacher's accuracy hardly mattered there (r = 0.05)."
    )
    return Section(f"Teachers for {name}", [*said, note], {"Teachers": table}, [picture]), said


@style()
def teacher_figure(table: pl.DataFrame, student: str, base: str) -> Figure:
    """Similarity to the student, a line a teacher, by rank; same and other base architectures."""
    n = table.height
    figure, (ax,) = panels(1, 4.8, 0.9 + 0.15 * n)
    same = (table["base_architecture"] == base).to_numpy()
    s = table["similarity"].to_numpy()
    for i, (mask, label) in enumerate(((~same, "another base architecture"), (same, base))):
        places = np.flatnonzero(mask)
        ax.plot(s[mask], places, ls="", marker=MARKERS[i], color=PALETTE[i], label=label)
    ax.set_yticks(range(n), table["teacher"].to_list(), fontsize=7)
    ax.set(ylim=(n - 0.4, -0.6), xlabel=f"similarity to {student} (nats)")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
