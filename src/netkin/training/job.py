"""One training: what is trained, on which images, how and where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import TensorDataset

from netkin.data.images import Images
from netkin.training.distillation import Teacher
from netkin.training.recipe import Recipe

Report = Callable[[Mapping[str, float]], None]
"""Called with an epoch's row of the curves, and within long epochs with a row of some steps; see
`netkin.training.fit.Fit`."""


@dataclass(frozen=True)
class Hardware:
    """Where and how a training runs.

    Attributes:
        accelerator, devices, precision: as Lightning's Trainer takes them.
        compile: whether the model's forward and backward passes are compiled.
        workers: processes a device that augment images; with 0 the training process does.
        fast_dev_run: train on one batch, to test that everything fits together.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    compile: bool = False
    workers: int = 0
    fast_dev_run: bool = False


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        identity: everything that the weights depend on, as JSON values, and the member's name; a
            checkpoint of another identity is refused.
        recipe: how the model is trained.
        images: the training images; the augmentation crops them to the classifier's input size.
        test: pixels [I, 3, H, W] uint8 and labels [I], for the test accuracy in the curves.
        folder: for `last.safetensors` (the checkpoint) and, where the recipe keeps the best,
            `best.safetensors`; removed at the end.
        hardware: where it runs.
        teacher: of a distillation; None trains from the labels alone.
    """

    identity: Mapping[str, Any]
    recipe: Recipe
    images: Images
    test: TensorDataset
    folder: Path
    hardware: Hardware = Hardware()
    teacher: Teacher | None = None

    @property
    def last(self) -> Path:
        """The checkpoint after the last epoch that is done."""
        return self.folder / "last.safetensors"

    @property
    def steps(self) -> Path:
        """The rows of steps, a JSON object a line, where other processes train."""
        return self.folder / "steps.jsonl"

    @property
    def best(self) -> Path:
        """The weights with the highest test accuracy so far."""
        return self.folder / "best.safetensors"
