"""Does a student learn more from a similar teacher? (Sec. 4.2; Fig. 5 and F.1.)

Reads from the store every student that had a teacher, computes the similarity of each teacher to
the student's architecture as trained without one, and correlates it with the students' accuracy:
over all teachers, those of the student's base architecture, and the others. The same for the
teachers' own accuracy. Students of one teacher under several seeds count once, with their mean.

Measured on the digits: see experiments/results/digits.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.common.runs import open_store
from experiments.common.setting import build_task
from experiments.common.study import Study, study
from experiments.common.values import one_of, positive_int, resolved
from netkin.analysis.matrix import place_of
from netkin.analysis.permutation import Tested, permutation_test
from netkin.analysis.statistics import FEWEST, Correlation, p_text, pearson, trend
from netkin.errors import UserError
from netkin.report.scatter import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.training.weights import students_of
from netkin.zoo.components import base_architecture
from netkin.zoo.member import Member, parse_members

LEVEL = 0.05
"""Of the p-value below which a correlation is certain."""


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    positive_int(config.distillation.permutations, "distillation.permutations")
    one_of(config.model.members, ("auto",), "with experiment=distillation, model.members")
    dataset, student = config.dataset.name, config.student
    store = open_store(config)
    students = students_of(store, dataset, student)
    if not students:
        raise UserError(
            f"{store.root} holds no student {dataset}/{student}@TEACHER; train some with: "
            f"python train.py -m experiment=distill student={student} teacher=A,B,C"
        )
    members = student_and_teachers(config, students)
    bases = base_architectures(config, members)
    with study(config, members=members) as s:
        table = student_table(s, students, bases)
        s.outputs.table("distillation", table)
        by_similarity = similarity_section(s, table, bases[student])
        by_accuracy = accuracy_section(s, table)
        s.finish(
            f"Does {student} learn more from a similar teacher?",
            f"Students are {student} on {dataset} with {table.height} teachers; similarity is that "
            f"of the teacher and a {student} trained without one, among {s.source}.",
            [*by_similarity.paragraphs, *by_accuracy.paragraphs],
            [by_similarity, by_accuracy, Section("All students", tables={"Students": table})],
        )


def student_and_teachers(config: DictConfig, students: Sequence[Mapping[str, Any]]) -> list[Member]:
    """The student's architecture without a teacher, and each teacher of `students` once."""
    teachers = {row["teacher"]["name"]: row["teacher"] for row in students}
    entries = [
        {key: value for key, value in teacher.items() if value is not None}
        for teacher in teachers.values()
    ]
    return parse_members([config.student, *entries], resolved(config.model).get("known"))


def base_architectures(config: DictConfig, members: Sequence[Member]) -> dict[str, str]:
    """The base architecture of each, such as CNN or Transformer, derived from its modules."""
    task = build_task(config, instantiate(config.dataset.images).classes)
    return {member.name: base_architecture(member, task) for member in members}


def student_table(
    s: Study, students: Sequence[Mapping[str, Any]], bases: Mapping[str, str]
) -> pl.DataFrame:
    """A row a teacher: teacher, base, same_base, similarity (nats), teacher_accuracy,
    student_accuracy (mean over seeds; both in [0, 1]), seeds, n (test images), by falling
    similarity."""
    student = place_of(s.config.student, s.names, "student=NAME: the matrix")
    rows = []
    for teacher in dict.fromkeys(row["teacher"]["name"] for row in students):
        taught = [row for row in students if row["teacher"]["name"] == teacher]
        i = place_of(teacher, s.names)
        rows.append(
            {
                "teacher": teacher,
                "base": bases[teacher],
                "same_base": bases[teacher] == bases[s.config.student],
                "similarity": float(s.scores[student, i]),
                "teacher_accuracy": teacher_accuracy(s, i, taught[0]),
                "student_accuracy": float(np.mean([row["test_accuracy"] for row in taught])),
                "seeds": len(taught),
                "n": taught[0]["test_images"],
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None).sort("similarity", descending=True)


def teacher_accuracy(s: Study, i: int, student: Mapping[str, Any]) -> float | None:
    """In [0, 1]: on the subset, or as noted beside the teacher's weights, if it was."""
    if s.measured is not None:
        return float(s.measured.outcomes.correct[i].mean())
    return student["teacher_accuracy"]


def similarity_section(s: Study, table: pl.DataFrame, base: str) -> Section:
    """Fig. 5: all teachers, those of the student's base architecture, the others."""
    parts = {
        "All teachers": table,
        f"Same base architecture ({base})": table.filter("same_base"),
        "Other base architectures": table.filter(~pl.col("same_base")),
    }
    xlabel = f"similarity of teacher to {s.config.student}"
    figure, sentences = correlation_figure(s, parts, "similarity", xlabel)
    caption = (
        "Accuracy of the student against the similarity of its teacher (Fig. 5): (a) all teachers, "
        "(b) of the student's base architecture, (c) of others; least-squares line with its "
        f"{s.config.distillation.level:.0%} band."
    )
    picture = s.outputs.figure("distillation_similarity", figure, table, caption)
    return Section("Similarity and distillation", sentences, figures=[picture])


def accuracy_section(s: Study, table: pl.DataFrame) -> Section:
    """Fig. F.1: the teacher's own accuracy."""
    figure, sentences = correlation_figure(
        s, {"Teacher accuracy": table}, "teacher_accuracy", "accuracy of the teacher (%)", 100
    )
    caption = "Accuracy of the student against that of its teacher (Fig. F.1)."
    picture = s.outputs.figure("distillation_accuracy", figure, table, caption)
    return Section("Teacher accuracy and distillation", sentences, figures=[picture])


@style()
def correlation_figure(
    s: Study, parts: Mapping[str, pl.DataFrame], column: str, xlabel: str, scale: float = 1
) -> tuple[Figure, list[str]]:
    """A panel a part: student accuracy (%) against a column; and a sentence for each."""
    figure, axes = panels(len(parts), 3.5, 3.0)
    sentences = []
    settings = s.config.distillation
    for letter, ax, (title, part) in zip("abc", axes, parts.items(), strict=False):
        x = scale * part[column].cast(pl.Float64).to_numpy()
        y = 100 * part["student_accuracy"].to_numpy()
        correlation = pearson(x, y)
        test = permutation_test(x, y, settings.permutations)
        label = f"({letter}) {title}" if len(parts) > 1 else title
        if np.isnan(correlation.r):
            text = f"{label}\n{len(x)} teacher{'s' * (len(x) != 1)}: no correlation"
        else:
            p_value = p_text(test.p, test.permutations)
            text = f"{label}\nr = {correlation.r:.2f}, p {p_value}, n = {correlation.n}"
        sentences.append(correlation_text(title, correlation, test, len(x)))
        line = trend(x, y, settings.level) if len(x) >= FEWEST else None
        scatter(ax, x, y, xlabel, "accuracy of the student (%)", part["teacher"].to_list(),
                trend=line, text=text)  # fmt: skip
    return figure, sentences


def correlation_text(title: str, correlation: Correlation, test: Tested, teachers: int) -> str:
    """What a panel shows, the verdict first: Yes, No (the sign is negative) or Not certain.

    Fewer than FEWEST teachers have no verdict and no interval.
    """
    if np.isnan(correlation.r):
        return (
            f"{title}. Not certain: {teachers} of them, too few or too similar for a correlation."
        )
    interval = ""
    if correlation.n < FEWEST:
        verdict = f"Not certain: fewer than {FEWEST} teachers are too few for a verdict"
    else:
        interval = f"95% interval {correlation.low:.2f} to {correlation.high:.2f}, "
        if test.p >= LEVEL:
            verdict = "Not certain: the correlation may be chance"
        elif correlation.r > 0:
            verdict = "Yes: the higher, the better the student"
        else:
            verdict = "No: the higher, the worse the student"
    return (
        f"{title}. {verdict}. Pearson r = {correlation.r:.2f} ({interval}n = {correlation.n} "
        f"teachers), permutation {test.words()}, Student's p = {correlation.p:.2g}."
    )
