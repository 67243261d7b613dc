"""One training in Lightning, with timm's optimiser, schedule, augmentation and mixing."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from timm.data.mixup import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from netkin.data.images import Images
from netkin.errors import UserError
from netkin.lightning import quiet, trainer
from netkin.store.files import write_tensors
from netkin.store.layout import owner
from netkin.training import checkpoint
from netkin.training.checkpoint import Checkpoint
from netkin.training.data import Augmented, Draws, as_pixels, batches, seeded
from netkin.training.distillation import Teacher, distillation_loss
from netkin.training.recipe import Recipe, make_optimizer, make_schedule
from netkin.training.weights import Hardware
from netkin.zoo.build import Classifier
from netkin.zoo.execution import laid_out

CHECK_EVERY = 50
"""Steps between two checks of the loss for NaN, each of which waits for a GPU; and between two rows
of steps."""
LONG = 100
"""Steps of an epoch from which on there are rows of steps."""
TEST_BATCH = 250
"""Test images through the model at once."""
Report = Callable[[Mapping[str, float]], None]
"""Called with an epoch's row of the curves, and within long epochs with a row of some steps."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        identity: everything that the weights depend on, as JSON values, and the member's name; a
            checkpoint of another identity is refused.
        recipe: how the model is trained.
        images: the training images; the augmentation crops them to the classifier's input size.
        test: pixels [I, 3, H, W] uint8 and labels [I], for the test accuracy in the curves.
        folder: for the files below; removed at the end.
        hardware: where it runs.
        teacher: of a distillation; None trains from the labels alone.
    """

    identity: Mapping[str, Any]
    recipe: Recipe
    images: Images
    test: TensorDataset
    folder: Path
    hardware: Hardware = field(default_factory=Hardware)
    teacher: Teacher | None = None

    @property
    def last(self) -> Path:
        """The checkpoint after the last epoch that is done."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights with the highest test accuracy so far, where the recipe keeps these."""
        return self.folder / "best.safetensors"

    @property
    def rows(self) -> Path:
        """What would be reported, a JSON object a line, where other processes train."""
        return self.folder / "rows.jsonl"


class Fit(pl.LightningModule):
    """Training of a classifier of pixels, from the labels alone or also from a teacher.

    `curves` has one row an epoch: epoch, lr, train_loss, train_accuracy, grad_norm,
    images_per_second and seconds; with a teacher label_loss, teacher_loss, teacher_agreement and
    distilled_accuracy; every `validate_every` epochs and at the end test_accuracy (two heads
    predict with their mean) and, where they apply, test_accuracy_class_head,
    test_accuracy_distilled_head and test_accuracy_ema. Losses are in nats, accuracies in [0, 1].
    Training accuracies are on augmented images; a mixed image has the label with the largest share.

    In epochs of 100 steps or more there is a row every 50: step (over all epochs), loss (the mean
    of these steps, of the first process), lr and images_per_second.

    Raises UserError when the job's checkpoint is of another training, and in training when a loss
    is not finite.
    """

    schedule: Scheduler
    optimizer: torch.optim.Optimizer

    def __init__(self, classifier: Classifier, job: Job, report: Report | None = None):
        super().__init__()
        self.classifier, self.job, self.report = classifier, job, report
        self.layout = laid_out(classifier.net, job.hardware.memory_format)
        self.recipe = recipe = job.recipe
        self.average = None
        if recipe.ema_decay is not None:
            self.average = ModelEmaV3(classifier.net, recipe.ema_decay).requires_grad_(False)
        self.first_epoch, self.curves, self._start = 0, [], None
        if job.last.is_file():
            self._start = start = checkpoint.load(job.last, job.identity)
            self.first_epoch, self.curves = start.epoch, list(start.curves)
            classifier.net.load_state_dict(start.model)
            if self.average is not None:
                self.average.module.load_state_dict(start.ema)
        self.two_heads = hasattr(classifier.net, "set_distilled_training")
        if self.two_heads and job.teacher is not None:
            classifier.net.set_distilled_training(True)  # type: ignore[operator]
        self.forward_pass = torch.compile(classifier) if job.hardware.compile else classifier
        self.mix = None
        if recipe.mixes:
            self.mix = Mixup(
                recipe.mixup,
                recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=len(job.images.classes),
            )
        self._sums: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []  # since the last check
        self._images, self._began = 0, 0.0

    @property
    def epoch(self) -> int:
        """Epochs done before this one, counted over all restarts."""
        return self.first_epoch + self.current_epoch

    @property
    def updates(self) -> int:
        """Optimiser steps an epoch."""
        return math.ceil(self.trainer.num_training_batches / self.recipe.accumulate)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser at the peak learning rate, or as the checkpoint has it."""
        recipe = self.recipe
        self.trainer.fit_loop.setup_data()  # before this the number of batches is unknown
        lr = recipe.peak_lr(self.trainer.world_size)
        optimizer = make_optimizer(self.classifier.net, recipe, lr)
        self.schedule = make_schedule(optimizer, recipe, self.updates)
        if self._start is not None:
            optimizer.load_state_dict(self._start.optimizer)
            if self._start.scaler:
                self.trainer.precision_plugin.load_state_dict(self._start.scaler)
        self.optimizer = optimizer
        return optimizer

    def on_fit_start(self) -> None:
        if self.job.teacher is not None:
            self.job.teacher.classifier.to(self.device)

    def train_dataloader(self) -> DataLoader:
        """The batches of this rank."""
        job, trainer = self.job, self.trainer
        size = job.test.tensors[0].shape[-1]
        mean, std = self.classifier.mean.cpu(), self.classifier.std.cpu()
        images = Augmented(job.images, job.recipe, size, mean, std)
        self._draws = Draws(job.images, job.recipe, trainer.global_rank, trainer.world_size)
        return batches(images, self._draws, job.hardware.workers, self.device.type == "cuda")

    def on_train_epoch_start(self) -> None:
        """Set the epoch of the draws, and of a schedule that changes from epoch to epoch."""
        self._draws.epoch = self.epoch
        self._began, self._images = time.perf_counter(), 0
        self.classifier.train()
        if self.recipe.step_on_epochs:
            self.schedule.step(self.epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the generators by the step, and set the learning rate of the step."""
        # The generators of mixing, dropout and stochastic depth.
        seed = seeded(self.recipe.seed, self.epoch, batch_idx, self.trainer.global_rank, 1)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if not self.recipe.step_on_epochs:
            self.schedule.step_update(self.first_epoch * self.updates + self.trainer.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch of `netkin.training.data.Augmented`, in nats."""
        pixels, labels = as_pixels(batch[0]).contiguous(memory_format=self.layout), batch[1]
        smoothing, target = self.recipe.label_smoothing, labels
        if self.mix is not None:
            pixels, target = self.mix(pixels, labels)
            smoothing, labels = 0.0, target.argmax(dim=1)  # Mixup has smoothed the target
        if self.recipe.attack is not None:
            pixels = self._attacked(pixels, labels, batch_idx)
        logits = self.forward_pass(pixels)
        logits, distilled = logits if isinstance(logits, tuple) else (logits, logits)
        if self.job.teacher is None:
            loss = cross_entropy(logits, target, label_smoothing=smoothing)
        else:
            taught = self.job.teacher(pixels)
            parts = distillation_loss(
                self.job.teacher.distillation, logits, distilled, taught, target, smoothing
            )
            loss = parts.label + parts.teacher
            self._add("label_loss", parts.label)
            self._add("teacher_loss", parts.teacher)
            predicted = distilled.argmax(dim=1)
            self._add("teacher_agreement", (predicted == taught.argmax(dim=1)).float().mean())
            self._add("distilled_accuracy", (predicted == labels).float().mean())
        self._add("train_loss", loss)
        self._add("train_accuracy", (logits.argmax(dim=1) == labels).float().mean())
        self._losses.append(loss.detach())
        self._images += len(pixels)
        if (batch_idx + 1) % CHECK_EVERY == 0:
            self._check_finite(batch_idx)
        return loss

    def _report(self, row: dict[str, float]) -> None:
        """From the first process, to a function or through a file."""
        if not self.trainer.is_global_zero:
            return
        if self.report is not None:
            self.report(row)
        elif self.trainer.world_size > 1:
            self.job.folder.mkdir(parents=True, exist_ok=True)
            with self.job.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _attacked(self, pixels: Tensor, labels: Tensor, batch_idx: int) -> Tensor:
        """The batch as the recipe's attack changes it, on the model in eval mode as it is now."""
        assert self.recipe.attack is not None
        step = f"{self.epoch}/{batch_idx}/{self.trainer.global_rank}"
        keys = [f"{step}/{i}" for i in range(len(pixels))]
        self.classifier.eval()
        adversarial = self.recipe.attack.perturb(self.classifier, pixels, labels, keys)
        self.classifier.train()
        return adversarial.detach()

    def _add(self, name: str, value: Tensor) -> None:
        before = self._sums.get(name, torch.zeros((), device=self.device))
        self._sums[name] = before + value.detach()

    def _check_finite(self, batch_idx: int) -> None:
        """Check the losses since the last time, and report these steps of a long epoch."""
        losses, self._losses = torch.stack(self._losses), []
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if bad:
            step = batch_idx + 1 - (len(losses) - 1 - bad[0])
            stored = f"; epoch {self.epoch} is kept in {self.job.last}" if self.epoch else ""
            raise UserError(
                f"training of {self.classifier.name} diverged: loss {losses[bad[0]].item()} in "
                f"epoch {self.epoch + 1}, step {step}{stored}; try a recipe with a smaller lr"
            )
        batches = int(self.trainer.num_training_batches)
        if batches >= LONG and len(losses) == CHECK_EVERY:
            self._report(
                {
                    "step": self.epoch * batches + batch_idx + 1,
                    "loss": losses.mean().item(),
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "images_per_second": self._images_per_second(),
                }
            )

    def _images_per_second(self) -> float:
        """In this epoch so far, on all devices."""
        return self._images * self.trainer.world_size / (time.perf_counter() - self._began)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the gradient and add its norm to the curves."""
        largest = math.inf if self.recipe.clip_grad is None else self.recipe.clip_grad
        norm = torch.nn.utils.clip_grad_norm_(self.classifier.parameters(), largest)
        self._add("grad_norm", norm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the moving average after each optimiser step."""
        final = batch_idx + 1 == self.trainer.num_training_batches
        if self.average is not None and (final or (batch_idx + 1) % self.recipe.accumulate == 0):
            self.average.update(self.classifier.net)

    def on_train_epoch_end(self) -> None:
        """Complete the row of the curves, and store weights and checkpoint."""
        steps = int(self.trainer.num_training_batches)
        if self._losses:
            self._check_finite(steps - 1)
        sums = {
            name: float(self.trainer.strategy.reduce(value, reduce_op="mean")) / steps
            for name, value in self._sums.items()
        }
        sums["grad_norm"] *= steps / self.updates
        self._sums.clear()
        done = self.epoch + 1
        row = {
            "epoch": done,
            "lr": self.optimizer.param_groups[0]["lr"],
            **sums,
            "images_per_second": self._images_per_second(),
            "seconds": time.perf_counter() - self._began,
        }
        if done % self.recipe.validate_every == 0 or done == self.recipe.epochs:
            row |= self._accuracies()
        earlier = checkpoint.best(self.curves)
        self.curves.append(row)
        if self.trainer.is_global_zero:
            better = row.get("test_accuracy", -1) > (-1 if earlier is None else earlier)
            if better and self.recipe.keep == "best":
                weights = self.classifier.net.state_dict()
                write_tensors(self.job.best, weights, owner(self.job.best, self.job.identity))
            Checkpoint(
                self.job.identity,
                done,
                self.curves,
                self.classifier.net.state_dict(),
                {} if self.average is None else self.average.module.state_dict(),
                self.optimizer.state_dict(),
                self.trainer.precision_plugin.state_dict(),
            ).save(self.job.last)
            self._report(row)
        self.trainer.strategy.barrier()

    def _accuracies(self) -> dict[str, float]:
        """On the test images, for the curves."""
        classifier, average = self.classifier.eval(), self.average
        predictors: dict[str, Callable[[Tensor], Tensor]] = {"": classifier}
        if self.two_heads:
            predictors["_class_head"] = partial(one_head, classifier, head=0)
            predictors["_distilled_head"] = partial(one_head, classifier, head=1)
        if average is not None:
            average.module.eval()
            predictors["_ema"] = lambda pixels: average.module(classifier.normalise(pixels))
        correct, tested = dict.fromkeys(predictors, 0), 0
        with torch.no_grad():
            for batch, labels in DataLoader(self.job.test, TEST_BATCH):
                pixels, labels = as_pixels(batch.to(self.device)), labels.to(self.device)
                tested += len(labels)
                for name, predict in predictors.items():
                    correct[name] += int((predict(pixels).argmax(dim=1) == labels).sum())
                if self.job.hardware.fast_dev_run:
                    break
        classifier.train()
        return {f"test_accuracy{name}": number / tested for name, number in correct.items()}


def fit(classifier: Classifier, job: Job, report: Report | None = None) -> checkpoint.Checkpoint:
    """Train a classifier from the last epoch that is stored; returns the checkpoint of the end.

    `report` is called in the process that trains. Raises UserError when the stored checkpoint is of
    another training, when an epoch does not fill one batch, and when a loss is not finite.
    """
    recipe, hardware = job.recipe, job.hardware
    module = Fit(classifier, job, report)
    remaining = recipe.epochs - module.first_epoch
    if remaining > 0:
        seeded(recipe.seed)
        with quiet():
            trainer(
                hardware.accelerator,
                devices=hardware.devices,
                strategy="ddp_spawn" if hardware.devices > 1 else "auto",
                precision=hardware.precision,
                max_epochs=remaining,
                accumulate_grad_batches=recipe.accumulate,
                limit_train_batches=1 if hardware.fast_dev_run else 1.0,
                use_distributed_sampler=False,
            ).fit(module)
    return checkpoint.load(job.last)


def one_head(classifier: Classifier, pixels: Tensor, head: int) -> Tensor:
    """Logits [B, K] of the class head (0) or the distillation head (1) of timm's distilled ViT, on
    pixels [B, 3, H, W] in [0, 1]."""
    net: Any = classifier.net
    features = net.forward_features(classifier.normalise(pixels))
    return (net.head, net.head_dist)[head](features[:, head])
