"""One member's training: timm's optimiser, schedule and augmentation in a Lightning module."""

from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from netkin.data.images import Images
from netkin.errors import UserError
from netkin.jobs import Advance
from netkin.training.recipe import Recipe
from netkin.transfer.engine import quiet, trainer
from netkin.zoo.build import Classifier


class Augmented(Dataset):
    """Training images under random augmentation, as uint8 [3, H, W], with their labels."""

    def __init__(self, images: Images, transform: Callable):
        self.images, self.transform, self.labels = images, transform, images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images.load(index)), self.labels[index]


class Fit(pl.LightningModule):
    """Cross-entropy training of a classifier of pixels.

    `curves` gathers one row an epoch: epoch, lr, train_loss, train_accuracy and, every
    `validate_every` epochs, test_accuracy.
    """

    def __init__(
        self, classifier: Classifier, recipe: Recipe, classes: int, steps: int, advance: Advance
    ):
        super().__init__()
        self.classifier, self.recipe, self.steps, self.advance = classifier, recipe, steps, advance
        self.schedule: Scheduler | None = None
        # Their checks of every batch's labels would cost a tenth of a step.
        metric = {"average": "micro", "validate_args": False}
        self.train_accuracy = MulticlassAccuracy(classes, **metric)
        self.test_accuracy = MulticlassAccuracy(classes, **metric)
        self.losses: list[Tensor] = []
        self.curves: list[dict[str, float]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        optimizer = create_optimizer_v2(
            self.classifier.net,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            **recipe.opt_args,
        )
        self.schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=self.steps,
        )
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert self.schedule is not None
        self.schedule.step_update(self.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        pixels, labels = batch
        logits = self.classifier(pixels.float() / 255)
        loss = cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if not loss.isfinite():
            raise UserError(
                f"training of {self.classifier.name} diverged: loss {loss.item()} in epoch "
                f"{self.current_epoch + 1}, step {batch_idx + 1}; try a smaller recipe.lr"
            )
        self.losses.append(loss.detach())
        self.train_accuracy.update(logits, labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pixels, labels = batch
        self.test_accuracy.update(self.classifier(pixels.float() / 255), labels)

    def on_train_epoch_end(self) -> None:
        row = {
            "epoch": self.current_epoch + 1,
            "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": torch.stack(self.losses).mean().item(),
            "train_accuracy": self.train_accuracy.compute().item(),
        }
        if self.test_accuracy.update_called:
            row["test_accuracy"] = self.test_accuracy.compute().item()
        self.curves.append(row)
        self.losses.clear()
        self.train_accuracy.reset()
        self.test_accuracy.reset()
        self.advance(1)


def fit(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    test: TensorDataset,
    accelerator: str,
    advance: Advance,
) -> list[dict[str, float]]:
    """Train a classifier in place; returns its curves (see `Fit`).

    Args:
        classifier: whose weights are trained.
        recipe: how.
        images: the training images, cut to the classifier's input size by the augmentation.
        test: pixels [I, 3, H, W] uint8 and labels [I], for the accuracy in the curves.
        accelerator: as Lightning's Trainer takes it.
        advance: called with 1 after every epoch.
    """
    size = test.tensors[0].shape[-1]
    steps = len(images.ids) // recipe.batch_size
    if steps == 0:
        raise UserError(
            f"recipe.batch_size={recipe.batch_size} is larger than the training set "
            f"({len(images.ids)} images)"
        )
    transform = create_transform(size, is_training=True, use_prefetcher=True, **recipe.augmentation)
    # Augmentation draws from torch's, numpy's and Python's global generators.
    pl.seed_everything(recipe.seed, workers=True, verbose=False)
    loader = DataLoader(
        Augmented(images, cast(Callable, transform)),
        recipe.batch_size,
        shuffle=True,
        drop_last=True,
    )
    module = Fit(classifier, recipe, len(images.classes), steps, advance)
    with quiet():
        trainer(
            accelerator,
            max_epochs=recipe.epochs,
            gradient_clip_val=recipe.clip_grad,
            check_val_every_n_epoch=recipe.validate_every,
            num_sanity_val_steps=0,
        ).fit(module, loader, DataLoader(test, 250))
    classifier.eval()
    return module.curves
