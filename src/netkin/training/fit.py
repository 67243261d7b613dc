"""One member's training: timm's optimiser, schedule, augmentation and mixing in Lightning."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from netkin.data.images import Images
from netkin.errors import UserError
from netkin.store.layout import differences, write_tensors
from netkin.training import checkpoint
from netkin.training.data import Augmented, Draws, as_pixels, batches, seeded
from netkin.training.distillation import Parts, Teacher, distillation_loss
from netkin.training.recipe import Recipe
from netkin.transfer.engine import quiet, trainer
from netkin.zoo.build import Classifier

Report = Callable[[Mapping[str, float]], None]
CHECK_EVERY = 50
"""Steps between two looks for a loss that is NaN, on a GPU: each look waits for the device."""
TEST_BATCH = 250


@dataclass(frozen=True)
class Hardware:
    """Where and how a training runs; see Lightning's Trainer.

    Attributes:
        accelerator, devices, precision: as Lightning's.
        compile: whether the model's forward and backward passes are compiled.
        workers: processes of each device that augment images; 0 augments in its own.
        fast_dev_run: one batch, to see whether all fits together.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    compile: bool = False
    workers: int = 0
    fast_dev_run: bool = False


@dataclass(frozen=True)
class Job:
    """One training, whole.

    Attributes:
        identity: what it is a training of; a checkpoint of another is refused.
        recipe: how.
        images: the training images, cut to the classifier's input size by the augmentation.
        test: pixels [I, 3, H, W] uint8 and labels [I], for the accuracy in the curves.
        folder: where `last.safetensors` (to go on) and `best.safetensors` (weights) are kept.
        hardware: where it runs.
        teacher: of whom to learn besides; None for none.
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
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"


class Fit(pl.LightningModule):
    """Training of a classifier of pixels, from the labels alone or also from a teacher.

    `curves` gathers one row an epoch: epoch, lr, train_loss, train_accuracy, grad_norm,
    images_per_second, seconds, with a teacher label_loss, teacher_loss, teacher_agreement and
    distilled_accuracy, and, every `validate_every` epochs and at the end, test_accuracy (with two
    heads also of each; with a moving average also its own). Training accuracies are of augmented
    images; of mixed ones, for the label that weighs most.
    """

    def __init__(self, classifier: Classifier, job: Job, report: Report | None = None):
        super().__init__()
        self.classifier, self.job, self.report = classifier, job, report
        self.recipe = recipe = job.recipe
        self._start = own_checkpoint(job.last, job.identity)
        self.first_epoch = self._start.epoch if self._start else 0
        self.curves = list(self._start.curves) if self._start else []
        self.average = None
        if recipe.ema_decay is not None:
            self.average = ModelEmaV3(classifier.net, recipe.ema_decay).requires_grad_(False)
        if self._start is not None:
            classifier.net.load_state_dict(self._start.model)
            if self.average is not None:
                self.average.module.load_state_dict(self._start.ema)
        self.two_heads = hasattr(classifier.net, "set_distilled_training")
        if self.two_heads and job.teacher is not None:
            classifier.net.set_distilled_training(True)  # type: ignore[operator]
        self.forward_pass: Callable = classifier
        if job.hardware.compile:
            self.forward_pass = torch.compile(classifier)
        self.mix = None
        if recipe.mixes:
            self.mix = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=len(job.images.classes),
            )
        self.schedule: Scheduler | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._sums: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._images = 0
        self._began = 0.0

    @property
    def epoch(self) -> int:
        """Epochs done before this one, over all restarts."""
        return self.first_epoch + self.current_epoch

    @property
    def updates(self) -> int:
        """Optimiser steps an epoch."""
        return math.ceil(self.trainer.num_training_batches / self.recipe.accumulate)

    @property
    def update(self) -> int:
        """Optimiser steps done, over all restarts."""
        return self.first_epoch * self.updates + self.trainer.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        self.trainer.fit_loop.setup_data()  # else the number of batches is not known yet
        lr = recipe.peak_lr(self.trainer.world_size)
        optimizer = make_optimizer(self.classifier.net, recipe, lr)
        self.schedule = make_schedule(optimizer, recipe, self.updates)
        if self._start is not None:
            optimizer.load_state_dict(self._start.optimizer)
            if self._start.scaler:
                self.trainer.precision_plugin.load_state_dict(self._start.scaler)
        self._optimizer = optimizer
        return optimizer

    def on_fit_start(self) -> None:
        if self.job.teacher is not None:
            self.job.teacher.to(self.device)

    def train_dataloader(self) -> DataLoader:
        job, trainer = self.job, self.trainer
        size = job.test.tensors[0].shape[-1]
        mean, std = self.classifier.mean.cpu(), self.classifier.std.cpu()
        images = Augmented(job.images, job.recipe, size, mean, std)
        self._draws = Draws(job.images, job.recipe, trainer.global_rank, trainer.world_size)
        return batches(images, self._draws, job.hardware.workers, self.device.type == "cuda")

    def on_train_epoch_start(self) -> None:
        self._draws.epoch = self.epoch
        self._began, self._images = time.perf_counter(), 0
        self.classifier.train()
        if self.recipe.step_on_epochs:
            assert self.schedule is not None
            self.schedule.step(self.epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Mixing, dropout and stochastic depth draw from these.
        seed = seeded(self.recipe.seed, self.epoch, batch_idx, self.trainer.global_rank, 1)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if not self.recipe.step_on_epochs:
            assert self.schedule is not None
            self.schedule.step_update(self.update)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pixels, labels = as_pixels(batch[0]), batch[1]
        smoothing, target = self.recipe.label_smoothing, labels
        if self.mix is not None:
            pixels, target = self.mix(pixels, labels)
            smoothing, labels = 0.0, target.argmax(dim=1)  # Mixup has smoothed them
        logits = self.forward_pass(pixels)
        logits, distilled = logits if isinstance(logits, tuple) else (logits, logits)
        if self.job.teacher is None:
            loss = cross_entropy(logits, target, label_smoothing=smoothing)
        else:
            said = self.job.teacher(pixels)
            how = self.job.teacher.distillation
            parts = distillation_loss(how, logits, distilled, said, target, smoothing)
            loss = parts.total
            self._add_teaching(parts, distilled, said, labels)
        self._add("train_loss", loss)
        self._add("train_accuracy", (logits.argmax(dim=1) == labels).float().mean())
        self._losses.append(loss.detach())
        if self.device.type == "cpu" or len(self._losses) >= CHECK_EVERY:
            self._check_finite(batch_idx)
        self._images += len(pixels)
        return loss

    def _add(self, name: str, value: Tensor) -> None:
        before = self._sums.get(name, torch.zeros((), device=self.device))
        self._sums[name] = before + value.detach()

    def _add_teaching(self, parts: Parts, distilled: Tensor, said: Tensor, labels: Tensor) -> None:
        taught, own = said.argmax(dim=1), distilled.argmax(dim=1)
        self._add("label_loss", parts.label)
        self._add("teacher_loss", parts.teacher)
        self._add("teacher_agreement", (own == taught).float().mean())
        self._add("distilled_accuracy", (own == labels).float().mean())

    def _check_finite(self, batch_idx: int) -> None:
        losses, self._losses = torch.stack(self._losses), []
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if bad:
            step = batch_idx + 1 - (len(losses) - 1 - bad[0])
            kept = ""
            if self.epoch:
                kept = f"; epoch {self.epoch} is kept in {self.job.last}"
            raise UserError(
                f"training of {self.classifier.name} diverged: loss {losses[bad[0]].item()} in "
                f"epoch {self.epoch + 1}, step {step}{kept}; try a smaller recipe.lr"
            )

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        largest = math.inf if self.recipe.clip_grad is None else self.recipe.clip_grad
        norm = torch.nn.utils.clip_grad_norm_(self.classifier.parameters(), largest)
        self._add("grad_norm", norm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 == self.trainer.num_training_batches
        if self.average is not None and (last or (batch_idx + 1) % self.recipe.accumulate == 0):
            self.average.update(self.classifier.net)

    def on_train_epoch_end(self) -> None:
        steps = int(self.trainer.num_training_batches)
        if self._losses:
            self._check_finite(steps - 1)
        sums = {
            name: float(self.trainer.strategy.reduce(value, reduce_op="mean")) / steps
            for name, value in self._sums.items()
        }
        sums["grad_norm"] *= steps / self.updates
        self._sums.clear()
        seconds = time.perf_counter() - self._began
        assert self._optimizer is not None
        done = self.epoch + 1
        row = {
            "epoch": done,
            "lr": self._optimizer.param_groups[0]["lr"],
            **sums,
            "images_per_second": self._images * self.trainer.world_size / seconds,
            "seconds": seconds,
        }
        if done % self.recipe.validate_every == 0 or done == self.recipe.epochs:
            row |= self._test()
        before = [r["test_accuracy"] for r in self.curves if "test_accuracy" in r]
        self.curves.append(row)
        if self.trainer.is_global_zero:
            if row.get("test_accuracy", -1) > max(before, default=-0.5):
                write_tensors(self.job.best, self.classifier.net.state_dict(), epoch=str(done))
            self._save(done)
            if self.report is not None:
                self.report(row)
        self.trainer.strategy.barrier()

    def _save(self, done: int) -> None:
        assert self._optimizer is not None
        checkpoint.save(
            self.job.last,
            self.job.identity,
            done,
            self.curves,
            self.classifier.net,
            self._optimizer,
            None if self.average is None else self.average.module,
            self.trainer.precision_plugin.state_dict(),
        )

    def _test(self) -> dict[str, float]:
        """Accuracies on the test images; where there are two heads, their average is the member."""
        net, found = self.classifier, {}
        found["test_accuracy"] = self._accuracy(net)
        if self.two_heads:
            for name, keep in (("class", 0), ("distilled", 1)):
                found[f"test_accuracy_{name}_head"] = self._accuracy(net, keep)
        if self.average is not None:
            trained, net.net = net.net, self.average.module
            found["test_accuracy_ema"] = self._accuracy(net)
            net.net = trained
        net.train()
        return found

    def _accuracy(self, classifier: Classifier, head: int | None = None) -> float:
        classifier.eval()
        right, images = 0, self.job.test
        with torch.no_grad():
            for pixels, labels in DataLoader(images, TEST_BATCH):
                shown = as_pixels(pixels.to(self.device))
                logits = classifier(shown) if head is None else one_head(classifier, shown, head)
                right += int((logits.argmax(dim=1) == labels.to(self.device)).sum())
                if self.job.hardware.fast_dev_run:
                    return right / len(labels)
        return right / len(images)


def make_optimizer(net: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser, with weight decay for what it decays: not norms, biases and tokens."""
    return create_optimizer_v2(
        net, opt=recipe.opt, lr=lr, weight_decay=recipe.weight_decay, **recipe.opt_args
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Scheduler:
    """timm's schedule around the optimiser's rates, with so many updates an epoch."""
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
    assert schedule is not None
    return schedule


def own_checkpoint(path: Path, identity: Mapping[str, Any]) -> checkpoint.Checkpoint | None:
    """Where a training stopped; None where it has not begun.

    Raises UserError when the file is of another training.
    """
    if not path.is_file():
        return None
    found = checkpoint.load(path)
    differ = next(differences(found.identity, json.loads(json.dumps(identity))), None)
    if differ:
        key, theirs, ours = differ
        raise UserError(
            f"{path} is of a training with {key} = {theirs}, now it is {ours}: go on with those "
            "settings, start anew with resume=never, or give this training another name"
        )
    return found


def one_head(classifier: Classifier, pixels: Tensor, head: int) -> Tensor:
    """Logits [B, K] of the class head (0) or the distillation head (1) of a distilled ViT."""
    net: Any = classifier.net
    features = net.forward_features(classifier.normalise(pixels))
    return (net.head, net.head_dist)[head](features[:, head])


def fit(classifier: Classifier, job: Job, report: Report | None = None) -> checkpoint.Checkpoint:
    """Train a classifier, from the last epoch that is kept; returns the last one.

    Args:
        classifier: where training starts, unless `job.last` is there.
        job: what is trained, on what and how.
        report: called with each epoch's row of the curves (see `Fit`) in the process that trains.

    Raises UserError when the kept checkpoint is of another training, and when a loss is not finite.
    """
    recipe, hardware = job.recipe, job.hardware
    module = Fit(classifier, job, report)
    left = recipe.epochs - module.first_epoch
    if left > 0:
        seeded(recipe.seed)
        with quiet():
            trainer(
                hardware.accelerator,
                devices=hardware.devices,
                strategy="ddp_spawn" if hardware.devices > 1 else "auto",
                precision=hardware.precision,
                max_epochs=left,
                accumulate_grad_batches=recipe.accumulate,
                limit_train_batches=1 if hardware.fast_dev_run else 1.0,
                use_distributed_sampler=False,
            ).fit(module)
    return checkpoint.load(job.last)
