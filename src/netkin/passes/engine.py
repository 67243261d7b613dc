"""Runs a pass with Lightning's Trainer."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader, Dataset

from netkin.jobs.signals import shielded_loader
from netkin.passes.setting import Loader, Setting

OURS = (
    # On a CPU this process loads the shards: they are few, and the pool uses all cores.
    ".*does not have many workers.*",
    # The passes store their results and return nothing.
    "predict returned None.*",
    # The moving average of the weights is in eval mode during training, as it must be.
    r".*module\(s\) in eval mode.*",
    # Lightning 2.6 uses a name that later releases of torch have changed.
    ".*isinstance.treespec, LeafSpec.*",
    # On a cluster's login nodes, and in its jobs: the passes use no other processes than ours.
    "The `srun` command is available.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its hints: netkin displays progress and results itself."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in OURS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.setLevel(level)


def trainer(accelerator: str, **kwargs: Any) -> pl.Trainer:
    """A Trainer without logs and checkpoints, on one device unless `kwargs` change that.

    The passes use several devices as several processes with one each: see `netkin.jobs.pool`. They
    ignore a cluster's scheduler, whose signals Lightning would handle and whose variables it would
    check.
    """
    return pl.Trainer(
        accelerator=accelerator,
        plugins=[LightningEnvironment()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, "enable_checkpointing": False, **kwargs},
    )


class Items(Dataset):
    """Loads each of some work items with a function."""

    def __init__(self, items: list, load: Callable[[Any], dict]):
        self.items, self.load = items, load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.load(self.items[index])


class Work(pl.LightningDataModule):
    """Work items, each loaded by a function."""

    def __init__(self, items: list, load: Callable[[Any], dict]):
        super().__init__()
        self.items, self.load = items, load
        self.loader = Loader()

    def predict_dataloader(self) -> DataLoader:
        """The items in order, one at a time."""
        loader = self.loader
        return shielded_loader(
            Items(self.items, self.load),
            batch_size=None,
            num_workers=loader.workers,
            prefetch_factor=loader.prefetch if loader.workers else None,
            pin_memory=loader.pin_memory,
        )


def predict(setting: Setting, module: pl.LightningModule, work: Work) -> None:
    """Call `module.predict_step` on each work item; it stores the results."""
    work.loader = setting.loader
    with quiet():
        trainer(setting.accelerator, inference_mode=False).predict(
            module, datamodule=work, return_predictions=False
        )
