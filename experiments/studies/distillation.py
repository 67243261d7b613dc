"""Does a student learn more from a teacher that is like it? (Sec. 4.2; Fig. 5 and F.1.)

Takes every student of the store that has a teacher, measures the similarity of each teacher to the
student's architecture as trained without one, and sets the students' accuracy against it: for all
teachers, for those of the student's base architecture, for the others, and against the teachers'
own accuracy. Several seeds of one teacher count as one student, their mean.

Measured on the digits: see the README and experiments/results/digits.md.
"""

from typing import Any

import numpy as np
import polars as pl
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig, open_dict

from experiments.common.setting import build_task
from experiments.common.study import Study, study
from experiments.common.values import positive_int, resolved
from experiments.studies.teachers import place_of
from netkin.analysis.statistics import p_text, pearson, permutation_p, trend
from netkin.errors import UserError
from netkin.report.scatter import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.store.layout import Store
from netkin.training.weights import students_of
from netkin.zoo.components import base_architecture
from netkin.zoo.member import Member, parse_members

LEAST = 3
"""Teachers in a panel below which there is no correlation."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    positive_int(config.distillation.permutations, "distillation.permutations")
    dataset, student = config.dataset.name, config.student
    store = Store(resolved(config.store)["dir"])
    found = students_of(store, dataset, student)
    if not found:
        raise UserError(
            f"{store.root} holds no student {dataset}/{student}@TEACHER; train some with: "
            f"python train.py -m experiment=distill student={student} teacher=A,B,C"
        )
    teachers = {row["teacher"]["name"]: row["teacher"] for row in found}
    entries = [{k: v for k, v in teacher.items() if v is not None} for teacher in teachers.values()]
    if config.similarity is None:
        with open_dict(config):
            config.model.members = [student, *entries]
    bases = base_architectures(config, [student, *entries])
    with study(config) as s:
        table = student_table(s, found, bases)
        s.outputs.table("distillation", table)
        by_similarity, said = similarity_section(s, table, bases[student])
        by_accuracy, said_accuracy = accuracy_section(s, table)
        s.finish(
            f"Which teachers is {student} best taught by?",
            f"Students are {student} on {dataset}, taught by {table.height} teachers; similarity "
            f"is the teacher's to {student} trained without one, among {s.source}.",
            [*said, said_accuracy],
            [by_similarity, by_accuracy, Section("All students", tables={"Students": table})],
        )


def base_architectures(config: DictConfig, entries: list[Any]) -> dict[str, str]:
    """The base architecture of each, such as CNN or Transformer, read off the model."""
    images = instantiate(config.dataset.images)
    task = build_task(config, images.classes)
    members: list[Member] = parse_members(entries, resolved(config.model).get("known"), 1)
    return {member.name: base_architecture(member, task) for member in members}


def student_table(s: Study, found: list[dict], bases: dict[str, str]) -> pl.DataFrame:
    """A row a teacher: teacher, base, same_base, similarity (nats), teacher_accuracy,
    student_accuracy (mean over seeds), seeds, n (test images), by falling similarity."""
    mine = place_of(s.config.student, s.names)
    rows = []
    for teacher in dict.fromkeys(row["teacher"]["name"] for row in found):
        of = [row for row in found if row["teacher"]["name"] == teacher]
        i = place_of(teacher, s.names)
        rows.append(
            {
                "teacher": teacher,
                "base": bases[teacher],
                "same_base": bases[teacher] == bases[s.config.student],
                "similarity": float(s.scores[mine, i]),
                "teacher_accuracy": teacher_accuracy(s, i, of[0]),
                "student_accuracy": float(np.mean([row["test_accuracy"] for row in of])),
                "seeds": len(of),
                "n": of[0]["test_images"],
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None).sort("similarity", descending=True)


def teacher_accuracy(s: Study, i: int, noted: dict) -> float | None:
    """In [0, 1]: measured on the subset, or as noted when the teacher was trained."""
    if s.measured is not None:
        return float(s.measured.outcomes.correct[i].mean())
    return noted["teacher_accuracy"]


def similarity_section(s: Study, table: pl.DataFrame, base: str) -> tuple[Section, list[str]]:
    """Fig. 5: all teachers, those of the student's base architecture, the others."""
    parts = {
        "All teachers": table,
        f"Same base architecture ({base})": table.filter("same_base"),
        "Other base architectures": table.filter(~pl.col("same_base")),
    }
    xlabel = f"similarity of teacher to {s.config.student}"
    figure, said = correlation_figure(s, parts, "similarity", xlabel)
    caption = (
        "Accuracy of the student against the similarity of its teacher (Fig. 5): (a) all teachers, "
        "(b) of the student's base architecture, (c) of others; least-squares line with its "
        f"{s.config.distillation.level:.0%} band."
    )
    picture = s.outputs.figure("distillation_similarity", figure, table, caption)
    return Section("Similarity and distillation", said, figures=[picture]), said


def accuracy_section(s: Study, table: pl.DataFrame) -> tuple[Section, str]:
    """Fig. F.1: the teacher's own accuracy."""
    figure, (said,) = correlation_figure(
        s, {"Teacher accuracy": table}, "teacher_accuracy", "accuracy of the teacher (%)", 100
    )
    caption = "Accuracy of the student against that of its teacher (Fig. F.1)."
    picture = s.outputs.figure("distillation_accuracy", figure, table, caption)
    return Section("Teacher accuracy and distillation", [said], figures=[picture]), said


@style()
def correlation_figure(
    s: Study, parts: dict[str, pl.DataFrame], column: str, xlabel: str, scale: float = 1
) -> tuple[Figure, list[str]]:
    """A panel a part: student accuracy (%) against a column; and each correlation in words."""
    figure, axes = panels(len(parts), 3.5, 3.0)
    said = []
    how = s.config.distillation
    for letter, ax, (title, part) in zip("abc", axes, parts.items(), strict=False):
        x = scale * part[column].cast(pl.Float64).to_numpy()
        y = 100 * part["student_accuracy"].to_numpy()
        found = pearson(x, y)
        p = permutation_p(x, y, how.permutations)
        label = f"({letter}) {title}" if len(parts) > 1 else title
        if np.isnan(found.r):
            text = f"{label}\n{len(x)} teacher{'s' * (len(x) != 1)}: no correlation"
            said.append(f"{title}: {len(x)} of them, too few (or too alike) for a correlation.")
        else:
            text = f"{label}\nr = {found.r:.2f}, p {p_text(p, how.permutations)}, n = {found.n}"
            said.append(
                f"{title}: Pearson r = {found.r:.2f} (95% interval {found.low:.2f} to "
                f"{found.high:.2f}, n = {found.n} teachers), permutation p "
                f"{p_text(p, how.permutations)}, Student's p = {found.p:.2g}."
            )
        line = trend(x, y, how.level) if len(x) > LEAST else None
        scatter(ax, x, y, xlabel, "accuracy of the student (%)", part["teacher"].to_list(),
                trend=line, text=text)  # fmt: skip
    return figure, said
