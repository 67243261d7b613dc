"""Does a student learn more with a teacher than from the labels alone? (Sec. 4.2, App. F.1.)

The student learns from the labels and from the teacher's predictions on the same augmented images
(Touvron et al. 2021). The same student is trained from the labels alone, with the same recipe and
seed, and both are compared on each test image. Whether it learns more is decided over the seeds
that the store has of both, because trainings differ by their seeds. Missing weights are trained
first: on the digits also the teacher's. See experiments/results/digits.md for the measurements.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from experiments.cli.members import one_member
from experiments.cli.values import construct
from experiments.train.session import (
    Session,
    build_evaluation,
    named,
    opened,
    swept_parts,
    to_train,
    with_parts,
)
from netkin.analysis.statistics import t_interval
from netkin.analysis.verdict import verdict
from netkin.components import base_architecture
from netkin.errors import UserError
from netkin.model import Model
from netkin.report.sentences import Sentences
from netkin.report.text import settings_text
from netkin.results import Results
from netkin.similarity import Z_95, score
from netkin.store import folder
from netkin.store.outcomes import FLOAT32, OutcomeStore, outcomes_folder
from netkin.training.distillation import Distillation, with_token
from netkin.training.weights import Teaching, accuracies_by_seed, identity, notes
from netkin.zoo.member import Member

SEEDS = 3  # trainings of both students below which there is no verdict
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    evaluation = build_evaluation(config)
    teacher = one_member(config, config.teacher, "teacher")
    plain = to_train(evaluation.task, one_member(config, config.student, "student"))
    student, distillation = student_of(config, plain)
    student = named(config, replace(student, name=f"{plain.name}@{teacher.name}"))
    with opened(config, evaluation, student.name, members=[teacher]) as s:
        teaching = Teaching(with_weights(s, s.run.models[0]), distillation)
        alone = without_teacher(s, plain)
        s.train(alone, role="alone")
        s.train(student, teaching)
        answer(s, plain, student, compare(s, student, alone, teaching))


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


def with_weights(s: Session, teacher: Model) -> Model:
    """The teacher, whose weights exist: published, given, or trained now.

    One in the store is used as it is; a missing one is trained with `recipes.teacher`.
    """
    member, task = teacher.member, s.training.task
    trained = not member.checkpoint and not member.uses_published(task)
    if trained and notes(s.training.file(member)) is None:
        s.with_recipe("recipes.teacher").train(member, role="teacher")
    return teacher


def without_teacher(s: Session, plain: Member) -> Member:
    """The student that learns from the labels alone.

    Its name is that of the zoo where the store has the very same training (the first seed, with
    the dataset's recipe) under it, else <student>@none.
    """
    needed = identity(s.training, plain)
    stored = notes(s.training.file(plain))
    if stored is not None and stored["made_of"] == needed:
        return plain
    seed = s.training.recipe.seed
    parts = ["none", *([f"seed{seed}"] if seed else []), *swept_parts(("recipe", "dataset"))]
    return replace(plain, name=with_parts(plain.name, parts))


def compare(s: Session, student: Member, alone: Member, teaching: Teaching) -> dict[str, Any]:
    """The row of result.csv: accuracies in [0, 1] on the n test images; the gain with its 95%
    interval over images, and its mean over the seeds that the store has of both with its 95%
    interval over seeds (null below SEEDS); how often student and teacher predict the same class,
    their base architectures, and the similarity of the teacher and the student without one, where
    the store has it."""
    teacher, task, labels = teaching.teacher, s.training.task, s.results.evaluation.labels.numpy()
    predicted = {
        "student": s.predictions(s.open(student)),
        "alone": s.predictions(s.open(alone)),
        "teacher": s.predictions(teacher),
    }
    correct = {name: classes == labels for name, classes in predicted.items()}
    gain, low, high = paired_gain(correct["student"], correct["alone"])
    over = gains_by_seed(s, student, alone)
    seeds_low, seeds_high = t_interval(over) if len(over) >= SEEDS else (None, None)
    return {
        "student": student.name,
        "teacher": teacher.name,
        "kind": teaching.distillation.kind,
        "seed": s.training.recipe.seed,
        "n": len(labels),
        **{f"{name}_accuracy": float(right.mean()) for name, right in correct.items()},
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "seeds": len(over),
        "seeds_gain": float(over.mean()) if len(over) else None,
        "seeds_low": seeds_low,
        "seeds_high": seeds_high,
        "agreement": float((predicted["student"] == predicted["teacher"]).mean()),
        "student_base": base_architecture(student, task),
        "teacher_base": base_architecture(teacher.member, task),
        **stored_similarity(s.results, teacher, s.open(alone)),
    }


def gains_by_seed(s: Session, student: Member, alone: Member) -> NDArray[np.float64]:
    """What the teacher adds to the student's accuracy, for each seed that the store has of both."""
    dataset, store = s.training.task.dataset, s.results.store
    stored = [notes(s.training.file(member)) for member in (student, alone)]
    taught, own = (accuracies_by_seed(store, dataset, of) if of else {} for of in stored)
    return np.array([taught[seed] - own[seed] for seed in sorted(taught.keys() & own.keys())])


def stored_similarity(results: Results, a: Model, b: Model) -> dict[str, Any]:
    """The similarity of two models by outcomes that the store has: of several subsets and attacks,
    by those with the most images, and of these by the latest of those in float32, if there are any:
    similarity (nats), similarity_images (their number) and similarity_attack; null without any."""
    dataset = results.store.root / folder(results.evaluation.task.dataset)
    found: dict[tuple[int, bool, float], dict[str, Any]] = {}
    for path in dataset.glob("*/*/outcomes*"):
        table, pairs = OutcomeStore(path), ((a, b), (b, a))
        if not all(table.has(source.name, to.name, to.digest) for source, to in pairs):
            continue
        fooled = [table.read(to.name, [source.name])["fooled"].to_numpy() for source, to in pairs]
        if not len(fooled[0]):
            continue
        precision = path.name.removeprefix(outcomes_folder(FLOAT32))[1:]
        attack = json.loads((path.parent / "identity.json").read_text())["attack"]
        how = settings_text(attack) + (f", transfer in {precision}" if precision else "")
        found[len(fooled[0]), not precision, path.stat().st_mtime] = {
            "similarity": float(score((fooled[0].mean() + fooled[1].mean()) / 2)),
            "similarity_images": len(fooled[0]),
            "similarity_attack": f"{path.parent.name.rsplit('-', 1)[0]} ({how})",
        }
    none = {"similarity": None, "similarity_images": 0, "similarity_attack": None}
    return found[max(found)] if found else none


def paired_gain(student: NDArray[np.bool_], alone: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The mean difference of two outcomes, right or wrong, on the same images, [n] each, with its
    95% interval (normal)."""
    difference = student.astype(float) - alone.astype(float)
    gain = float(difference.mean())
    half = Z_95 * float(difference.std(ddof=1)) / len(difference) ** 0.5
    return gain, gain - half, gain + half


def answer(s: Session, plain: Member, student: Member, result: dict[str, Any]) -> None:
    """Write the result, with the verdict first: over seeds, where there are enough."""
    name, teacher = plain.name, result["teacher"]
    s.finish(
        student,
        f"Does {name} learn more with the teacher {teacher} than from the labels alone?",
        f"{name} was trained on {s.training.task.dataset} with and without the teacher, with the "
        f"same recipe and seed ({result['seed']}); the loss of the distillation is "
        f"{result['kind']}.",
        sentences(name, result),
        result,
        result["student_accuracy"],
    )


def sentences(name: str, result: dict[str, Any]) -> list[str]:
    """Whether a student learns more with the teacher, by the gains of several seeds, and how the
    run compares."""
    gains = ("gain", "gain_low", "gain_high", "seeds_gain", "seeds_low", "seeds_high")
    values = {"name": name, "fewest": SEEDS, **result}
    values |= {key: 100 * result[key] for key in gains if result[key] is not None}  # points
    learns = "few"
    if result["seeds_low"] is not None:
        learns = verdict(result["seeds_gain"], (result["seeds_low"], result["seeds_high"]))
    return [text("learns", learns, **values), text("run", **values), text("teacher", **values)]
