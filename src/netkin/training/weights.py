"""Weights that a dataset's members need: what they are made of, and whether they are there."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from netkin.data.images import Images
from netkin.data.subset import fingerprint
from netkin.errors import UserError
from netkin.store import differences
from netkin.training.recipe import Recipe
from netkin.transfer.setting import Setting
from netkin.zoo.member import Member


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


def made_of(training: Training, member: Member) -> dict[str, Any]:
    """What trained weights depend on, as JSON."""
    task = training.setting.task
    return {
        "timm": member.timm,
        "kwargs": dict(member.kwargs),
        "fit": [dict(fit) for fit in task.fit],
        "input_size": member.input_size or task.input_size,
        "num_classes": task.num_classes,
        "images_sha256": _images_sha256(training.images),
        "recipe": training.recipe.identity(),
    }


@cache
def _images_sha256(images: Images) -> str:
    return fingerprint(images)


def is_trained(training: Training, member: Member) -> bool:
    """Whether the member's weights are there; an error when they were made otherwise."""
    setting = training.setting
    file = setting.weights(member)
    if member.checkpoint or file is None:
        if file is not None and not file.is_file():
            raise UserError(f"{member.name}: there is no checkpoint {file}")
        return True
    notes = file.with_suffix(".json")
    if not file.is_file() or not notes.is_file():
        return False
    try:
        found = json.loads(notes.read_text())["made_of"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{notes} is damaged ({error!r}); remove it to train again") from None
    wanted = json.loads(json.dumps(made_of(training, member)))
    differ = next(differences(found, wanted), None)
    if differ:
        key, theirs, ours = differ
        raise UserError(
            f"weights {file} were trained with {key} = {theirs}, now it is {ours}: give the model "
            "another name ({name: ..., timm: ...}), choose another store.dir, or remove the file"
        )
    return True
