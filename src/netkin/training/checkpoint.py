"""Training as it stands after an epoch, in one file, without pickle: what is needed to go on.

Tensors of the model, the optimiser and the moving average, and as JSON in the metadata: the
identity of the training, the epoch, the curves and the optimiser's settings.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from netkin.errors import UserError
from netkin.store.files import read_metadata, read_tensors, write_tensors


@dataclass(frozen=True)
class Checkpoint:
    """One training after `epoch` whole epochs.

    Attributes:
        identity: what it is a training of (see `netkin.training.weights.made_of`), and its name.
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
        """The highest test accuracy so far."""
        seen = [row["test_accuracy"] for row in self.curves if "test_accuracy" in row]
        return max(seen, default=None)


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
    """Write a checkpoint, all of it or nothing."""
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
    """Read a checkpoint. Raises UserError when it is none, or damaged."""
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
            f"{path} is no training checkpoint, or a damaged one ({type(error).__name__}: "
            f"{error}); remove it and run the same command again to train from the start"
        ) from None


def epochs_done(path: Path) -> int:
    """How many epochs a checkpoint holds; 0 where there is none (or none that can be read)."""
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
