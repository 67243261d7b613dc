"""Models as `netkin.compare` takes them: modules, `Model`s, names and mappings.

A module exists in this process only. A member refers to it by a number: as its `target` it has
`instance`, which looks it up.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from netkin.data.imagenet import wnids
from netkin.errors import UserError, first_line
from netkin.zoo.build import Script, count_classes, published_classes
from netkin.zoo.member import IN_MEMORY, Member
from netkin.zoo.parse import parse_members


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


def read_models(
    models: Mapping[str, Any], shape: Sequence[int]
) -> tuple[list[Member], dict[str, nn.Module]]:
    """The members of a mapping, and the copies that run of those that are modules, by name.

    A copy can be built for as long as it is held.

    Args:
        models: name to nn.Module, `Model`, or what `parse_members` takes of a member.
        shape: (C, H, W) of the images.

    Raises UserError, with the model's name, for what cannot be used.
    """
    specs: list[Mapping[str, Any]] = []
    held: dict[str, nn.Module] = {}
    for name, model in models.items():
        if isinstance(model, str):
            specs.append({"name": name, "timm": model})
        elif isinstance(model, Mapping):
            specs.append({**model, "name": name})
        else:
            given = model if isinstance(model, Model) else Model(model)
            spec, held[name] = _spec(name, given, shape)
            specs.append(spec)
    return parse_members(specs), held


def _spec(name: str, model: Model, shape: Sequence[int]) -> tuple[dict[str, Any], nn.Module]:
    """A member as `parse_members` takes it, and the copy of its module."""
    channels, height, width = shape
    if model.input_size is None and height != width:
        raise UserError(
            f"images are {height} x {width} and models take squares: give "
            f"netkin.Model(net, input_size=...) to {name}, to which they are resized and cropped"
        )

    def values(given: Any) -> Any:
        return given.tolist() if isinstance(given, np.ndarray | Tensor) else given

    number, net = register(model.net, name)
    module = type(net).__module__
    family = module.split(".")[-1] if module.startswith("timm.models.") else type(net).__name__
    spec = {
        "name": name,
        "target": IN_MEMORY,
        "kwargs": {"number": number},
        "family": model.family or family,
        "input_size": height if model.input_size is None else model.input_size,
        "mean": values(model.mean),
        "std": values(model.std),
        **{key: getattr(model, key) for key in ("crop_pct", "crop_mode", "interpolation")},
        "in_chans": channels if model.in_chans is None else model.in_chans,
    }
    parse_members([spec], at_least=1)  # its fields are checked before the network runs
    return spec, net


def num_classes(
    members: Sequence[Member],
    held: Mapping[str, nn.Module],
    classes: Sequence[str] | None,
) -> int:
    """K, the number of names of classes, or of the models' logits.

    Raises UserError where they disagree, except where the names are WordNet ids: ImageNet models
    are then read at these classes.
    """
    widths: dict[str, int] = {}
    for member in members:
        if member.name in held:
            widths[member.name] = _count_classes(held[member.name], member)
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


def _count_classes(net: nn.Module, member: Member) -> int:
    """K of a network's logits. Raises UserError where it does not take the images."""
    channels, size = member.in_chans or 3, member.input_size or 0
    try:
        return count_classes(net, channels, size, member.name)
    except UserError as error:
        raise UserError(f"models: {error}") from None
    except Exception as error:  # whatever a network of the user's raises
        other = 4 - channels  # 1 or 3
        try:
            count_classes(net, other, size, member.name)
            advice = f"it takes {other}: give netkin.Model(net, in_chans={other})"
        except Exception:  # of this kind or another
            advice = "where it takes another size, give netkin.Model(net, input_size=...)"
        raise UserError(
            f"models: {member.name} does not take images {[2, channels, size, size]} "
            f"({type(error).__name__}: {first_line(error)}); a copy of it runs in float32, on "
            f"batches of any size; {advice}"
        ) from error


_networks: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_numbers = itertools.count()


def instance(number: int) -> nn.Module:
    """The network that `register` gave a number, for as long as somebody holds it."""
    return _networks[number]


assert f"{__name__}.{instance.__name__}" == IN_MEMORY


def register(net: nn.Module, name: str) -> tuple[int, nn.Module]:
    """A number, and the copy of a network that `instance` returns for it.

    Each has a number of its own: equal weights do not make two networks one, since what a network
    computes may depend on anything. The copy is in eval mode, in float32 and on the CPU. The
    network itself stays as it is; of a compiled or parallel one, the copied network is what it
    wraps.

    Raises UserError, with the model's `name`, where it cannot be copied.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"models: {name} must be an nn.Module, got a {type(net).__name__}")
    while isinstance(inner := getattr(net, "_orig_mod", None) or _parallel(net), nn.Module):
        net = inner
    if isinstance(net, torch.jit.ScriptModule):
        net = Script(net)
    try:
        copied = copy.deepcopy(net).cpu().float().eval()
    except Exception as error:  # whatever the module's parts raise
        raise UserError(
            f"models: {name} ({type(net).__name__}) cannot be copied to the CPU "
            f"({first_line(error)}); netkin runs a copy, so that the network stays as it is"
        ) from error
    for module in copied.modules():  # tensors that are no buffers stay as they are otherwise
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, key, value.detach().cpu().float())
    number = next(_numbers)
    _networks[number] = copied
    return number, copied


def _parallel(net: nn.Module) -> nn.Module | None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return net.module if isinstance(net, wrappers) else None
