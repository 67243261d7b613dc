"""Networks of one's own: any nn.Module class, or function that returns one, by its dotted name."""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netkin.errors import UserError, first_line, near
from netkin.zoo.task import Task

if TYPE_CHECKING:
    from netkin.zoo.member import Member


@cache
def find(target: str) -> Callable[..., Any]:
    """The class or function of a dotted name, imported.

    Raises UserError when it cannot be imported or called.
    """
    module_name, dot, attribute = target.rpartition(".")
    if not dot:
        raise UserError(f"_target_ must be a dotted name such as my_pkg.MyNet, got {target!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's raises what it will
        missing = str(getattr(error, "name", None))
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            advice = "start in its folder, put that on PYTHONPATH, or install it"
            raise UserError(f"there is no module {missing} ({target}); {advice}") from None
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{module_name} cannot be imported ({reason})") from None
    value = getattr(module, attribute, None)
    if value is None:
        file = getattr(module, "__file__", None)
        origin = f"{module_name} ({file})" if file else module_name
        raise UserError(f"{origin} has no {attribute!r}{near(attribute, dir(module))}")
    if not callable(value):
        raise UserError(f"{target} must be a class or a function, got {value!r}")
    return value


def config(name: str) -> dict[str, Any]:
    """Of a class, of which nothing is published."""
    return {"family": find(name).__name__}


def file(name: str, config: Mapping[str, Any], fetch: bool) -> None:
    """It brings its weights, or has a checkpoint."""


def ways(
    member: "Member", config: Mapping[str, Any], task: Task, size: int
) -> list[dict[str, Any]]:
    """The member's own arguments alone."""
    return [dict(member.kwargs)]


def build(
    member: "Member", config: Mapping[str, Any], kwargs: Mapping[str, Any], file: Path | None
) -> nn.Module:
    """The network that a class or function returns for its arguments.

    Raises UserError when it raises, or returns something else.
    """
    make, name = find(member.target), member.name
    try:
        net = make(**kwargs)
    except Exception as error:  # a class of the user's raises what it will
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{name} ({member.target}) cannot be built ({reason}); see its kwargs"
        ) from None
    if not isinstance(net, nn.Module):
        kind = type(net).__name__
        raise UserError(
            f"{name}: {member.target} must give an nn.Module, got an object of type {kind}"
        )
    return net


def source_sha256(target: str) -> str | None:
    """The hash of a class's or function's own source text; None where there is none."""
    try:
        return hashlib.sha256(inspect.getsource(find(target)).encode()).hexdigest()
    except (OSError, TypeError):  # defined in a console, or in C
        return None


def weights_sha256(net: nn.Module) -> str:
    """A hash of a network's state: of keys, shapes, types and values."""
    total = hashlib.sha256()
    for key, value in net.state_dict().items():
        if isinstance(value, Tensor):
            total.update(f"{key} {list(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def only_logits(net: nn.Module) -> nn.Module:
    """Have a network return its logits alone, in place, by a forward hook; see `logits_in`."""
    if _logits_hook not in net._forward_hooks.values():
        net.register_forward_hook(_logits_hook)
    return net


def _logits_hook(module: nn.Module, _inputs: Any, output: Any) -> Tensor:
    return logits_in(output, type(module).__name__)


def logits_in(output: Any, name: str = "the network") -> Tensor:
    """The logits [B, K] in what a network returns.

    That is a tensor, a tuple or list that begins with them, a mapping that holds them under
    "logits" or as its only tensor, or an object with `.logits`. Raises UserError for others.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        logits = output.get("logits", tensors[0] if len(tensors) == 1 else None)
    elif logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
    if isinstance(logits, Tensor):
        return logits
    keys = f" with keys {list(output)[:8]}" if isinstance(output, Mapping) else ""
    raise UserError(
        f"{name} returns a {type(output).__name__}{keys}, expected logits: a tensor, a tuple that "
        'begins with it, a mapping with "logits", or an object with .logits'
    )
