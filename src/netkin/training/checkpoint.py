"""The state of a training after an epoch, in one safetensors file: everything needed to continue.

Tensors of the model, the optimiser and the moving average; and as JSON in the metadata the identity
of the training, the epoch, the curves and the optimiser's settings. Lightning's own checkpoints are
pickles, which the store does not hold.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from netkin.errors import UserError
from netkin.store.files import read_metadata, read_tensors, write_tensors
from netkin.store.layout import owner
from netkin.training.weights import check_identity


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
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    def save(self, path: Path) -> None:
        tensors = {f"model.{key}": value for key, value in self.model.items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.items()}
        numbers: dict[str, dict[str, Any]] = {}
        for index, values in self.optimizer["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    numbers.setdefault(str(index), {})[key] = value
        content = {
            "identity": self.identity,
            "epoch": self.epoch,
            "curves": self.curves,
            "numbers": numbers,
            "groups": self.optimizer["param_groups"],
            "scaler": self.scaler,
        }
        # Tensors may share memory, which safetensors does not store.
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        write_tensors(path, copies, owner(path, self.identity), training=json.dumps(content))


def best(curves: Sequence[Mapping[str, float]]) -> float | None:
    """The highest test accuracy so far, in [0, 1]; None before the first."""
    return max((row["test_accuracy"] for row in curves if "test_accuracy" in row), default=None)


def load(path: Path, identity: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint.

    Raises UserError when the file is not one, or is damaged, and OtherTraining when an identity is
    given and it is of another training.
    """
    try:
        content = json.loads(read_metadata(path)["training"])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, value in read_tensors(path).items():
            part, _, key = name.partition(".")
            parts[part][key] = value
        state = {int(index): dict(values) for index, values in content["numbers"].items()}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        stored = Checkpoint(
            content["identity"],
            content["epoch"],
            content["curves"],
            parts["model"],
            parts["ema"],
            {"state": state, "param_groups": content["groups"]},
            content["scaler"],
        )
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a training checkpoint, or is damaged ({type(error).__name__}: "
            f"{error}); remove it and run the same command again to train from the start"
        ) from None
    if identity is not None:
        check_identity(path, stored.identity, identity)
    return stored
