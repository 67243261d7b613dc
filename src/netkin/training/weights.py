"""Weights that a dataset's members need: what they are made of, and whether they are there."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from netkin.data.images import Images
from netkin.data.subset import fingerprint
from netkin.errors import UserError, near
from netkin.store.layout import Store, differences, unfolded
from netkin.training.distillation import Distillation
from netkin.training.recipe import Recipe
from netkin.transfer.setting import Setting
from netkin.zoo.build import architecture_identity, preprocessing
from netkin.zoo.member import IMAGE_FIELDS, Member


@dataclass(frozen=True)
class Training:
    """A setting, and the images and the recipe with which its members are trained.

    The images have the classes of the setting's images.
    """

    setting: Setting
    images: Images
    recipe: Recipe

    def __post_init__(self) -> None:
        ours, theirs = list(self.images.classes), list(self.setting.images.classes)
        if ours != theirs:
            raise UserError(
                f"the training images have classes {ours[:5]} ({len(ours)} in all), the test "
                f"images {theirs[:5]} ({len(theirs)}); they must be the same"
            )

    def file(self, member: Member) -> Path:
        """Where the member's trained weights are, or will be."""
        return self.setting.store.weights(self.setting.task.dataset, member.name)


@dataclass(frozen=True)
class Teaching:
    """A teacher, with its weights ready, and how it teaches."""

    teacher: Member
    distillation: Distillation


def made_of(
    training: Training,
    member: Member,
    teaching: Teaching | None = None,
    precision: str = "32-true",
) -> dict[str, Any]:
    """What trained weights depend on, as JSON."""
    task = training.setting.task
    made = {
        **architecture_identity(member),
        "kwargs": dict(member.kwargs),
        **({"fit": [dict(fit) for fit in task.fit]} if member.timm else {}),
        "input_size": member.input_size or task.input_size,
        "num_classes": task.num_classes,
        "images_sha256": _images_sha256(training.images),
        "recipe": training.recipe.identity(),
    }
    if any(getattr(member, field) is not None for field in IMAGE_FIELDS):
        made["preprocessing"] = asdict(preprocessing(member, task))
    if teaching is not None:
        made["distillation"] = {
            **asdict(teaching.distillation),
            "teacher": teaching.teacher.name,
            "teacher_sha256": training.setting.model(teaching.teacher)["weights_sha256"],
        }
    if precision != "32-true":
        made["precision"] = precision
    return made


@cache
def _images_sha256(images: Images) -> str:
    return fingerprint(images)


def notes(weights: Path) -> dict[str, Any] | None:
    """What is written beside trained weights; None where they are not there, or not whole.

    Keys: made_of, member, test_accuracy, test_images, seconds. Raises UserError when the file is
    damaged.
    """
    file = weights.with_suffix(".json")
    if not weights.is_file() or not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        assert isinstance(found["made_of"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{file} is damaged ({error!r}); remove it to train again") from None
    return found


def check_made_of(weights: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError when weights were made of something else than they are wanted of."""
    differ = next(differences(found, json.loads(json.dumps(wanted))), None)
    if differ:
        key, theirs, ours = differ
        raise UserError(
            f"weights {weights} were trained with {key} = {theirs}, now it is {ours}: give the "
            "model another name (name=NAME of train.py, {name: ..., timm: ...} of evaluate.py), "
            "choose another store.dir, or remove the file"
        )


def is_trained(training: Training, member: Member) -> bool:
    """Whether the member's weights are there; an error when they were made otherwise."""
    if member.uses_published(training.setting.task):
        return True
    if member.checkpoint:
        if not Path(member.checkpoint).expanduser().is_file():
            raise UserError(f"{member.name}: there is no checkpoint {member.checkpoint}")
        return True
    file = training.file(member)
    found = notes(file)
    if found is None:
        return False
    check_made_of(file, found["made_of"], made_of(training, member))
    return True


def trained_members(store: Store, dataset: str, pattern: str) -> list[dict[str, Any]]:
    """Trained models of a dataset, as mappings of `netkin.zoo.member.Member`'s fields.

    Args:
        pattern: a name such as vit_ti@regnety_032, or with * and ? (as in file names) several, in
            the order of their names. NAME@* is NAME trained with every seed, and with every
            teacher: 0, too, which NAME alone goes by.

    Raises UserError when there is none.
    """
    names = {
        unfolded(file.stem): file for file in store.weights(dataset, "x").parent.glob("*.json")
    }
    plain = pattern.removesuffix("@*")  # by which a seed of 0 goes
    members = []
    for name in sorted(names):
        of_seed_0 = pattern.endswith("@*") and "@" not in name and fnmatchcase(name, plain)
        if not of_seed_0 and not fnmatchcase(name, pattern):
            continue
        weights = names[name].with_suffix(".safetensors")
        noted = notes(weights)
        if noted is None or (of_seed_0 and noted["made_of"].get("recipe", {}).get("seed", 0) != 0):
            continue
        fields = {key: value for key, value in noted["member"].items() if value is not None}
        members.append({**fields, "name": name, "checkpoint": str(weights)})
    if not members:
        raise UserError(
            f"{store.root} has no trained model {dataset}/{pattern}{near(pattern, names)} (there "
            f"are {', '.join(sorted(names)[:8]) or 'none'}{' ...' if len(names) > 8 else ''}); "
            "train.py makes them"
        )
    return members


def students_of(store: Store, dataset: str, student: str) -> list[dict[str, Any]]:
    """What is noted (see `notes`) of each trained <student>@<teacher> that had a teacher, with
    `teacher`, its Member's fields, and `teacher_accuracy`: in [0, 1], None where it is unknown."""
    found = []
    for file in sorted(store.weights(dataset, "x").parent.glob("*.json")):
        noted = notes(file.with_suffix(".safetensors"))
        name = unfolded(file.stem)
        if noted and "teacher" in noted and name.startswith(f"{student}@"):
            of = notes(store.weights(dataset, noted["teacher"]["name"]))
            found.append({**noted, "teacher_accuracy": of["test_accuracy"] if of else None})
    return found
