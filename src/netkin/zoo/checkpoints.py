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
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from netkin.errors import UserError, first_line, near
from netkin.zoo.published import holds_arrays

log = logging.getLogger(__name__)

WRAPPERS = ("_orig_mod", "module")
"""Components of keys that torch.compile and DataParallel insert."""
NOT_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|total_ops|total_params|n_averaged)$")
"""Counters that nothing reads in eval mode: batch normalisation's, which old checkpoints lack, and
those that profilers and weight averaging leave behind."""
AVERAGED = re.compile(r"(^|[^a-z])ema([^a-z]|$)")
"""Of a label: weights averaged over training steps, which are preferred as timm does."""
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


@dataclass(frozen=True)
class Weights:
    """A state dict in a file; `label` is its place there, such as "state_dict.model"."""

    label: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Choice:
    """The weights of a checkpoint that are used, and the labels of others that fit as well."""

    weights: Weights
    others: tuple[str, ...] = ()

    def describe(self, path: Path, name: str) -> str:
        """Which weights of a file are used, and how to choose others, in words."""
        label, *others = (text or "(top level)" for text in (self.weights.label, *self.others))
        if not others:
            return f"{name}: weights {label} of {path}"
        return (
            f"{name}: {path} holds several sets of weights that fit; {label} is used, not "
            f"{', '.join(others)} (the member's field weights_key chooses another)"
        )


@dataclass(frozen=True)
class Misfit:
    """The first key that differs; shapes are lists, or "no such key"."""

    key: str
    in_model: Any
    in_file: Any


def load_weights(net: nn.Module, path: Path, name: str, key: str | None = None) -> None:
    """Load a checkpoint into a network, strictly.

    Args:
        net: on any device but meta.
        path: a safetensors file, a torch file without pickled code, or an .npz file for a network
            with a `load_pretrained` of its own (timm's of the original authors' archives).
        name: of the network, for messages.
        key: which of several state dicts, such as "model_ema"; where None, one of averaged
            weights (EMA) is preferred.

    Raises:
        UserError: the file cannot be read, has no such key, or does not fit: the message shows the
            first key that differs with both shapes, and the first keys of the file and the network.
    """
    if not path.is_file():
        raise UserError(f"{name}: there is no weights file {path}")
    if holds_arrays(path) and hasattr(net, "load_pretrained"):
        _load_arrays(net, path, name)
        return
    choice = choose(net, path, name, key)
    if choice.others or choice.weights.label:
        log.info("%s", choice.describe(path, name))
    net.load_state_dict(choice.weights.tensors, strict=False)


def choose(net: nn.Module, path: Path, name: str, key: str | None = None) -> Choice:
    """The weights of a checkpoint that `load_weights` loads into a network, on any device.

    Raises UserError as `load_weights` does.
    """
    candidates = list(state_dicts(read(path, name)))
    if not candidates:
        raise UserError(f"{name}: {path} holds no tensors; expected a state dict of the network")
    fits = [weights for candidate in candidates for weights in _fits(net, candidate)]
    if key is not None:
        fits = [weights for weights in fits if _is_at(weights, key)]
        candidates = _at(key, candidates, path, name) if not fits else candidates
    if not fits:
        raise UserError(_misfit_message(net, candidates, path, name))
    chosen = next((w for w in fits if AVERAGED.search(w.label.lower())), fits[0])
    others = [weights.label for weights in fits if weights.label != chosen.label]
    return Choice(chosen, tuple(dict.fromkeys(others)))


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
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
            except RuntimeError as error:
                if not lazily or "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = _pickled(path)
        what = f"pickled objects ({objects})" if objects else first_line(error)
        what = "something else than tensors" if "weights_only" in what else what
        raise UserError(
            f"{name}: {path} cannot be read as weights: it holds {what}, which are not loaded "
            "because they can run code; on the machine that wrote it, save the tensors alone: "
            "torch.save(net.state_dict(), FILE)"
        ) from None
    except Exception as error:  # torch, zip and safetensors each have their own
        reason = first_line(error)
        reason = reason if " " in reason else "it has another format"  # a key, or a type
        raise UserError(
            f"{name}: {path} cannot be read as weights ({reason}); expected "
            "safetensors, or a torch file that holds tensors only"
        ) from None


def _pickled(path: Path) -> str:
    """The classes and functions that a torch file refers to, beyond those that may be loaded."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            names.sort(key=lambda name: name.startswith("torch."))  # the user's own first
    except Exception:  # not the zip format: nothing is known of what is inside
        return ""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def state_dicts(content: Any, label: str = "", depth: int = 0) -> Iterator[Weights]:
    """Every mapping of names to tensors in a file; what is no tensor is passed over."""
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield Weights(label, tensors)
    if depth < DEEPEST:
        for key, value in named.items():
            yield from state_dicts(value, f"{label}.{key}".lstrip("."), depth + 1)


def _at(key: str, candidates: list[Weights], path: Path, name: str) -> list[Weights]:
    """The candidates that a key names."""
    matches = [weights for weights in candidates if _is_at(weights, key)]
    if not matches:
        labels = [weights.label for weights in candidates if weights.label]
        raise UserError(
            f"{name}: {path} has no weights under weights_key {key!r}{near(key, labels)} "
            f"(there are {', '.join(labels[:8]) or 'none: its tensors lie at the top level'})"
        )
    return matches


def _is_at(weights: Weights, key: str) -> bool:
    return f".{key}." in f".{weights.label}."


def _fits(net: nn.Module, weights: Weights) -> Iterator[Weights]:
    """The ways in which a state dict fits a network, each with the label that tells it apart."""
    for prefix, tensors in _renamed(net, weights.tensors):
        label = ".".join(part for part in (weights.label, prefix) if part)
        if misfit(net, tensors) is None:
            yield Weights(label, tensors)
        elif (convert := _converter(net)) is not None:
            converted = dict(convert(tensors, net))
            if misfit(net, converted) is None:
                yield Weights(label, converted)


def _renamed(net: nn.Module, tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A state dict without wrappers in its keys: all of it, and below each prefix that leads to a
    key of the network: pairs of the prefix without its last dot, and the tensors below it."""
    ours = net.state_dict()
    plain = tensors if any(_wrapped(k) for k in ours) else _without_wrappers(tensors)
    anchor = next((key for key in ours if not NOT_WEIGHTS.search(key)), "")
    prefixes = [k[: -len(anchor)] for k in plain if k == anchor or k.endswith(f".{anchor}")]
    shared = {key.partition(".")[0] for key in plain}
    if len(shared) == 1 and all("." in key for key in plain):
        prefixes.append(f"{shared.pop()}.")  # above the keys of other authors, to be converted
    for prefix in dict.fromkeys(["", *prefixes]):
        below = {k[len(prefix) :]: v for k, v in plain.items() if k.startswith(prefix)}
        named = {k: v for k, v in below.items() if k in ours or not NOT_WEIGHTS.search(k)}
        yield prefix.rstrip("."), named


def _wrapped(key: str) -> bool:
    return any(part in WRAPPERS for part in key.split("."))


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def plain(key: str) -> str:
        return ".".join(part for part in key.split(".") if part not in WRAPPERS)

    return {plain(key): value for key, value in tensors.items()}


def misfit(net: nn.Module, tensors: Mapping[str, Tensor]) -> Misfit | None:
    """The first key that differs between a network and a state dict; None where it fits."""
    ours = net.state_dict()
    for key in dict.fromkeys([*ours, *tensors]):
        in_model = list(ours[key].shape) if key in ours else "no such key"
        in_file = list(tensors[key].shape) if key in tensors else "no such key"
        if in_model != in_file and not (key not in tensors and NOT_WEIGHTS.search(key)):
            return Misfit(key, in_model, in_file)
    return None


def _misfit_message(net: nn.Module, candidates: list[Weights], path: Path, name: str) -> str:
    """Of the candidate with most keys in common with the network."""
    ours = net.state_dict()
    ways = [tensors for weights in candidates for _, tensors in _renamed(net, weights.tensors)]
    nearest = max(ways, key=lambda tensors: (len(ours.keys() & tensors.keys()), len(tensors)))
    differs = misfit(net, nearest)
    assert differs is not None
    return (
        f"{name}: weights {path} do not fit: {differs.key} is {differs.in_model} in the model and "
        f"{differs.in_file} in the file; the file's first keys are {_first(nearest)}, the model's "
        f"{_first(ours)}; is it a checkpoint of this architecture and these classes?"
    )


def _first(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(list(tensors)[:3])


def _converter(net: nn.Module) -> Callable[[Any, nn.Module], Mapping[str, Tensor]] | None:
    """timm's conversion of the original authors' checkpoints, where an architecture has one."""
    module = sys.modules.get(type(net).__module__)
    filter_fn = getattr(module, "checkpoint_filter_fn", None)
    if filter_fn is None or not type(net).__module__.startswith("timm."):
        return None

    def convert(tensors: Any, net: nn.Module) -> Mapping[str, Tensor]:
        try:
            return filter_fn(dict(tensors), net)
        except Exception as error:  # not a checkpoint that it was written for
            log.info("%s: %s", filter_fn, error)
            return tensors

    return convert


def _load_arrays(net: Any, path: Path, name: str) -> None:
    try:
        net.load_pretrained(str(path))
    except Exception as error:  # whatever numpy and the model's loader raise
        raise UserError(f"{name}: weights {path} do not fit ({first_line(error)})") from None
