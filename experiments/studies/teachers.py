"""Which 25 teachers to distil from? (Sec. 4.2.)

Writes teachers.csv, a figure of where the chosen ones lie among all, and the command that trains
a student of each.
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.common.keys import naming
from experiments.common.study import Study, study
from experiments.common.values import positive_int, resolved
from netkin.analysis.teachers import choose
from netkin.errors import UserError, near
from netkin.report.study import Section
from netkin.report.style import INK, PALETTE, panels, style

HOW = {"above": "above the threshold", "sampled": "sampled", None: "not chosen"}


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    wanted = resolved(config.teachers)
    positive_int(wanted["number"], "teachers.number")
    with study(config) as s:
        student = place_of(config.student, s.names)
        others = wanted["exclude"]
        kept = [i for i, of in enumerate(s.families) if i != student and of not in others]
        names = [s.names[i] for i in kept]
        similarities = s.scores[student, kept]
        number = min(wanted["number"], len(names)) if s.measured else wanted["number"]
        with naming({"number": "teachers.number"}):
            table = choose(names, similarities, number, wanted["above"], wanted["seed"])
        chosen = table.drop_nulls("chosen")
        caption = (
            f"Similarity of the candidates to {config.student}, and the {chosen.height} that are "
            "chosen as its teachers."
        )
        figure = s.outputs.figure(
            "teachers", teachers_figure(table, config.student, wanted["above"]), table, caption
        )
        command = f"python train.py -m experiment=distill teacher={','.join(chosen['teacher'])}"
        s.finish(
            f"Which teachers for {config.student}?",
            f"Similarities are those of {s.source}.",
            said(s, table, wanted, command),
            [Section("The choice", figures=[figure], tables={"All candidates": table})],
        )


def place_of(name: str, names: tuple[str, ...]) -> int:
    """Where a model is in a matrix. Raises UserError, with near names, where it is not."""
    if name not in names:
        raise UserError(f"student {name} is not in the matrix{near(name, names)} (student=NAME)")
    return names.index(name)


def said(s: Study, table: pl.DataFrame, wanted: dict, command: str) -> list[str]:
    above = table.filter(chosen="above").height
    sampled = table.filter(chosen="sampled").height
    words = (
        f"Of {table.height} candidates, {above} are more similar to {s.config.student} than "
        f"{wanted['above']:g} and chosen; {sampled} of the others are sampled along their "
        f"similarities (seed {wanted['seed']})."
    )
    return [words, f"To train a student of each: {command}"]


@style()
def teachers_figure(table: pl.DataFrame, student: str, above: float) -> Figure:
    """A dot a candidate along its similarity to the student, by whether and how it is chosen."""
    figure, (ax,) = panels(1, 5.2, 1.9)
    for row, (how, label) in enumerate(HOW.items()):
        mine = table.filter(pl.col("chosen").eq_missing(pl.lit(how)))["similarity"].to_numpy()
        colour = PALETTE[row] if how else "#999999"
        ax.scatter(mine, np.full(len(mine), -row), s=22, color=colour, alpha=0.8, lw=0)
        ax.text(-0.01, -row, f"{label} ({len(mine)})", ha="right", va="center", fontsize=8,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.axvline(above, color=INK, lw=0.8, ls=":")
    ax.set(yticks=[], ylim=(-2.6, 0.6), xlabel=f"similarity to {student}  s = ln(100 p)")
    return figure
