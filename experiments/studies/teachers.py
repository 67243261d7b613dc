"""Which 25 teachers to distil from? (Sec. 4.2.)

Writes teachers.csv, a figure of the chosen teachers among all candidates, and the command that
trains a student of each.
"""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.cli.components import stand_in
from experiments.cli.keys import naming_group
from experiments.cli.runs import command, with_root
from experiments.cli.study import Study, study
from experiments.cli.values import positive_int, resolved
from netkin.analysis.select import choose_teachers
from netkin.report.study import Section
from netkin.report.style import INK, PALETTE, SMALL, panels, style

SPANNED = 0.8
"""Share of the range of similarities from which the chosen teachers represent it."""
LABELS = {"above": "above the threshold", "sampled": "sampled", None: "not chosen"}
"""Values of the column `chosen`, in words."""


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    settings = resolved(config.teachers)
    positive_int(settings["number"], "teachers.number")
    with study(config) as s:
        student, notes = stand_in(s, str(config.student), "student=NAME: the matrix")
        table = choice(s, student, settings)
        chosen = table.drop_nulls("chosen")
        caption = (
            f"Similarity of the candidates to {s.names[student]}, and the {chosen.height} that are "
            "chosen as its teachers."
        )
        figure = s.outputs.figure(
            "teachers",
            teachers_figure(table, s.names[student], settings["above"]),
            table,
            caption,
        )
        s.finish(
            f"Which teachers for {config.student}?",
            f"Similarities are those of {s.source}.",
            [*answer(table, settings), *notes, train_them(s, chosen["teacher"].to_list())],
            [Section("The choice", figures=[figure], tables={"All candidates": table})],
        )


def choice(s: Study, student: int, settings: dict[str, Any]) -> pl.DataFrame:
    """All candidates with what they are chosen for; see `netkin.analysis.select.choose_teachers`.

    Candidates are all models but the student and the excluded families. Raises UserError where a
    matrix from a file has fewer candidates than teachers.
    """
    candidates = [
        i
        for i, family in enumerate(s.families)
        if i != student and family not in settings["exclude"]
    ]
    names = [s.names[i] for i in candidates]
    number = min(settings["number"], len(names)) if s.measured else settings["number"]
    similarities = s.scores[student, candidates]
    with naming_group("teachers", s.config.teachers):
        return choose_teachers(names, similarities, number, settings["above"], settings["seed"])


def answer(table: pl.DataFrame, settings: dict[str, Any]) -> list[str]:
    """The choice in words, the verdict first: do the chosen ones span what there is?"""
    chosen = table.drop_nulls("chosen")
    scores, some = table["similarity"].to_numpy(), chosen["similarity"].to_numpy()
    share = np.ptp(some) / (np.ptp(scores) or 1.0)
    above = table.filter(chosen="above").height
    sampled = table.filter(chosen="sampled").height
    verdict = "Yes" if share >= SPANNED else "Not certain"
    return [
        f"{verdict}: {chosen.height} of {table.height} candidates span {share:.0%} of the range of "
        f"similarities, s = {some.min():.2f} to {some.max():.2f}, so that an effect of similarity "
        f"can {'show' if verdict == 'Yes' else 'hardly show'} in their students.",
        f"They are the {above} that are more similar than {settings['above']:g}, and {sampled} of "
        f"the others, sampled along their similarities (seed {settings['seed']}).",
    ]


def train_them(s: Study, teachers: list[str]) -> str:
    """The command that trains a student of each teacher, to be copied."""
    words = ["experiment=distill", f"student={s.config.student}", f"teacher={','.join(teachers)}"]
    if s.published is None:
        return f"To train a student of each: {command('-m', *words, script='train')}"
    text = command("-m", *words, "dataset=imagenet", script="train")
    return f"To train a student of each: {with_root(text)}"


@style()
def teachers_figure(table: pl.DataFrame, student: str, above: float) -> Figure:
    """A dot a candidate along its similarity to the student, a row for each value of `chosen`."""
    figure, (ax,) = panels(1, 5.2, 1.9)
    for row, (chosen, label) in enumerate(LABELS.items()):
        group = table.filter(pl.col("chosen").eq_missing(pl.lit(chosen)))
        similarities = group["similarity"].to_numpy()
        colour = PALETTE[row] if chosen else "#999999"
        ax.scatter(similarities, np.full(group.height, -row), s=22, color=colour, alpha=0.8, lw=0)
        ax.text(-0.01, -row, f"{label} ({group.height})", ha="right", va="center", fontsize=SMALL,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.axvline(above, color=INK, lw=0.8, ls=":")
    ax.set(yticks=[], ylim=(-2.6, 0.6), xlabel=f"similarity to {student}  s = ln(100 p)")
    return figure
