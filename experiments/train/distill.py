"""Does a student learn more with a teacher than from the labels alone? (Sec. 4.2, App. F.1.)

The student learns from the labels and from the teacher's predictions on the same augmented images
(Touvron et al. 2021). The same student is trained from the labels alone, with the same recipe and
seed, and both are compared on each test image. Missing weights are trained first: on the digits
also the teacher's. See experiments/results/digits.md for the measurements.
"""

import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from experiments.cli.keys import construct
from experiments.cli.members import build_recipe, one_member
from experiments.cli.session import (
    Run,
    Session,
    build_session,
    named,
    open_run,
    to_train,
    train_member,
)
from experiments.cli.trained import Answer, predictions, report, trained_classifier
from netkin.analysis.verdict import verdict
from netkin.components import base_architecture
from netkin.errors import UserError
from netkin.model import Model
from netkin.report.text import percent, settings_text
from netkin.results import Results
from netkin.similarity import Z_95, score
from netkin.store import folder
from netkin.store.outcomes import FLOAT32, OutcomeStore, outcomes_folder
from netkin.training.distillation import Distillation, with_token
from netkin.training.weights import Teaching, identity, notes
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    session = build_session(config)
    teacher = one_member(config, config.teacher, "teacher")
    plain = to_train(session.training.task, one_member(config, config.student, "student"))
    student, distillation = student_of(config, plain)
    student = named(config, replace(student, name=f"{plain.name}@{teacher.name}"))
    with open_run(session, student.name) as run:
        teaching = Teaching(with_weights(session, teacher, run), distillation)
        alone = without_teacher(session, plain)
        train_member(session, alone, run, role="alone")
        train_member(session, student, run, teaching)
        result = compare(session, student, alone, teaching)
        report(session, student, run, answer(session, plain, result))


def student_of(config: DictConfig, plain: Member) -> tuple[Member, Distillation]:
    """The student's architecture, with a token if the config has one, and its loss."""
    token = config.distillation.token
    loss = OmegaConf.masked_copy(
        config.distillation, [key for key in config.distillation if key != "token"]
    )
    distillation = construct(Distillation, "distillation", loss)
    if not token:
        return plain, distillation
    try:
        return with_token(plain), distillation
    except UserError as error:
        raise UserError(f"{error} (distillation.token=false, or student=vit_ti)") from None


def with_weights(session: Session, teacher: Member, run: Run) -> Model:
    """The teacher, whose weights exist: published, given, or trained now.

    One in the store is used as it is; a missing one is trained with `recipes.teacher`.
    """
    trained = not teacher.checkpoint and not teacher.uses_published(session.training.task)
    if trained and notes(session.training.file(teacher)) is None:
        recipe = build_recipe(session.config, "recipes.teacher")
        train_member(session.with_recipe(recipe), teacher, run, role="teacher")
    return session.open(teacher)


def without_teacher(session: Session, plain: Member) -> Member:
    """The student that learns from the labels alone.

    Its name is that of the zoo where the store has the very same training (the first seed, with
    the dataset's recipe) under it, else <student>@none.
    """
    needed = identity(session.training, plain)
    stored = notes(session.training.file(plain))
    if stored is not None and stored["made_of"] == needed:
        return plain
    seed = session.training.recipe.seed
    return replace(plain, name=f"{plain.name}@none{f'-seed{seed}' if seed else ''}")


def compare(session: Session, student: Member, alone: Member, teaching: Teaching) -> dict[str, Any]:
    """The row of result.csv: accuracies in [0, 1] on the n test images, the gain with its 95%
    interval, how often student and teacher predict the same class, their base architectures, and
    the similarity of the teacher and the student without one, where the store has it."""
    predicted: dict[str, NDArray] = {}
    for name, member in (("student", student), ("alone", alone)):
        predicted[name] = predictions(session, trained_classifier(session, member), member)
    teacher = teaching.teacher
    predicted["teacher"] = predictions(session, teacher.build(), teacher.member)
    labels = session.results.evaluation.labels.numpy()
    correct = {name: classes == labels for name, classes in predicted.items()}
    gain, low, high = paired_gain(correct["student"], correct["alone"])
    return {
        "student": student.name,
        "teacher": teaching.teacher.name,
        "kind": teaching.distillation.kind,
        "seed": session.training.recipe.seed,
        "n": len(labels),
        "student_accuracy": float(correct["student"].mean()),
        "alone_accuracy": float(correct["alone"].mean()),
        "teacher_accuracy": float(correct["teacher"].mean()),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "agreement": float((predicted["student"] == predicted["teacher"]).mean()),
        "student_base": base_architecture(student, session.training.task),
        "teacher_base": base_architecture(teacher.member, session.training.task),
        **stored_similarity(session.results, teacher, session.open(alone)),
    }


def stored_similarity(results: Results, a: Model, b: Model) -> dict[str, Any]:
    """The similarity of two models by outcomes that the store has: of several subsets and attacks,
    by those with the most images, and of these by the latest of those in float32, if there are any.

    Returns:
        similarity (nats), similarity_images (their number) and similarity_attack; null where the
        store has none.
    """
    found: dict[str, Any] = {
        **{"similarity": None, "similarity_images": 0, "similarity_attack": None}
    }
    dataset = results.store.root / folder(results.evaluation.task.dataset)
    tables = sorted(dataset.glob("*/*/outcomes*"), key=lambda path: path.stat().st_mtime)
    for path in sorted(tables, key=lambda path: path.name == outcomes_folder(FLOAT32)):
        table = OutcomeStore(path)
        fooled = []
        for source, target in ((a, b), (b, a)):
            if table.has(source.name, target.name, target.digest):
                fooled.append(table.read(target.name, [source.name]))
        images = fooled[0].height if len(fooled) == 2 else 0
        if images and images >= found["similarity_images"]:
            settings = settings_text(
                json.loads((path.parent / "identity.json").read_text())["attack"]
            )
            if precision := path.name.removeprefix(outcomes_folder(FLOAT32))[1:]:
                settings += f", transfer in {precision}"
            p = sum(outcomes["fooled"].mean() for outcomes in fooled) / 2
            found = {
                "similarity": float(score(p)),
                "similarity_images": images,
                "similarity_attack": f"{path.parent.name.rsplit('-', 1)[0]} ({settings})",
            }
    return found


def paired_gain(student: NDArray[np.bool_], alone: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The mean difference of two outcomes on the same n images, with its 95% interval (normal).

    Args:
        student, alone: whether each image is classified correctly, [n].
    """
    difference = student.astype(float) - alone.astype(float)
    gain = float(difference.mean())
    half = Z_95 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return gain, gain - half, gain + half


def answer(session: Session, plain: Member, result: dict[str, Any]) -> Answer:
    """The result in words, with the verdict first: Not certain where the interval includes 0."""
    name, teacher = plain.name, result["teacher"]
    learns: str = verdict(result["gain"], (result["gain_low"], result["gain_high"]))
    learns += ", it learns less" * (learns == "No")
    return Answer(
        f"Does {name} learn more with the teacher {teacher} than from the labels alone?",
        f"{name} was trained on {session.dataset} with and without the teacher, with the same "
        f"recipe and seed ({result['seed']}); the loss of the distillation is {result['kind']}.",
        [
            f"{learns}. {name} with the teacher {teacher} classifies "
            f"{percent(result['student_accuracy'])} of {result['n']} test images correctly, from "
            f"the labels alone {percent(result['alone_accuracy'])}: a gain of "
            f"{100 * result['gain']:+.1f} points (95% interval over images "
            f"{100 * result['gain_low']:+.1f} to {100 * result['gain_high']:+.1f}).",
            f"The teacher's own accuracy is {percent(result['teacher_accuracy'])}; student and "
            f"teacher predict the same class on {percent(result['agreement'])} of the images.",
        ],
        result,
        result["student_accuracy"],
    )
