"""Which 25 teachers to distil from? (Sec. 4.2.)

Writes teachers.csv, a figure of the chosen teachers among all candidates, and the command that
trains a student of each.
"""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.common.keys import naming_group
from experiments.common.study import Study, study
from experiments.common.values import positive_int, resolved
from netkin.analysis.matrix import place_of
from netkin.analysis.teachers import choose
from netkin.report.study import Section
from netkin.report.style import INK, PALETTE, SMALL, panels, style

LABELS = {"above": "above the threshold", "sampled": "sampled", None: "not chosen"}
"""Values of the column `chosen`, in words."""


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    settings = resolved(config.teachers)
    positive_int(settings["number"], "teachers.number")
    with study(config) as s:
        table = choice(s, settings)
        chosen = table.drop_nulls("chosen")
        caption = (
            f"Similarity of the candidates to {config.student}, and the {chosen.height} that are "
            "chosen as its teachers."
        )
        figure = s.outputs.figure(
            "teachers", teachers_figure(table, config.student, settings["above"]), table, caption
        )
        s.finish(
            f"Which teachers for {config.student}?",
            f"Similarities are those of {s.source}.",
            answer(table, config.student, settings),
            [Section("The choice", figures=[figure], tables={"All candidates": table})],
        )


def choice(s: Study, settings: dict[str, Any]) -> pl.DataFrame:
    """All candidates with what they are chosen for; see `netkin.analysis.teachers.choose`.

    Candidates are all models but the student and the excluded families. Raises UserError where the
    matrix lacks the student, or a matrix from a file has fewer candidates than teachers.
    """
    student = place_of(s.config.student, s.names, "student=NAME: the matrix")
    candidates = [
        i
        for i, family in enumerate(s.families)
        if i != student and family not in settings["exclude"]
    ]
    names = [s.names[i] for i in candidates]
    number = min(settings["number"], len(names)) if s.measured else settings["number"]
    similarities = s.scores[student, candidates]
    with naming_group("teachers", s.config.teachers):
        return choose(names, similarities, number, settings["above"], settings["seed"])


def answer(table: pl.DataFrame, student: str, settings: dict[str, Any]) -> list[str]:
    """The choice in words, and the command that trains the students."""
    chosen = table.drop_nulls("chosen")["teacher"]
    above = table.filter(chosen="above").height
    sampled = table.filter(chosen="sampled").height
    return [
        f"{len(chosen)} of {table.height} candidates: the {above} that are more similar to "
        f"{student} than {settings['above']:g}, and {sampled} of the others, sampled along their "
        f"similarities (seed {settings['seed']}).",
        "To train a student of each: python train.py -m experiment=distill "
        f"teacher={','.join(chosen)}",
    ]


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
