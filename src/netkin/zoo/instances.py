"""Networks that exist in this process only: the modules that `netkin.compare` is given.

A member refers to one by its fingerprint: as its `target` it has `instance`, which looks it up.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from netkin.errors import UserError, first_line
from netkin.zoo import from_python

_networks: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def instance(sha256: str) -> nn.Module:
    """The network of a fingerprint, for as long as somebody holds what `register` returned."""
    return _networks[sha256]


TARGET = f"{instance.__module__}.{instance.__name__}"


def register(net: nn.Module, name: str) -> tuple[str, nn.Module]:
    """A network's fingerprint, and the copy of it that `instance` returns.

    The copy is in eval mode, in float32 and on the CPU. The network itself stays as it is; of a
    compiled or parallel one, the copied network is what it wraps.

    Raises UserError, with the model's `name`, where it cannot be copied.
    """
    if not isinstance(net, nn.Module):
        raise UserError(f"models: {name} must be an nn.Module, got a {type(net).__name__}")
    while isinstance(inner := getattr(net, "_orig_mod", None) or _parallel(net), nn.Module):
        net = inner
    try:
        copied = copy.deepcopy(net).cpu().float().eval()
    except Exception as error:  # whatever the module's parts raise
        raise UserError(
            f"models: {name} ({type(net).__name__}) cannot be copied to the CPU "
            f"({first_line(error)}); netkin runs a copy, so that the network stays as it is"
        ) from error
    sha256 = fingerprint(copied)
    return sha256, _networks.setdefault(sha256, copied)


def _parallel(net: nn.Module) -> nn.Module | None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return net.module if isinstance(net, wrappers) else None


def fingerprint(net: nn.Module) -> str:
    """A hash of a network: its state, and each module's class, source text and plain attributes."""
    total = hashlib.sha256(from_python.weights_sha256(net).encode())
    for name, module in net.named_modules():
        kind = type(module)
        attributes = {
            key: plain(value)
            for key, value in vars(module).items()
            if not key.startswith("_") and key != "training"
        }
        described = [name, kind.__module__, kind.__qualname__, source(kind), attributes]
        total.update(json.dumps(described, sort_keys=True).encode())
    return total.hexdigest()


@cache
def source(kind: type) -> str:
    """A class's source text, or its methods' bytecode where there is none; empty for torch's."""
    if kind.__module__.startswith("torch."):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # defined in a console, or in C
        functions = (getattr(value, "__code__", None) for value in vars(kind).values())
        code = [
            (c.co_code.hex(), c.co_names, list(map(plain, c.co_consts))) for c in functions if c
        ]
        return json.dumps(code)


def plain(value: Any) -> Any:
    """A value as JSON; of what is not made of numbers and texts, the name of its type or itself."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def count_classes(net: nn.Module, name: str, channels: int, size: int) -> int:
    """K, the width of a registered network's logits for two blank images.

    Raises UserError, with the model's `name`, where it does not take them or gives no logits.
    """
    images = torch.zeros(2, channels, size, size)
    try:
        with torch.no_grad():
            logits = from_python.logits_in(net(images), name)
    except UserError as error:
        raise UserError(f"models: {error}") from None
    except Exception as error:  # whatever a network of the user's raises
        raise UserError(
            f"models: {name} does not take images {list(images.shape)} "
            f"({type(error).__name__}: {first_line(error)}); give "
            "netkin.Model(net, input_size=...) the size that it takes, or in_chans=1 for gray ones"
        ) from error
    if logits.ndim != 2 or len(logits) != 2:
        raise UserError(
            f"models: {name} gives {list(logits.shape)} for 2 images, expected logits [2, classes]"
        )
    return logits.shape[1]
