"""Which models to combine into an ensemble, and which teacher to distil from? (Sec. 4.1 and 4.2.)

Ensembles are ranked by predicted error: the mean error of the members, reduced by an ERR that is
linear in their mean similarity, fitted on sampled ensembles of stored logits. Without logits
(`similarity=sat69`) they are ranked by the error that is expected from accuracies, and similarity
chooses among the best; see `experiments.cli.ensemble_advice`. Writes select_ensembles and
select_teachers, each as PNG, PDF, SVG and CSV, and report.html.

On the 12 digits members (500 images, PGD-50) similarity adds nothing to the members' mean error: on
ensembles of 3 with a held-out model predicted errors are wrong by 0.213 points with it and by 0.207
without.
"""

from dataclasses import replace

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from experiments.cli.components import BASE, components_of, stand_in
from experiments.cli.ensemble_advice import (
    LITERATURE,
    Advice,
    blind_section,
    ensemble_figure,
    max_params,
    models_columns,
)
from experiments.cli.ensembles import ensembles_wrong
from experiments.cli.keys import naming_group
from experiments.cli.members import build_members
from experiments.cli.runs import command, with_root
from experiments.cli.study import Study, study, with_logits
from experiments.cli.values import positive_int
from netkin.analysis import ensemble, select
from netkin.analysis.matrix import Matrix, position_of
from netkin.analysis.select import mean_similarity
from netkin.analysis.statistics import verdict
from netkin.model import Model
from netkin.report.study import Section
from netkin.report.style import MARKERS, PALETTE, panels, style
from netkin.report.text import count
from netkin.run import Run

GUIDELINE = (
    "The guideline (Sec. 4.2): among teachers with the student's base architecture the more "
    "similar one is better, among others the more dissimilar one. It comes from 25 ViT-Ti students "
    "on ImageNet, where the teacher's accuracy hardly mattered (r = 0.05)."
)


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = config.select
    for name in ("size", "top", "samples"):
        positive_int(options[name], f"select.{name}")
    with study(config) as s:
        known = logits_if_any(s)
        matrix = s.matrix if known is None else known[2]
        what = "select.include: the matrix"
        places = [position_of(name, matrix.names, what) for name in options.include]
        include = list(dict.fromkeys(places))
        with naming_group("select", options):
            select.check_size(options.size, len(matrix.names), include)
        ensembles, answer = (
            blind_section(s, matrix, include)
            if known is None
            else measured_section(s, *known, include)
        )
        sections = [ensembles]
        if options.student is not None:  # the question is another, so ensembles are on the page
            sections[0] = replace(ensembles, paragraphs=[*answer, *ensembles.paragraphs])
            section, answer = teacher_section(s)
            sections.insert(0, section)
        s.finish(
            f"Which of {len(matrix.names)} models to choose?",
            f"Advice from the similarity of {s.source}.",
            answer,
            sections,
        )


def logits_if_any(s: Study) -> tuple[Run, list[Model], Matrix] | None:
    """The members with stored logits, and their matrix; None where the matrix has other models, or
    the images of a published matrix are not here."""
    if s.measured is None:
        if s.published is not None and OmegaConf.is_missing(s.config.dataset, "root"):
            return None
        names = {member.name for member in build_members(s.config)}
        if not names <= {*s.names}:
            return None
    return with_logits(s)


def measured_section(
    s: Study, run: Run, members: list[Model], matrix: Matrix, include: list[int]
) -> Advice:
    """Ensembles by predicted error, with their measured errors."""
    options, scores, n, results = s.config.select, matrix.scores, len(members), run.results
    sizes = np.array([float(results.params(member)) for member in members])
    drawn, _ = ensemble.sample(range(n), options.size, options.size, options.samples, options.seed)
    sampled = np.array(drawn, dtype=np.intp).reshape(-1, options.size)
    errors = ensembles_wrong(s, results, members, [(i,) for i in range(n)]).mean(axis=1)
    sampled_errors = ensembles_wrong(s, results, members, drawn).mean(axis=1)
    predict = select.fit_prediction(scores, errors, sampled, sampled_errors)
    with naming_group("select", options):
        best = select.search(predict, n, options.size, include, sizes, max_params(options))
    best = best[: options.top]
    wrong = ensembles_wrong(s, results, members, best.tolist())
    ends = [ensemble.share_interval(int(row.sum()), len(row)) for row in wrong]
    table = pl.DataFrame(
        {
            **models_columns(matrix, best),
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
    picture = s.outputs.figure(
        "select_ensembles",
        figure,
        table,
        f"Ensembles of {options.size}: {len(sampled)} sampled ones, and the {table.height} most "
        "promising.",
    )
    quality = (
        f"The ERR of an ensemble is predicted as {predict.intercept:.3f} {predict.slope:+.3f} x "
        f"mean similarity, fitted on {len(sampled)} ensembles. "
        "The same images chose and measured: expect a slightly higher error on others."
    )
    answer = [
        better_than_one(table, len(results.evaluation.subset)),
        what_similarity_adds(select.held_out_models(scores, errors, sampled, sampled_errors)),
    ]
    tables = {"The most promising ensembles": table}
    return Section(f"Ensembles of {options.size}", [LITERATURE, quality], tables, [picture]), answer


def better_than_one(table: pl.DataFrame, images: int) -> str:
    """The best ensemble, the verdict first: does it err less than its best member?"""
    first = table.row(0, named=True)
    alone = first["best_member_error"]
    better = verdict(alone - first["measured_high"], alone - first["measured_low"])
    return (
        f"{better}: {first['models']} misclassifies {first['measured_error']:.1%} of {images} "
        f"images (95% interval {first['measured_low']:.1%} to {first['measured_high']:.1%}; "
        f"predicted {first['predicted_error']:.1%}), its best member alone {alone:.1%}. It has "
        f"{count(first['params'])} parameters and a mean similarity of "
        f"{first['mean_similarity']:.2f}."
    )


def what_similarity_adds(found: select.HeldOut | None) -> str:
    """What similarity adds to the errors of members on held-out models, the verdict first."""
    question = "Does similarity add anything to the members' mean error?"
    if found is None:
        return f"{question} Not certain: there are too few models to hold any out."
    adds = verdict(found.low, found.high, "No, it makes predictions worse")
    return (
        f"{question} {adds}: on ensembles with a model that was held out of the fit, predicted "
        f"errors are wrong by {100 * found.error:.3f} points on average with similarity and by "
        f"{100 * found.error_alone:.3f} without: a gain of {100 * found.gain:.3f} (95% interval "
        f"over {found.models} models {100 * found.low:.3f} to {100 * found.high:.3f}). Predicted "
        f"and measured errors correlate with r = {found.r:.2f} with similarity and "
        f"{found.r_alone:.2f} without."
    )


def teacher_section(s: Study) -> Advice:
    """Teachers of a student, ranked, with reasons."""
    names = s.names
    student, notes = stand_in(s, str(s.config.select.student), "select.student: the matrix")
    name = names[student]
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
    if s.published is not None:
        accuracy = s.published.accuracy[[t.model for t in ranked]]
        table = table.insert_column(3, pl.Series("accuracy", accuracy))
    picture = s.outputs.figure(
        "select_teachers",
        teacher_figure(table, name, bases[student]),
        table,
        f"Teachers for {name} ({bases[student]}), the most promising at the top.",
    )
    best = table.row(0, named=True)
    answer = (
        f"Not certain: the most promising teacher for {s.config.select.student} is "
        f"{best['teacher']} ({best['reason']}), but similarity says little about students: in the "
        "paper it explains 10% of the variance of 25 students (r = -0.32, p = 0.12)."
    )
    same = table.filter(base_architecture=bases[student])
    if same.height and best["base_architecture"] != bases[student]:
        answer += f" Of the same base architecture ({bases[student]}) it is {same['teacher'][0]}."
    tables = {"Teachers": table}
    section = Section(f"Teachers for {name}", [GUIDELINE], tables, [picture])
    return section, [answer, *notes, *train_it(s, best["teacher"])]


def train_it(s: Study, teacher: str) -> list[str]:
    """The command that trains the student with the teacher, where both have published names."""
    if s.published is None:
        return []
    words = ["experiment=distill", f"student={s.config.select.student}", f"teacher={teacher}"]
    text = command(*words, "dataset=imagenet", script="train")
    return [f"To train it: {with_root(text)}"]


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
