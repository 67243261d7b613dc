"""Does a student learn more from a similar teacher? (Sec. 4.2; Fig. 5 and F.1.)

Reads from the store every student that had a teacher, computes the similarity of each teacher to
the student's architecture as trained without one, and correlates it with the students' accuracy:
over all teachers, those of the student's base architecture, and the others. The same for the
teachers' own accuracy. Students of one teacher under several seeds count once, with their mean;
how much of the differences between teachers are differences between seeds is reported with it.

Measured on the digits: see experiments/results/digits.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy import stats

from experiments.cli.runs import open_store
from experiments.cli.setting import build_task
from experiments.cli.study import Study, study
from experiments.cli.values import resolved
from netkin.analysis import statistics
from netkin.analysis.matrix import position_of
from netkin.analysis.statistics import FEWEST, p_text
from netkin.analysis.verdict import verdict
from netkin.components import base_architecture
from netkin.errors import UserError
from netkin.report.plots import scatter
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import INK, panels, style
from netkin.training.weights import students_of
from netkin.zoo.parse import parse_members

text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    if config.model.members != "auto":
        raise UserError(
            "with experiment=distillation, model.members must be auto (its members are the "
            f"store's students and their teachers), got {config.model.members}"
        )
    dataset, student = config.dataset.name, config.student
    store = open_store(config)
    students = students_of(store, dataset, student)
    if not students:
        raise UserError(
            f"{store.root} holds no student {dataset}/{student}@TEACHER; train some with: "
            f"python train.py -m experiment=distill student={student} teacher=A,B,C"
        )
    teachers = [taught[-1]["teacher"] for taught in students.values()]
    entries = [{k: v for k, v in each.items() if v is not None} for each in teachers]
    members = parse_members([student, *entries], resolved(config.model).get("known"))
    task = build_task(config, instantiate(config.dataset.images).classes)
    bases = {member.name: base_architecture(member, task) for member in members}
    with study(config, members=members) as s:
        table = s.outputs.table("distillation", student_table(s, students, bases))
        parts = {  # Fig. 5
            "All teachers": table,
            f"Same base architecture ({bases[student]})": table.filter("same_base"),
            "Other base architectures": table.filter(~pl.col("same_base")),
        }
        own = {"Teacher accuracy": table}  # Fig. F.1
        similar, accurate = f"similarity of teacher to {student}", "accuracy of the teacher (%)"
        sections = [
            section(s, table, parts, "similarity", similar),
            section(s, table, own, "teacher_accuracy", accurate, 100),
        ]
        s.finish(
            f"Does {student} learn more from a similar teacher?",
            f"Students are {student} on {dataset} with {table.height} teachers; similarity is that "
            f"of the teacher and a {student} trained without one, among {s.source}.",
            [
                in_short(table),
                *(paragraph for each in sections for paragraph in each.paragraphs),
                seeds_text(table),
            ],
            [*sections, Section("All students", tables={"Students": table})],
        )


def student_table(
    s: Study, students: Mapping[str, list[dict[str, Any]]], bases: Mapping[str, str]
) -> pl.DataFrame:
    """A row a teacher: teacher, base, same_base, similarity (nats), teacher_accuracy,
    student_accuracy (mean over seeds; both in [0, 1]), student_low, student_high (its 95% interval
    over seeds; null where no teacher has two), seeds, seed_sd (of one training; the same for all
    teachers), n (test images), by falling similarity."""
    student = position_of(s.config.student, s.names, "student=NAME: the matrix")
    sd, freedom = pooled_sd([[notes["test_accuracy"] for notes in t] for t in students.values()])
    rows = []
    for teacher, taught in students.items():
        i, known = position_of(teacher, s.names), taught[0]["teacher_accuracy"]  # by its training
        if s.measured is not None:
            known = float(s.measured.outcomes.correct[i].mean())
        accuracy = float(np.mean([row["test_accuracy"] for row in taught]))
        half = None if sd is None else stats.t.ppf(0.975, freedom) * sd / len(taught) ** 0.5
        row: dict[str, Any] = {"teacher": teacher, "base": bases[teacher]}
        row["same_base"] = bases[teacher] == bases[s.config.student]
        row["similarity"] = float(s.scores[student, i])
        row |= {"teacher_accuracy": known, "student_accuracy": accuracy}
        row["student_low"] = None if half is None else accuracy - half
        row["student_high"] = None if half is None else accuracy + half
        rows.append({**row, "seeds": len(taught), "seed_sd": sd, "n": taught[0]["test_images"]})
    return pl.DataFrame(rows, infer_schema_length=None).sort("similarity", descending=True)


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """The standard deviation within groups, pooled over them, and its degrees of freedom.

    None and 0 where no group has two values.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None, 0
    squares = sum(float(np.square(np.asarray(g) - np.mean(g)).sum()) for g in groups)
    return (squares / freedom) ** 0.5, freedom


def reliability(table: pl.DataFrame) -> float:
    """The share of the variance between teachers' mean accuracies that is not of seeds, in [0, 1].

    A correlation with them is at most its square root. NaN where it is unknown: with one seed each
    or fewer than two teachers.
    """
    between = np.var(table["student_accuracy"].to_numpy(), ddof=1) if table.height > 1 else np.nan
    if table["seed_sd"][0] is None or not between > 0:
        return float("nan")
    of_seeds = float(np.mean(table["seed_sd"][0] ** 2 / table["seeds"].to_numpy()))
    return float(np.clip(1 - of_seeds / between, 0, 1))


def seeds_text(table: pl.DataFrame) -> str:
    """How far students of one teacher differ between seeds, and what that leaves to explain."""
    share = reliability(table)
    if np.isnan(share):
        return text("one_seed")
    seeds, means = table["seeds"], 100 * table["student_accuracy"]
    each = f"{seeds.min()}" if seeds.n_unique() == 1 else f"{seeds.min()} to {seeds.max()}"
    spread = {"between": means.std(), "low": means.min(), "high": means.max()}
    sd = 100 * table["seed_sd"][0]
    return text("seeds", sd=sd, each=each, share=1 - share, most=share**0.5, **spread)


def in_short(table: pl.DataFrame) -> str:
    """Whether students learn more from the more similar teachers, and by how much."""
    half = table.height // 2
    similarity, accuracy = table["similarity"].to_numpy(), table["student_accuracy"].to_numpy()
    test = statistics.permutation_test(similarity, accuracy)
    if half < 1:
        return text("one_teacher")
    more, less = (part["student_accuracy"].mean() for part in (table[:half], table[-half:]))
    found = verdict(test.r, p=test.p, enough=table.height >= FEWEST)
    return text("halves", verdict=found, n=table.height, more=more, less=less)


def section(
    s: Study,
    table: pl.DataFrame,
    parts: Mapping[str, pl.DataFrame],
    column: str,
    label: str,
    scale: float = 1,
) -> Section:
    """The students' accuracy against a column, for each part of the teachers, in words, too."""
    name = column.removeprefix("teacher_")
    figure, sentences = correlation_figure(s, parts, column, label, scale)
    caption = text(f"by_{name}", level=s.config.distillation.level, n=FEWEST)
    picture = s.outputs.figure(f"distillation_{name}", figure, table, caption)
    title = f"{column.replace('_', ' ').capitalize()} and distillation"
    return Section(title, sentences, figures=[picture])


@style()
def correlation_figure(
    s: Study, parts: Mapping[str, pl.DataFrame], column: str, xlabel: str, scale: float = 1
) -> tuple[Figure, list[str]]:
    """A panel a part: student accuracy (%) against a column; and a sentence for each."""
    figure, axes = panels(len(parts), 3.5, 3.0)
    sentences, settings = [], s.config.distillation
    for letter, ax, (title, part) in zip("abc", axes, parts.items(), strict=False):
        x = scale * part[column].cast(pl.Float64).to_numpy()
        y = 100 * part["student_accuracy"].to_numpy()
        correlation = statistics.pearson(x, y)
        test = statistics.permutation_test(x, y, settings.permutations)
        note = f"({letter}) {title}" if len(parts) > 1 else title
        if np.isnan(correlation.r):
            note += f"\n{len(x)} teacher{'s' * (len(x) != 1)}: no correlation"
        else:
            p = p_text(test.p, test.permutations)
            note += f"\nr = {correlation.r:.2f}, p {p}, n = {correlation.n}"
        sentences.append(correlation_text(title, correlation, test, len(x)))
        line = statistics.trend(x, y, settings.level) if len(x) >= FEWEST else None
        if part.height and part["student_low"].null_count() == 0:
            half = y - 100 * part["student_low"].to_numpy()
            drawn = {"fmt": "none", "ecolor": INK, "alpha": 0.35, "elinewidth": 0.8}
            ax.errorbar(x, y, half, label="95% over seeds", **drawn)
        scatter(ax, x, y, xlabel, "accuracy of the student (%)", part["teacher"].to_list(),
                part["base"].to_list(), trend=line, text=note)  # fmt: skip
    return figure, sentences


def correlation_text(
    title: str, correlation: statistics.Correlation, test: statistics.Tested, teachers: int
) -> str:
    """What a panel shows, the verdict first: Yes, No (the sign is negative) or Not certain.

    Fewer than FEWEST teachers have no verdict and no interval.
    """
    if np.isnan(correlation.r):
        return text("undefined", title=title, n=teachers)
    found, interval = text("few", n=FEWEST), ""
    if correlation.n >= FEWEST:
        found = text("panel", verdict(correlation.r, p=test.p))
        interval = text("interval", low=correlation.low, high=correlation.high)
    values = {"r": correlation.r, "n": correlation.n, "p": test.text()}
    naive = p_text(correlation.p)
    return text("correlation", title=title, verdict=found, interval=interval, naive=naive, **values)
