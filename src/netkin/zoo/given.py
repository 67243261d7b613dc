"""Models as `netkin.compare` takes them: modules, `Model`s, names and mappings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from netkin.data.imagenet import wnids
from netkin.errors import UserError
from netkin.zoo import instances
from netkin.zoo.build import published_classes
from netkin.zoo.member import Member, parse_members


@dataclass(frozen=True, eq=False)
class Model:
    """A network with what differs from the default: pixels in [0, 1] of the images' own size.

    Attributes:
        net: images [B, 3, H, W] to logits: a tensor [B, K], a tuple or list that begins with it, a
            mapping with "logits", or an object with `.logits`. A copy of it runs, in eval mode.
        mean, std: of the normalisation before the network, for pixels in [0, 1]: a number, or one
            a channel; 0 and 1, which is none, unless given.
        input_size: pixels a side. Images of another size are resized (`interpolation`) and cropped
            (`crop_pct`, `crop_mode`), as timm does.
        crop_pct: in (0, 1]; 1 unless given.
        crop_mode: "center" (the default), "squash" or "border".
        interpolation: "bicubic" (the default), "bilinear", "nearest", ...
        in_chans: 3, or 1 for gray; the images' own unless given.
        family: the group of architectures that tables and figures count it to; its class, or
            timm's module, unless given.
    """

    net: nn.Module
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    input_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    in_chans: int | None = None
    family: str | None = None


@dataclass(frozen=True)
class Held:
    """A module that is compared: the copy that runs, its channels and its pixels a side.

    The copy can be built for as long as this exists.
    """

    net: nn.Module
    channels: int
    size: int


def read_models(
    models: Mapping[str, Any], shape: Sequence[int]
) -> tuple[list[Member], dict[str, Held]]:
    """The members of a mapping, and what is held of those that are modules, by name.

    Args:
        models: name to nn.Module, `Model`, or what `parse_members` takes of a member.
        shape: (C, H, W) of the images.

    Raises UserError, with the model's name, for what cannot be used.
    """
    specs: list[Mapping[str, Any]] = []
    held: dict[str, Held] = {}
    for name, model in models.items():
        if isinstance(model, str):
            specs.append({"name": name, "timm": model})
        elif isinstance(model, Mapping):
            specs.append({**model, "name": name})
        else:
            spec, net = _spec(name, model if isinstance(model, Model) else Model(model), shape)
            specs.append(spec)
            held[name] = Held(net, spec["in_chans"], spec["input_size"])
    return parse_members(specs), held


def _spec(name: str, model: Model, shape: Sequence[int]) -> tuple[dict[str, Any], nn.Module]:
    """A member as `parse_members` takes it, and the copy of its module."""
    channels, height, width = shape
    if model.input_size is None and height != width:
        raise UserError(
            f"images are {height} x {width} and models take squares: give "
            f"netkin.Model(net, input_size=...) to {name}, to which they are resized and cropped"
        )
    sha256, net = instances.register(model.net, name)
    module = type(net).__module__
    own = module.split(".")[-1] if module.startswith("timm.models.") else type(net).__name__
    spec = {
        "name": name,
        "target": instances.TARGET,
        "kwargs": {"sha256": sha256},
        "family": model.family or own,
        "input_size": height if model.input_size is None else model.input_size,
        "mean": _numbers(model.mean),
        "std": _numbers(model.std),
        "crop_pct": model.crop_pct,
        "crop_mode": model.crop_mode,
        "interpolation": model.interpolation,
        "in_chans": channels if model.in_chans is None else model.in_chans,
    }
    parse_members([spec], at_least=1)  # its fields are checked before the network runs
    return spec, net


def _numbers(values: Any) -> Any:
    """Arrays and tensors as lists; anything else as it is."""
    return values.tolist() if isinstance(values, np.ndarray | torch.Tensor) else values


def num_classes(
    members: Sequence[Member],
    held: Mapping[str, Held],
    classes: Sequence[str] | None,
) -> int:
    """K, the number of names of classes, or of the models' logits.

    Raises UserError where they disagree, except where the names are WordNet ids: ImageNet models
    are then read at these classes.
    """
    widths: dict[str, int] = {}
    for member in members:
        if member.name in held:
            own = held[member.name]
            width = instances.count_classes(own.net, member.name, own.channels, own.size)
            widths[member.name] = width
        elif classes is None and (known := published_classes(member)) is not None:
            widths[member.name] = known
    if classes is not None:
        if not set(classes) <= set(wnids()):
            for name, width in widths.items():
                if width != len(classes):
                    raise UserError(f"classes names {len(classes)}, but {name} has {width} classes")
        return len(classes)
    if not widths:
        raise UserError("classes must be given: their number is not known of these models")
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise UserError(f"models must have the same classes: {listed}")
    return next(iter(widths.values()))
