"""Lightning as the passes and the training use it: quiet, on one device unless told otherwise."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn

LIGHTNING_HINTS = (
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


class Step(pl.LightningModule):
    """A function of loaded items, and the network that it runs."""

    def __init__(self, step: Callable[[dict], None], network: nn.Module):
        super().__init__()
        self.step, self.network = step, network

    def predict_step(self, batch: dict) -> None:
        self.step(batch)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its hints: netkin displays progress and results itself."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in LIGHTNING_HINTS:
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
