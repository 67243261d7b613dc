"""Checkpoints as people have them: which tensors of a file are a network's weights.

A file may hold a state dict, or one or several of them among other things (an optimiser's state, an
epoch, a moving average), under the names of a wrapper: Lightning's `model.`, DDP's `module.`,
torch.compile's `_orig_mod.`, in any nesting. What fits is found by the network's own keys. No
pickled code is run.
"""

import argparse
import codecs
import collections
import logging
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from netkin.errors import UserError, first_line, near

log = logging.getLogger(__name__)

WRAPPERS = ("_orig_mod", "module")
"""Components of keys that torch.compile and DataParallel insert."""
NOT_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|total_ops|total_params|n_averaged)$")
"""Counters that nothing reads in eval mode: batch normalisation's, which old checkpoints lack, and
those that profilers and weight averaging leave behind."""
AVERAGED = re.compile(r"(^|[^a-z])ema([^a-z]|$)")
"""Of a label: weights averaged over training steps, which are taken before others, as timm does."""
_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,  # timm's and many others' `args`
    collections.defaultdict,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # an accuracy, as numpy 1 names it
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (codecs.encode, "_codecs.encode"),  # the bytes of that scalar
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]
"""What a torch file may hold beside tensors and plain values: data without code."""
DEEPEST = 4

Weights = dict[str, Tensor]


def load_weights(net: nn.Module, path: Path, name: str, key: str | None = None) -> None:
    """Load a checkpoint into a network, strictly.

    Args:
        net: on any device but meta.
        path: a safetensors file, or a torch file without pickled code.
        name: of the network, for messages.
        key: which of several state dicts, such as "model_ema" or "state_dict.student".

    Raises UserError as `choose` does.
    """
    if not path.is_file():
        raise UserError(f"{name}: there is no weights file {path}")
    net.load_state_dict(choose(net, path, name, key), strict=False)


def choose(net: nn.Module, path: Path, name: str, key: str | None = None) -> Weights:
    """The weights of a checkpoint that `load_weights` loads into a network, by the network's keys.

    The network may be on any device. Raises UserError where the file cannot be read, has no such
    key, or holds several sets of weights that fit, none of them the average (EMA); and where
    nothing fits, with the first key that differs in both shapes and the first keys of both.
    """
    tried = [
        (".".join(filter(None, (label, below))), tensors)
        for label, found in _state_dicts(read(path, name))
        for below, tensors in _renamed(net, found)
    ]
    if not tried:
        raise UserError(f"{name}: {path} holds no tensors; expected a state dict of the network")
    if key is not None:
        labels = list(dict.fromkeys(label for label, _ in tried if label))
        tried = [(label, tensors) for label, tensors in tried if f".{key}." in f".{label}."]
        if not tried:
            raise UserError(
                f"{name}: {path} has no weights under weights_key {key!r}{near(key, labels)} "
                f"(there are {', '.join(labels[:8]) or 'none: its tensors lie at the top level'})"
            )
    fits: dict[str, Weights] = {}
    for label, tensors in tried:
        if (fitting := _fitting(net, tensors)) is not None:
            fits.setdefault(label, fitting)
    if not fits:
        raise UserError(_misfit_message(net, [tensors for _, tensors in tried], path, name))
    averaged = [label for label in fits if AVERAGED.search(label.lower())]
    label = averaged[0] if len(averaged) == 1 else next(iter(fits))
    others = [fits[other] for other in fits if other != label]  # NaN is not equal to itself
    if len(averaged) != 1 and not all(_equal(fits[label], other) for other in others):
        raise UserError(
            f"{name}: {path} holds several sets of weights that fit; choose one of them by the "
            f"member's field weights_key: {', '.join(text or repr(text) for text in fits)}"
        )
    log.info("%s: weights %s of %s", name, label or "(top level)", path)
    return fits[label]


def _equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def read(path: Path, name: str, lazily: bool = False) -> Any:
    """What a safetensors or torch file holds: a mapping, as a rule.

    Args:
        lazily: map tensors from the disk, where only what lies beside them is of interest.

    Raises UserError, with the owner's `name`, where that is unreadable or pickled code.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {} if lazily else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals(HARMLESS):
            lazily = lazily and zipfile.is_zipfile(path)  # the older format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except Exception as error:  # torch, zip and safetensors each have their own
        reason = first_line(error)
        if "weights_only" in str(error):  # torch advises to load it nevertheless
            pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise UserError(
                f"{name}: {path} cannot be read as weights: it holds pickled objects"
                f"{f' ({pickled[1]})' if pickled else ''}, which are not loaded because they can "
                "run code; on the machine that wrote it, save the tensors alone: "
                "torch.save(net.state_dict(), FILE)"
            ) from None
        reason = reason if " " in reason else "it has another format"  # a key, or a type
        raise UserError(
            f"{name}: {path} cannot be read as weights ({reason}); expected "
            "safetensors, or a torch file that holds tensors only"
        ) from None


def _state_dicts(content: Any, label: str = "", depth: int = 0) -> Iterator[tuple[str, Weights]]:
    """Every mapping of names to tensors in a file; what is no tensor is passed over."""
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield label, tensors
    if depth < DEEPEST:
        for key, value in named.items():
            yield from _state_dicts(value, f"{label}.{key}".lstrip("."), depth + 1)


def _renamed(net: nn.Module, tensors: Weights) -> Iterator[tuple[str, Weights]]:
    """A state dict without wrappers in its keys: all of it, and below each prefix that leads to a
    key of the network: pairs of the prefix without its last dot, and the tensors below it."""

    def parts(key: str) -> list[str]:
        return [part for part in key.split(".") if part not in WRAPPERS]

    ours = net.state_dict()
    if not any(part in WRAPPERS for key in ours for part in key.split(".")):
        tensors = {".".join(parts(key)): value for key, value in tensors.items()}
    anchor = next((key for key in ours if not NOT_WEIGHTS.search(key)), "")
    prefixes = [k[: -len(anchor)] for k in tensors if k == anchor or k.endswith(f".{anchor}")]
    shared = {key.partition(".")[0] for key in tensors}
    if len(shared) == 1 and all("." in key for key in tensors):
        prefixes.append(f"{shared.pop()}.")  # above the keys of other authors, to be converted
    for prefix in dict.fromkeys(["", *prefixes]):
        below = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        named = {k: v for k, v in below.items() if k in ours or not NOT_WEIGHTS.search(k)}
        yield prefix.rstrip("."), named


def _fitting(net: nn.Module, tensors: Weights) -> Weights | None:
    """Tensors that fit a network, as they are or as timm converts those of the original authors."""
    if _misfit(net, tensors) is None:
        return tensors
    name = type(net).__module__
    convert = getattr(sys.modules.get(name), "checkpoint_filter_fn", None)
    if convert is None or not name.startswith("timm."):
        return None
    try:
        converted = dict(convert(dict(tensors), net))
    except Exception as error:  # not a checkpoint that it was written for
        log.info("%s: %s", convert, error)
        return None
    return converted if _misfit(net, converted) is None else None


def _misfit(net: nn.Module, tensors: Weights) -> tuple[str, Any, Any] | None:
    """The first key that differs between a network and a state dict, with its shape in both;
    None where they fit."""
    ours = net.state_dict()
    for key in dict.fromkeys([*ours, *tensors]):
        in_model = list(ours[key].shape) if key in ours else "no such key"
        in_file = list(tensors[key].shape) if key in tensors else "no such key"
        if in_model != in_file and not (key not in tensors and NOT_WEIGHTS.search(key)):
            return key, in_model, in_file
    return None


def _misfit_message(net: nn.Module, tried: list[Weights], path: Path, name: str) -> str:
    """Of the state dict with most keys in common with the network."""
    ours = net.state_dict()
    nearest = max(tried, key=lambda tensors: (len(ours.keys() & tensors.keys()), len(tensors)))
    key, in_model, in_file = _misfit(net, nearest) or ("", "", "")
    return (
        f"{name}: weights {path} do not fit: {key} is {in_model} in the model and {in_file} in the "
        f"file; the file's first keys are {', '.join(list(nearest)[:3])}, the model's "
        f"{', '.join(list(ours)[:3])}; is it a checkpoint of this architecture and these classes?"
    )
