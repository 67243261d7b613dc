"""The settings with which a member is trained, and timm's optimiser and schedule of them."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from netkin.attacks import PGD
from netkin.attacks.units import non_negative, whole_number
from netkin.errors import UserError, first_line

if TYPE_CHECKING:  # timm is for what is trained: it takes seconds to import
    from timm.scheduler.scheduler import Scheduler

LATER = (
    *("lr_per", "sched_args", "step_on_epochs", "warmup_lr", "min_lr", "repeats", "erasing"),
    *("mixup", "cutmix", "model_args", "ema_decay", "accumulate", "keep", "adversarial"),
)
"""Fields that an identity names only where they differ from their default."""
LARGEST = 128
"""Rows and columns up to which Muon takes a matrix: its iteration takes time with their third
power."""
ADVERSARIAL = ("eps", "step_size", "steps", "random_start", "momentum")


@dataclass(frozen=True)
class Recipe:
    """Settings of timm's optimisers, schedules, augmentation and mixing.

    Raises UserError, which names the argument, for a value that is out of range.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step and device; the last incomplete batch of an epoch is dropped.
        opt, weight_decay, opt_args: as `timm.optim.create_optimizer_v2`; norms, biases and tokens
            do not decay.
        lr: peak learning rate, for `lr_per` images a step where that is given: it is scaled
            linearly to the images of a step over all devices and accumulated batches.
        sched, warmup_epochs, sched_args: as `timm.scheduler.create_scheduler_v2`.
        step_on_epochs: whether the rate changes once an epoch rather than at each step.
        warmup_lr, min_lr: where warm-up starts (by default a hundredth of the peak) and the
            schedule ends; not scaled.
        label_smoothing: of the cross-entropy.
        clip_grad: largest gradient norm; None does not clip.
        augmentation: arguments of `timm.data.create_transform(is_training=True)`.
        repeats: how many differently augmented copies of an image an epoch holds (Hoffer et al.
            2020); it then holds fewer images, as many copies in all.
        erasing: probability of random erasing by normal noise (Zhong et al. 2020).
        mixup, cutmix: alpha of timm's Mixup and CutMix, 0 for none; with both, each batch takes
            either at random.
        model_args: further arguments of `timm.create_model` in training, such as drop_path_rate.
        ema_decay: of a moving average of the weights; None for none.
        accumulate: batches a step.
        keep: which weights are the result: the "last" epoch's, those "best" on the test images
            (chosen on the images that they are tested on: their accuracy is a little too high), or
            the "ema".
        adversarial: arguments of `netkin.attacks.PGD` for adversarial training (Madry et al. 2018):
            each step trains on the batch as the attack changes it; {} trains on the images.
        seed: of the initialisation, the order of images, their augmentation and mixing, dropout.
        validate_every: epochs between two evaluations on the test images.
    """

    epochs: int
    batch_size: int
    lr: float
    lr_per: int | None = None
    opt: str = "adamw"
    weight_decay: float = 0.0
    opt_args: Mapping[str, Any] = field(default_factory=dict)
    sched: str = "cosine"
    sched_args: Mapping[str, Any] = field(default_factory=dict)
    step_on_epochs: bool = False
    warmup_epochs: int = 0
    warmup_lr: float | None = None
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    clip_grad: float | None = None
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    model_args: Mapping[str, Any] = field(default_factory=dict)
    ema_decay: float | None = None
    accumulate: int = 1
    keep: str = "last"
    adversarial: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    validate_every: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every", "repeats", "accumulate"):
            whole_number(getattr(self, name), name)
        whole_number(self.seed, "seed", least=0)
        for name in ("lr", "weight_decay", "mixup", "cutmix", "warmup_epochs", "min_lr"):
            non_negative(getattr(self, name), name)
        if self.lr == 0:
            raise UserError("lr must be above 0")
        for name in ("label_smoothing", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay must be in (0, 1) or none, got {self.ema_decay}")
        if self.keep not in ("last", "best", "ema"):
            raise UserError(f"keep must be last, best or ema, got {self.keep!r}")
        if self.keep == "ema" and self.ema_decay is None:
            raise UserError("keep=ema needs ema_decay, such as 0.9999")
        if self.mixes and self.batch_size % 2:
            raise UserError(
                f"batch_size={self.batch_size} must be even, since mixup and cutmix mix pairs"
            )
        if self.adversarial and self.mixes:
            raise UserError("adversarial training takes no mixup or cutmix: set both to 0")
        if unknown := set(self.adversarial) - set(ADVERSARIAL):
            raise UserError(
                f"adversarial takes {', '.join(ADVERSARIAL)}, got {', '.join(sorted(unknown))}"
            )
        self.attack  # noqa: B018  # raises for arguments that PGD refuses

    @property
    def attack(self) -> PGD | None:
        """The attack of adversarial training, if there is one."""
        return PGD(**self.adversarial, seed=self.seed) if self.adversarial else None

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def peak_lr(self, devices: int = 1) -> float:
        """The peak learning rate on a number of devices; see `lr` and `lr_per`."""
        images = self.batch_size * devices * self.accumulate
        return self.lr if self.lr_per is None else self.lr * images / self.lr_per

    def identity(self) -> dict[str, Any]:
        """The settings that the weights depend on, as JSON values."""
        settings = {}
        for setting in fields(self):
            name, value, default = setting.name, getattr(self, setting.name), setting.default
            if setting.default_factory is not MISSING:
                default = setting.default_factory()
            if name != "validate_every" and (name not in LATER or value != default):
                settings[name] = dict(value) if isinstance(value, Mapping) else value
        if self.keep == "best":
            settings["validate_every"] = self.validate_every
        return settings


def check(recipe: Recipe) -> None:
    """Raises UserError for an optimiser or a schedule that timm does not make of a recipe."""
    what = f"opt={recipe.opt} with {dict(recipe.opt_args)}"
    try:
        optimizer = make_optimizer(nn.Linear(2, 2), recipe, 0.1)  # both raise errors of many types
        what = f"sched={recipe.sched} with {dict(recipe.sched_args)}"
        make_schedule(optimizer, recipe, 1)
    except Exception as error:
        raise UserError(f"{what}: {first_line(error)}") from None


def make_optimizer(net: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser at a peak learning rate; norms, biases and tokens do not decay.

    Muon's matrices of more than LARGEST rows and columns are AdamW's, at a tenth of the rate.
    """
    from timm.optim import Muon, create_optimizer_v2

    optimizer = create_optimizer_v2(
        net, opt=recipe.opt, lr=lr, weight_decay=recipe.weight_decay, **recipe.opt_args
    )
    if isinstance(optimizer, Muon):
        for group in list(optimizer.param_groups):
            kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            for weights in group["params"]:
                large = weights.ndim > 1 and min(len(weights), weights[0].numel()) > LARGEST
                kinds[large].append(weights)
            if kinds[True]:
                group["params"] = kinds[False]
                own = {"params": kinds[True], "use_fallback": True, "fallback_lr_scale": 0.1}
                optimizer.add_param_group({**group, **own})
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> "Scheduler":
    """timm's schedule of the rates of an optimiser at its peak; `updates` are steps an epoch."""
    from timm.scheduler import create_scheduler_v2

    peak = max(group["lr"] for group in optimizer.param_groups)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=peak / 100 if recipe.warmup_lr is None else recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=recipe.step_on_epochs,
        updates_per_epoch=updates,
        **recipe.sched_args,
    )
    if schedule is None:  # without a word, for a name that it does not know
        raise ValueError("timm has no such schedule; cosine, step and constant are some")
    return schedule
