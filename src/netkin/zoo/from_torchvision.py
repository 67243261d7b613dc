"""Classifiers of torchvision, with the preprocessing that its own weights name."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torchvision
from torch import nn
from torchvision.models import get_model_builder, get_model_weights, list_models
from torchvision.transforms._presets import ImageClassification

from netkin.errors import UserError, near
from netkin.zoo import from_timm
from netkin.zoo.task import Task

if TYPE_CHECKING:
    from netkin.zoo.member import Member


def _weights(name: str) -> Any:
    """The weights (a member of torchvision's enumerations) of "resnet18" or "resnet18.NAME".

    Raises UserError for unknown names, and for networks that classify no images.
    """
    architecture, _, chosen = name.partition(".")
    names = list_models(module=torchvision.models)
    if architecture not in names:
        raise UserError(
            f"torchvision has no classifier {architecture!r}{near(architecture, names)}"
        )
    weights = get_model_weights(architecture)
    if not chosen:
        return weights.DEFAULT  # type: ignore[attr-defined]
    if chosen not in weights.__members__:
        names = list(weights.__members__)
        raise UserError(
            f"torchvision's {architecture} has no weights {chosen!r}{near(chosen, names)} "
            f"(there are {', '.join(names)})"
        )
    return weights[chosen]


def config(name: str) -> dict[str, Any]:
    """A classifier's published weights in timm's words: preprocessing, classes and url."""
    weights = _weights(name)
    transforms = weights.transforms()
    assert isinstance(transforms, ImageClassification)
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    return {
        "family": get_model_builder(name.partition(".")[0]).__module__.split(".")[-1],
        "url": weights.url,
        "num_classes": len(weights.meta["categories"]),
        "input_size": (3, crop, crop),
        "crop_pct": crop_pct(crop, resize),
        "crop_mode": "center",
        "interpolation": transforms.interpolation.value,
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
    }


def file(name: str, config: Mapping[str, Any], fetch: bool) -> Path | None:
    """In torch's cache, where timm looks for files of a url, too."""
    return from_timm.file(name, config, fetch)


def ways(
    member: "Member", config: Mapping[str, Any], task: Task, size: int
) -> list[dict[str, Any]]:
    """Vision transformers take their images' size."""
    kwargs = dict(member.kwargs)
    if not member.uses_published(task) and task.weights == "train":
        kwargs = {"num_classes": task.num_classes, **kwargs}
    return [{"image_size": size, **kwargs}, kwargs]


def build(
    member: "Member", config: Mapping[str, Any], kwargs: Mapping[str, Any], file: Path | None
) -> nn.Module:
    """See `netkin.zoo.sources.Source`. The weights are those of torch's cache."""
    name = member.torchvision
    weights = _weights(name) if file else None
    return get_model_builder(name.partition(".")[0])(weights=weights, **kwargs)


def crop_pct(crop: int, resize: int) -> float:
    """The part of the shorter edge that a central crop keeps, such that timm resizes it to `resize`
    pixels (it rounds crop / crop_pct down)."""
    exact = crop / resize
    return exact if math.floor(crop / exact) == resize else crop / (resize + 0.5)
