"""How a member is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from netkin.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """Settings of timm's optimisers, schedules and augmentation.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; the last incomplete batch of an epoch is dropped.
        opt, weight_decay, opt_args: as `timm.optim.create_optimizer_v2`; norms and biases do not
            decay.
        lr: peak learning rate.
        sched, warmup_epochs: as `timm.scheduler.create_scheduler_v2`, updated every step.
        label_smoothing: of the cross-entropy.
        clip_grad: largest gradient norm.
        augmentation: arguments of `timm.data.create_transform(is_training=True)`.
        seed: of the initialisation, the order of images and their augmentation.
        validate_every: epochs between two looks at the test accuracy (for the curves alone).
    """

    epochs: int
    batch_size: int
    lr: float
    opt: str = "adamw"
    weight_decay: float = 0.05
    opt_args: Mapping[str, Any] = field(default_factory=dict)
    sched: str = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    clip_grad: float = 1.0
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    validate_every: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"recipe.{name} must be a whole number of 1 or more, got {value!r}")
        if not self.lr > 0:
            raise UserError(f"recipe.lr must be above 0, got {self.lr}")

    def identity(self) -> dict[str, Any]:
        """The settings that the weights depend on."""
        return {key: value for key, value in asdict(self).items() if key != "validate_every"}
