"""Classifiers of torchvision, with the preprocessing that its own weights name."""

import math
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model_builder, get_model_weights, list_models
from torchvision.transforms._presets import ImageClassification

from netkin.errors import UserError, near


def weights_of(name: str) -> Any:
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
    weights = weights_of(name)
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


def build(name: str, pretrained: bool, kwargs: Mapping[str, Any]) -> nn.Module:
    """The network, with its published weights from torch's cache, where they must exist.

    Raises what torchvision raises.
    """
    weights = weights_of(name) if pretrained else None
    return get_model_builder(name.partition(".")[0])(weights=weights, **kwargs)


def crop_pct(crop: int, resize: int) -> float:
    """The part of the shorter edge that a central crop keeps, such that timm resizes it to `resize`
    pixels (it rounds crop / crop_pct down)."""
    exact = crop / resize
    return exact if math.floor(crop / exact) == resize else crop / (resize + 0.5)
