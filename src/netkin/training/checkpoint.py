"""The state of a training after an epoch, in one safetensors file: everything needed to continue.

Tensors of the model, the optimiser and the moving average; and as JSON in the metadata the identity
of the training, the epoch, the curves and the optimiser's settings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from netkin.errors import OtherTraining, UserError
from netkin.store import differences
from netkin.store.files import read_metadata, read_tensors, write_tensors


@dataclass(frozen=True)
class Checkpoint:
    """One training after `epoch` complete epochs.

    Attributes:
        identity: of the training (see `netkin.training.weights.identity`), with the member's name.
        epoch: how many epochs are done.
        curves: a row for each.
        model, ema: state dicts; `ema` is empty without a moving average.
        optimizer: the state dict of the optimiser.
        scaler: of the loss in 16-bit precision; empty without.
    """

    identity: Mapping[str, Any]
    epoch: int
    curves: list[dict[str, float]]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    @property
    def best(self) -> float | None:
        """The highest test accuracy so far, in [0, 1]; None before the first."""
        accuracies = [row["test_accuracy"] for row in self.curves if "test_accuracy" in row]
        return max(accuracies, default=None)


def save(
    path: Path,
    identity: Mapping[str, Any],
    epoch: int,
    curves: list[dict[str, float]],
    model: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
    scaler: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically; see `Checkpoint` for the arguments."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{key}": value for key, value in ema.state_dict().items()}
    state = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    write_tensors(
        path,
        # Tensors may share memory, which safetensors does not store.
        {name: value.detach().clone() for name, value in tensors.items()},
        training=json.dumps(
            {
                "identity": identity,
                "epoch": epoch,
                "curves": curves,
                "numbers": numbers,
                "groups": state["param_groups"],
                "scaler": dict(scaler or {}),
            }
        ),
    )


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError when the file is not one, or is damaged."""
    try:
        content = json.loads(read_metadata(path)["training"])
        tensors = read_tensors(path)
        state: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in content["numbers"].items()
        }
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        return Checkpoint(
            content["identity"],
            content["epoch"],
            content["curves"],
            _part(tensors, "model."),
            _part(tensors, "ema."),
            {"state": state, "param_groups": content["groups"]},
            content["scaler"],
        )
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a training checkpoint, or is damaged ({type(error).__name__}: "
            f"{error}); remove it and run the same command again to train from the start"
        ) from None


def load_own(path: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of the training with an identity; None where there is no file.

    Raises UserError when the file is damaged, and OtherTraining when it is of another training.
    """
    if not path.is_file():
        return None
    stored = load(path)
    if difference := next(differences(stored.identity, json.loads(json.dumps(identity))), None):
        key, theirs, ours = difference
        raise OtherTraining(
            f"{path} is of a training with {key} = {theirs}, now it is {ours}: continue with those "
            "settings, give this training another name, or remove the file to start again"
        )
    return stored


def epochs_done(path: Path) -> int:
    """How many epochs a checkpoint holds; 0 where there is none, or it cannot be read."""
    try:
        return int(json.loads(read_metadata(path)["training"])["epoch"])
    except (UserError, ValueError, KeyError, TypeError):
        return 0


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
