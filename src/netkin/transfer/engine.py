"""Lightning's Trainer as the passes use it."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader, Dataset

from netkin.transfer.setting import Loader, Setting

OURS = (
    # On a CPU shards are loaded by this process: they are few, and the pool fills the cores.
    ".*does not have many workers.*",
    # The passes store what they make and return nothing.
    "predict returned None.*",
    # So is a moving average of the weights while they are trained.
    r".*module\(s\) in eval mode.*",
    # Lightning 2.6 calls what later releases of torch have renamed.
    ".*isinstance.treespec, LeafSpec.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its hints: progress and results are shown by netkin itself."""
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
    """A Trainer, on one device unless told otherwise, that writes nothing of its own.

    The passes use several devices as several processes with one each: see `netkin.jobs.pool`. A
    cluster's scheduler is no business of theirs: Lightning would take over its signals and mistrust
    its variables.
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
        loader = self.loader
        return DataLoader(
            Items(self.items, self.load),
            batch_size=None,
            num_workers=loader.workers,
            prefetch_factor=loader.prefetch if loader.workers else None,
            pin_memory=loader.pin_memory,
        )


def predict(setting: Setting, module: pl.LightningModule, work: Work) -> None:
    """Have `module.predict_step` do each work item; it stores what it makes."""
    work.loader = setting.loader
    with quiet():
        trainer(setting.accelerator, inference_mode=False).predict(
            module, datamodule=work, return_predictions=False
        )
