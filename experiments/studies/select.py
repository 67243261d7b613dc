"""Which models to combine into an ensemble, and which teacher to distil from? (Sec. 4.1 and 4.2.)

Ensembles are ranked by predicted error: the mean error of the members, reduced by an ERR that is
linear in their mean similarity, fitted on sampled ensembles of stored logits. Without logits no
error can be predicted; then accuracies (if given) and diversity have equal weight. Writes
select_ensembles and select_teachers, each as PNG, PDF, SVG and CSV, and report.html.

On the 12 digits members (500 images, PGD-50) similarity adds nothing to the members' mean error: on
ensembles of 3 with a held-out model predicted errors are wrong by 0.213 points with it and by 0.207
without.
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.common.components import components_of
from experiments.common.ensembles import ensembles_wrong
from experiments.common.keys import naming_group
from experiments.common.members import build_members
from experiments.common.study import Study, study, with_logits
from experiments.common.values import positive, positive_int
from netkin.analysis import ensemble, select
from netkin.analysis.matrix import Matrix, place_of
from netkin.analysis.select import mean_similarity
from netkin.errors import UserError
from netkin.report.scatter import scatter
from netkin.report.study import Section
from netkin.report.style import MARKERS, PALETTE, panels, style
from netkin.transfer.setting import Setting
from netkin.transfer.stored import params
from netkin.zoo.member import Member

BASE = "Base architecture"
GUIDELINE = (
    "The guideline (Sec. 4.2): among teachers with the student's base architecture the more "
    "similar one is better, among others the more dissimilar one. It comes from 25 ViT-Ti students "
    "on ImageNet, where the teacher's accuracy hardly mattered (r = 0.05)."
)
Advice = tuple[Section, list[str]]
"""A section of the page, and its part of the answer."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = config.select
    for name in ("size", "top", "samples"):
        positive_int(options[name], f"select.{name}")
    with study(config) as s:
        known = logits_if_any(s)
        matrix = s.matrix if known is None else known[2]
        what = "select.include: the matrix"
        places = [place_of(name, matrix.names, what) for name in options.include]
        include = list(dict.fromkeys(places))
        with naming_group("select", options):
            select.check_size(options.size, len(matrix.names), include)
        advice = [] if options.student is None else [teacher_section(s)]
        advice.append(
            blind_section(s, matrix, include)
            if known is None
            else measured_section(s, *known, include)
        )
        s.finish(
            f"Which of {len(matrix.names)} models to choose?",
            f"Advice from the similarity of {s.source}.",
            [paragraph for _, paragraphs in advice for paragraph in paragraphs],
            [section for section, _ in advice],
        )


def logits_if_any(s: Study) -> tuple[Setting, list[Member], Matrix] | None:
    """The members with stored logits, and their matrix; None where the matrix has other models."""
    if s.measured is None:
        names = {member.name for member in build_members(s.config)}
        if not names <= {*s.names}:
            return None
    return with_logits(s)


def measured_section(
    s: Study, setting: Setting, members: list[Member], matrix: Matrix, include: list[int]
) -> Advice:
    """Ensembles by predicted error, with their measured errors."""
    options, scores, n = s.config.select, matrix.scores, len(members)
    sizes = np.array([float(params(setting, member)) for member in members])
    drawn, _ = ensemble.sample(range(n), options.size, options.size, options.samples, options.seed)
    sampled = np.array(drawn, dtype=np.intp).reshape(-1, options.size)
    errors = ensembles_wrong(s, setting, members, [(i,) for i in range(n)]).mean(axis=1)
    sampled_errors = ensembles_wrong(s, setting, members, drawn).mean(axis=1)
    predict = select.fit_prediction(scores, errors, sampled, sampled_errors)
    with naming_group("select", options):
        best = select.search(predict, n, options.size, include, sizes, _max_params(options))
    best = best[: options.top]
    wrong = ensembles_wrong(s, setting, members, best.tolist())
    ends = [ensemble.share_interval(int(row.sum()), len(row)) for row in wrong]
    table = pl.DataFrame(
        {
            **_models(matrix, best),
            "mean_member_error": errors[best].mean(axis=1),
            "best_member_error": errors[best].min(axis=1),
            "predicted_error": predict(best),
            "measured_error": wrong.mean(axis=1),
            "measured_low": [low for low, _ in ends],
            "measured_high": [high for _, high in ends],
            "params": sizes[best].sum(axis=1).astype(int),
        }
    )
    figure = ensemble_figure(
        mean_similarity(scores, sampled),
        100 * sampled_errors,
        mean_similarity(scores, best),
        100 * wrong.mean(axis=1),
        "measured top-1 error (%)",
    )
    first = table.row(0, named=True)
    answer = (
        f"{first_words(table, options.size)} Predicted error {first['predicted_error']:.2%}, "
        f"measured {first['measured_error']:.2%} (95% interval over images "
        f"{first['measured_low']:.2%} to {first['measured_high']:.2%}); its best member alone "
        f"{first['best_member_error']:.2%}."
    )
    added = what_similarity_adds(select.held_out_models(scores, errors, sampled, sampled_errors))
    quality = (
        f"The ERR of an ensemble is predicted as {predict.intercept:.3f} {predict.slope:+.3f} x "
        f"mean similarity, fitted on {len(sampled)} ensembles. "
        "The same images chose and measured: expect a slightly higher error on others."
    )
    return ensemble_section(
        s, table, figure, f"{len(sampled)} sampled ones", [answer, added, quality]
    )


def what_similarity_adds(found: select.HeldOut | None) -> str:
    """What similarity adds to the errors of members on held-out models, the verdict first."""
    question = "Does similarity add anything to the members' mean error?"
    if found is None:
        return f"{question} Not certain: there are too few models to hold any out."
    verdict = "Not certain"
    if found.low > 0:
        verdict = "Yes"
    elif found.high < 0:
        verdict = "No, it makes predictions worse"
    return (
        f"{question} {verdict}: on ensembles with a model that was held out of the fit, predicted "
        f"errors are wrong by {100 * found.error:.3f} points on average with similarity and by "
        f"{100 * found.error_alone:.3f} without: a gain of {100 * found.gain:.3f} (95% interval "
        f"over {found.models} models {100 * found.low:.3f} to {100 * found.high:.3f}). Predicted "
        f"and measured errors correlate with r = {found.r:.2f} with similarity and "
        f"{found.r_alone:.2f} without."
    )


def blind_section(s: Study, matrix: Matrix, include: list[int]) -> Advice:
    """Ensembles by diversity, and by accuracy where it is given; no error is predicted."""
    options, scores = s.config.select, matrix.scores
    if options.max_params is not None:
        raise UserError(
            "select.max_params needs the models themselves: name them in model.members, with their "
            "logits in the store"
        )
    accuracy = None
    if options.accuracies is not None:
        accuracy = select.read_accuracies(options.accuracies, matrix.names)

    def rank(groups: NDArray[np.intp]) -> NDArray[np.float64]:
        similarity = mean_similarity(scores, groups)
        if accuracy is None:
            return similarity
        return _z(similarity) - _z(accuracy[groups].mean(axis=1))

    ranked = select.search(rank, len(matrix.names), options.size, include)
    best = ranked[: options.top]
    rows, columns = np.tril_indices(options.size, k=-1)
    closest = scores[ranked[:, rows], ranked[:, columns]].max(axis=1)
    table = pl.DataFrame({**_models(matrix, best), "closest_pair": closest[: len(best)]})
    if accuracy is not None:
        table = table.with_columns(mean_accuracy=pl.Series(accuracy[best].mean(axis=1)))
    sampled = np.random.default_rng(options.seed).permutation(len(ranked))[: options.samples]
    y = closest if accuracy is None else 100 * accuracy[ranked].mean(axis=1)
    figure = ensemble_figure(
        mean_similarity(scores, ranked[sampled]),
        y[sampled],
        table["mean_similarity"].to_numpy(),
        y[: len(best)],
        "closest pair (nats)" if accuracy is None else "mean member accuracy (%)",
    )
    by = "diversity alone" if accuracy is None else "accuracy and diversity, with equal weights"
    answer = [f"{first_words(table, options.size)} Ranked by {by}."]
    if accuracy is None:
        answer.append(
            "No errors are predicted, because the matrix comes from a file and the store has no "
            "logits of its models. Give select.accuracies=path.csv, or run experiment=pairwise on "
            "the models."
        )
    section, _ = ensemble_section(s, table, figure, f"{len(sampled)} at random", answer)
    return section, answer


def ensemble_section(
    s: Study, table: pl.DataFrame, figure: Figure, others: str, paragraphs: list[str]
) -> Advice:
    """The section of the ranked ensembles; its first two paragraphs are the answer."""
    size = s.config.select.size
    caption = f"Ensembles of {size}: {others}, and the {table.height} most promising."
    picture = s.outputs.figure("select_ensembles", figure, table, caption)
    tables = {"The most promising ensembles": table}
    return Section(f"Ensembles of {size}", paragraphs, tables, [picture]), paragraphs[:2]


def _models(matrix: Matrix, groups: NDArray[np.intp]) -> dict:
    """The first columns of a table of ensembles."""
    return {
        "rank": range(1, len(groups) + 1),
        "models": [" + ".join(matrix.names[i] for i in group) for group in groups],
        "mean_similarity": mean_similarity(matrix.scores, groups),
    }


def _z(values: NDArray) -> NDArray:
    return (values - values.mean()) / (values.std() or 1.0)


def _max_params(options: DictConfig) -> float | None:
    if options.max_params is None:
        return None
    return positive(options.max_params, "select.max_params")


def first_words(table: pl.DataFrame, size: int) -> str:
    """The best ensemble as a sentence."""
    return (
        f"The most promising ensemble of {size} is {table['models'][0]} (mean similarity "
        f"{table['mean_similarity'][0]:.2f})."
    )


@style()
def ensemble_figure(x: NDArray, y: NDArray, best_x: NDArray, best_y: NDArray, label: str) -> Figure:
    """Sampled ensembles and the most promising ones, by mean similarity."""
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


def teacher_section(s: Study) -> Advice:
    """Teachers of a student, ranked, with reasons."""
    name, names = s.config.select.student, s.names
    student = place_of(name, names, "select.student: the matrix")
    bases = components_of(s)[BASE].to_list()
    ranked = select.teachers(s.scores, student, bases, names)
    table = pl.DataFrame(
        {
            "rank": range(1, len(ranked) + 1),
            "teacher": [names[t.model] for t in ranked],
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
    answer = f"The most promising teacher for {name} is {best['teacher']}: {best['reason']}."
    same = table.filter(base_architecture=bases[student])
    if same.height and best["base_architecture"] != bases[student]:
        answer += f" Of the same base architecture ({bases[student]}) it is {same['teacher'][0]}."
    tables = {"Teachers": table}
    return Section(f"Teachers for {name}", [answer, GUIDELINE], tables, [picture]), [answer]


@style()
def teacher_figure(table: pl.DataFrame, student: str, base: str) -> Figure:
    """Similarity of the teachers to the student, by rank, marked by base architecture."""
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
