"""A student from a teacher, and what the teacher was worth (Sec. 4.2, App. F.1).

The student learns from the labels and from what the teacher predicts on the very same augmented
images (Touvron et al. 2021); the same student is trained from the labels alone, by the same recipe
and seed, and both are compared image by image. What is missing is trained first: on the digits
also the teacher. See experiments/results/digits.md for what it gave.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console

from experiments.common import session as training
from experiments.common import setting as setup
from experiments.common.session import Session, one_member, percent, train_member
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs
from netkin.similarity import Z_95
from netkin.tracking import Tracker, track
from netkin.training.distillation import Distillation
from netkin.training.recipe import Recipe
from netkin.training.students import with_token
from netkin.training.weights import Teaching, made_of, notes
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    session = training.session(config)
    teacher = one_member(config, config.teacher, "teacher")
    plain = training.to_train(session.setting, one_member(config, config.student, "student"))
    values = setup.resolved(config.distillation)
    setup.one_of(values["token"], (True, False), "distillation.token")
    student = with_token(plain) if values.pop("token") else plain
    distillation = Distillation(**values)
    student = training.named(config, replace(student, name=f"{plain.name}@{teacher.name}"))
    console = Console(soft_wrap=True)
    info = training.run_info(config, session.folder, student.name)
    with track(setup.resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            session = with_teacher(config, session, teacher, bars, tracker)
            alone = without_teacher(session, plain)
            train_member(session, alone, bars, tracker, main=False)
            teaching = Teaching(teacher, distillation)
            train_member(session, student, bars, tracker, teaching)
        result = compare(session, student, alone, teaching)
        outputs = Outputs(session.folder, tracker)
        training.draw_curves(session, student, outputs)
        outputs.table("result", pl.DataFrame([result]))
        tracker.metrics({key: v for key, v in result.items() if isinstance(v, float)})
    for line in said(result):
        console.print(f"\n{line}", highlight=False)
    training.print_where(session, student, console)


def with_teacher(
    config: DictConfig, session: Session, teacher: Member, bars: Bars, tracker: Tracker
) -> Session:
    """The session with a teacher whose weights are there: published, given, or trained now.

    A teacher that is there already is taken as it is; one that is missing is trained by
    `recipes.teacher`.
    """
    setting = setup.prepare(config, session.setting, [teacher], bars)
    session = replace(session, setting=setting, training=replace(session.training, setting=setting))
    if teacher.checkpoint or teacher.uses_published(setting.task):
        return session
    if notes(session.training.file(teacher)) is None:
        recipe = Recipe(**setup.resolved(config.recipes.teacher))
        if session.hardware.fast_dev_run:
            recipe = replace(recipe, epochs=1)
        own = replace(session, training=replace(session.training, recipe=recipe))
        train_member(own, teacher, bars, tracker, main=False)
    return session


def without_teacher(session: Session, plain: Member) -> Member:
    """The student that learns from labels alone, under the zoo's own name where that is the very
    same training (the first seed, by the dataset's recipe), else as <student>@none."""
    made = made_of(session.training, plain, precision=session.hardware.precision)
    found = notes(session.training.file(plain))
    if found is not None and found["made_of"] == made:
        return plain
    seed = session.training.recipe.seed
    return replace(plain, name=f"{plain.name}@none{f'-seed{seed}' if seed else ''}")


def compare(session: Session, student: Member, alone: Member, teaching: Teaching) -> dict[str, Any]:
    """One row: accuracies in [0, 1] on the n test images, the gain with its 95% interval (paired,
    image by image), and how often student and teacher say the same."""
    shown: dict[str, NDArray] = {}
    for name, member in (("student", student), ("alone", alone)):
        classifier = training.trained_classifier(session, member)
        shown[name] = training.predictions(session, classifier, member)
    teacher = session.setting.build(teaching.teacher)
    shown["teacher"] = training.predictions(session, teacher, teaching.teacher)
    labels = session.setting.labels.numpy()
    right = {name: found == labels for name, found in shown.items()}
    gain, low, high = paired_gain(right["student"], right["alone"])
    return {
        "student": student.name,
        "teacher": teaching.teacher.name,
        "kind": teaching.distillation.kind,
        "seed": session.training.recipe.seed,
        "n": len(labels),
        "student_accuracy": float(right["student"].mean()),
        "alone_accuracy": float(right["alone"].mean()),
        "teacher_accuracy": float(right["teacher"].mean()),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "agreement": float((shown["student"] == shown["teacher"]).mean()),
    }


def paired_gain(student: NDArray[np.bool_], alone: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Mean difference of two outcomes on the same n images, with its 95% interval (normal)."""
    difference = student.astype(float) - alone.astype(float)
    gain = float(difference.mean())
    half = Z_95 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return gain, gain - half, gain + half


def said(result: dict[str, Any]) -> list[str]:
    """The result in words."""
    student = result["student"].split("@")[0]
    return [
        f"{student} taught by {result['teacher']} ({percent(result['teacher_accuracy'])}): "
        f"{percent(result['student_accuracy'])} of {result['n']} test images. Without a teacher: "
        f"{percent(result['alone_accuracy'])}. Gain: {100 * result['gain']:+.1f} points (95% "
        f"interval over images {100 * result['gain_low']:+.1f} to "
        f"{100 * result['gain_high']:+.1f}). Student and teacher agree on "
        f"{percent(result['agreement'])}."
    ]
