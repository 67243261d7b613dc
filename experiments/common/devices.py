"""Where models run: devices, worker processes, and the GPU of a job of a sweep."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.common.values import positive_int
from netkin.errors import UserError
from netkin.jobs.pool import Display, Jobs
from netkin.pipeline import PRELOAD
from netkin.store.lease import lease


def on_cpu(config: DictConfig) -> bool:
    """Whether models run on the CPU."""
    return config.accelerator == "cpu" or not torch.cuda.is_available()


def device_count(config: DictConfig) -> int:
    """Over how many devices each member's work is split."""
    number = config.trainer.devices
    if number == "auto":
        return 1 if on_cpu(config) else torch.cuda.device_count()
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"trainer.devices must be auto or a whole number, got {number!r}")
    if not on_cpu(config) and number > torch.cuda.device_count():
        raise UserError(
            f"trainer.devices={number}, but this machine shows {torch.cuda.device_count()} GPU(s)"
        )
    return number


def members_at_once(config: DictConfig) -> int:
    """As many as the config says, by default one a CPU core, or one a GPU."""
    number, split = config.workers, device_count(config)
    if split > 1:
        if number not in ("auto", 1, split):
            raise UserError(
                f"workers={number} does not go with trainer.devices={split}, which is as many "
                "workers, one a device: leave workers=auto"
            )
        return split
    if number == "auto":
        number = len(os.sched_getaffinity(0)) if on_cpu(config) else 1
    positive_int(number, "workers")
    return number


def build_jobs(
    config: DictConfig,
    context: Any,
    display: Display,
    preload: Sequence[str] = PRELOAD,
    members: int | None = None,
) -> Jobs:
    """Processes for the work, which find `preload` imported; no more than `members`, if given."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and not on_cpu(config):
        take_gpu(Path(config.store.dir).expanduser().resolve())
    positive_int(config.threads, "threads")
    number, split = members_at_once(config), device_count(config)
    return Jobs(
        context,
        number if members is None or split > 1 else min(number, members),
        config.threads,
        display,
        preload,
        devices=split,
        gpus=not on_cpu(config),
    )


_mine = ExitStack()
_has_device = False


def take_gpu(store: Path) -> None:
    """Give this process of a sweep a GPU of its own, where the machine shows it several.

    For as long as the process lives: a lease in the store keeps the others off it.
    """
    global _has_device
    if _has_device or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    host = os.uname().nodename
    for gpu in gpus:
        if _mine.enter_context(lease(store, store / "devices" / host / gpu)):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            _has_device = True
            return
    raise UserError(
        f"all {len(gpus)} GPUs of {host} have a job of a sweep on this store: use at most "
        f"hydra.launcher.n_jobs={len(gpus)}"
    )
