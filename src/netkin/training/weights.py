"""Trained weights in the store: what they depend on, and which exist."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from netkin.analysis.suspect import Accuracy
from netkin.data.images import Images
from netkin.data.subset import fingerprint
from netkin.errors import OtherTraining, UserError, and_more, near
from netkin.model import Model
from netkin.results import Results
from netkin.store import differences
from netkin.store.layout import Store
from netkin.training.distillation import Distillation
from netkin.training.recipe import Recipe
from netkin.zoo.build import architecture_identity, preprocessing
from netkin.zoo.execution import Execution
from netkin.zoo.member import IMAGE_FIELDS, Member, Task


@dataclass(frozen=True)
class Hardware:
    """Where and how a training runs.

    Attributes:
        accelerator, devices, precision: as Lightning's Trainer takes them.
        compile: whether the model's forward and backward passes are compiled.
        memory_format: of weights and images, as `netkin.zoo.execution.Execution` takes it.
        workers: processes a device that augment images; with 0 the training process does.
        fast_dev_run: train on one batch, to test that everything fits together.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    compile: bool = False
    memory_format: str = Execution.memory_format
    workers: int = 0
    fast_dev_run: bool = False


@dataclass(frozen=True)
class Training:
    """The images and the recipe with which the members of a run are trained.

    Attributes:
        results: of the test images, with the task and the store.
        images: the training images.
        recipe: how members are trained.
        hardware: where and how.

    Raises UserError where training and test images have different classes.
    """

    results: Results
    images: Images
    recipe: Recipe
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        ours, theirs = list(self.images.classes), list(self.results.evaluation.images.classes)
        if ours != theirs:
            raise UserError(
                f"the training images have classes {ours[:5]} ({len(ours)} in all), the test "
                f"images {theirs[:5]} ({len(theirs)}); they must be the same"
            )

    @property
    def task(self) -> Task:
        """What members are trained for."""
        return self.results.evaluation.task

    def file(self, member: Member) -> Path:
        """The path of the member's trained weights, whether or not they exist."""
        return self.results.store.weights(self.task.dataset, member.name)


@dataclass(frozen=True)
class Teaching:
    """A teacher whose weights exist, and the loss of the distillation."""

    teacher: Model
    distillation: Distillation


def identity(
    training: Training, member: Member, teaching: Teaching | None = None
) -> dict[str, Any]:
    """Everything that trained weights depend on, as JSON values."""
    task = training.task
    values = {
        **architecture_identity(member),
        **({"fit": [dict(fit) for fit in task.fit]} if member.timm else {}),
        "input_size": member.input_size or task.input_size,
        "num_classes": task.num_classes,
        "images_sha256": _images_sha256(training.images),
        "recipe": training.recipe.identity(),
    }
    if any(getattr(member, field) is not None for field in IMAGE_FIELDS):
        values["preprocessing"] = asdict(preprocessing(member, task))
    if teaching is not None:
        values["distillation"] = {
            **asdict(teaching.distillation),
            "teacher": teaching.teacher.name,
            "teacher_sha256": teaching.teacher.identity["weights_sha256"],
        }
    if training.hardware.precision != Hardware.precision:
        values["precision"] = training.hardware.precision
    return values


@cache
def _images_sha256(images: Images) -> str:
    return fingerprint(images)


def notes(weights: Path) -> dict[str, Any] | None:
    """The notes beside trained weights; None where either file is missing.

    Keys: made_of (see `identity`), member and, of a student, teacher (each with the fields of a
    Member), test_accuracy (in [0, 1]), test_images (their number), test_subset (its name), seconds.

    Raises UserError when the file is damaged.
    """
    file = weights.with_suffix(".json")
    if not weights.is_file() or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        assert isinstance(content["made_of"], dict)
        assert isinstance(content.get("test_accuracy") or 0.0, int | float), "test_accuracy"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{file} is damaged ({error!r}); remove it to train again") from None
    return content


def curves(weights: Path) -> pl.DataFrame:
    """The curves beside trained weights, a row an epoch; see `netkin.training.fit.Fit`."""
    return pl.read_csv(weights.with_suffix(".curves.csv"), infer_schema_length=None, glob=False)


def trained_accuracy(store: Store, model: Model) -> Accuracy | None:
    """The accuracy that a model's training recorded on test images of its task's dataset.

    None where its weights were not trained by netkin, or on another dataset.
    """
    file, trained = model.weights, store.weights(model.task.dataset, model.name)
    if file is None or file.parent.name != trained.parent.name or file.suffix != trained.suffix:
        return None
    try:
        content = notes(file) or {}
    except UserError:  # a file of other software: such notes are no reason to stop
        return None
    accuracy, images = content.get("test_accuracy"), content.get("test_images")
    return Accuracy(accuracy, images) if accuracy is not None and images else None


def check_identity(file: Path, stored: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    """Raises OtherTraining when weights or a checkpoint are of another training than is needed."""
    if difference := next(differences(stored, json.loads(json.dumps(needed))), None):
        key, theirs, ours = difference
        raise OtherTraining(
            f"{file} was trained with {key} = {theirs}, now it is {ours}: continue with those "
            "settings, give the model another name, choose another store, or remove the file"
        )


def is_trained(training: Training, member: Member) -> bool:
    """Whether the member's weights exist: published, trained in the store, or a checkpoint.

    Raises UserError when its checkpoint is missing or its notes are damaged, and OtherTraining when
    the weights in the store were trained otherwise.
    """
    if member.uses_published(training.task):
        return True
    if member.checkpoint:
        if not Path(member.checkpoint).expanduser().is_file():
            raise UserError(f"{member.name}: there is no checkpoint {member.checkpoint}")
        return True
    file = training.file(member)
    stored = notes(file)
    if stored is None:
        return False
    check_identity(file, stored["made_of"], identity(training, member))
    return True


def trained_members(store: Store, dataset: str, pattern: str) -> list[dict[str, Any]]:
    """Trained models of a dataset, as mappings of `netkin.zoo.member.Member`'s fields.

    Args:
        store: whose weights are listed.
        dataset: its name.
        pattern: a name such as vit_ti@regnety_032, or with * and ? as in file names several, which
            are sorted by name. NAME@* is NAME trained with every seed and by every teacher, also
            with seed 0, which goes by NAME alone.

    Raises UserError when there is none.
    """
    files, plain = _noted(store, dataset), pattern.removesuffix("@*")
    members = []
    for name, weights in files.items():
        of_seed_0 = pattern.endswith("@*") and "@" not in name and fnmatchcase(name, plain)
        stored = notes(weights) if of_seed_0 or fnmatchcase(name, pattern) else None
        if stored is None or (of_seed_0 and stored["made_of"].get("recipe", {}).get("seed", 0)):
            continue
        fields = {key: value for key, value in stored["member"].items() if value is not None}
        members.append({**fields, "name": name, "checkpoint": str(weights)})
    if not members:
        raise UserError(
            f"{store.root} has no trained model {dataset}/{pattern}{near(pattern, files)} (there "
            f"are {and_more(files, 8) or 'none'}); train it first"
        )
    return members


def students_of(store: Store, dataset: str, student: str) -> dict[str, list[dict[str, Any]]]:
    """The `notes` of the trained students of an architecture, such as vit_ti, by their teacher;
    each with the further key teacher_accuracy: in [0, 1], None where it is unknown."""
    students = defaultdict[str, list[dict[str, Any]]](list)
    for name, weights in _noted(store, dataset).items():
        stored = notes(weights) if name.startswith(f"{student}@") else None
        if stored and "teacher" in stored:
            teacher = notes(store.weights(dataset, stored["teacher"]["name"]))
            accuracy = teacher["test_accuracy"] if teacher else None
            by = students[stored["teacher"]["name"]]
            by.append({**stored, "teacher_accuracy": accuracy})
    return dict(students)


def accuracies_by_seed(store: Store, dataset: str, like: Mapping[str, Any]) -> dict[int, float]:
    """Test accuracies in [0, 1], by seed, of all trainings in a store that differ from one, by its
    `notes`, in nothing but the seed; itself included."""

    def but_seed(of: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        recipe = {**of["made_of"].get("recipe", {}), "seed": None}
        return {**of["made_of"], "recipe": recipe}, of.get("test_subset")

    stored = [notes(weights) for weights in _noted(store, dataset).values()]
    return {
        each["made_of"]["recipe"]["seed"]: each["test_accuracy"]
        for each in stored
        if each and but_seed(each) == but_seed(like)
    }


def _noted(store: Store, dataset: str) -> dict[str, Path]:
    """Files of weights with notes beside them, by name and sorted by it."""
    files = store.weights(dataset, "x").parent.glob("*.json")
    return dict(sorted((unquote(file.stem), file.with_suffix(".safetensors")) for file in files))
