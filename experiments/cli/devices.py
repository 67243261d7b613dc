"""Where models run: devices, worker processes, and the GPU of a job of a sweep."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.cli.values import naming
from netkin.errors import UserError
from netkin.run import Processes
from netkin.runner import Loader, Runner, device_of
from netkin.store.lease import lease
from netkin.training.weights import Hardware
from netkin.zoo.execution import Execution, check_execution

BATCH_SIZE = 100
"""Images at once with hardware.batch_size=auto; it is halved where memory runs out."""


def device(config: DictConfig) -> torch.device:
    """The device of work that runs on one."""
    return device_of(config.hardware.accelerator)


def on_cpu(config: DictConfig) -> bool:
    """Whether models run on the CPU."""
    return device(config).type == "cpu"


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _or(value: Any, auto: Any) -> Any:
    """A setting's value, or what `auto` stands for."""
    return auto if value == "auto" else value


def device_count(config: DictConfig) -> int:
    """The number of devices that each member's work is split over."""
    gpus = 0 if on_cpu(config) else torch.cuda.device_count()
    number = _or(config.hardware.devices, gpus or 1)
    if not on_cpu(config) and number > gpus:
        raise UserError(f"hardware.devices={number}, but this machine has {gpus} GPU(s)")
    return number


def processes(config: DictConfig) -> Processes:
    """The processes that work on several models: by default one a CPU core, or one on a GPU."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and not on_cpu(config):
        take_gpu(Path(config.store.dir).expanduser().resolve())
    devices, number = device_count(config), config.hardware.members_at_once
    if devices > 1 and number not in ("auto", 1):
        raise UserError(
            f"hardware.members_at_once={number} does not go with hardware.devices={devices}: "
            "the devices share each member's work, so leave hardware.members_at_once=auto"
        )
    workers = devices if devices > 1 else _or(number, cores() if on_cpu(config) else 1)
    return Processes(workers, config.hardware.threads, devices, gpus=not on_cpu(config))


def build_runner(config: DictConfig) -> Runner:
    """Where and how models run.

    Stored shards are loaded on a CPU by the model's process, for a GPU by two others.
    """
    hardware, gpu = config.hardware, not on_cpu(config)
    execution = Execution(
        hardware.craft_precision,
        hardware.fuse,
        _or(hardware.memory_format, Execution.memory_format),
        hardware.craft_compile,
    )
    with naming({"precision": "hardware.craft_precision"}):
        check_execution(execution, gpu)
    loader = Loader(
        _or(hardware.loader_processes, 2 * gpu),
        hardware.prefetch,
        bool(_or(hardware.pin_memory, gpu)),
        _or(hardware.decode_threads, cores() if gpu else 1),
    )
    return Runner(hardware.accelerator, _or(hardware.batch_size, BATCH_SIZE), execution, loader)


def member_hardware(config: DictConfig) -> Hardware:
    """How evaluate.py trains members that lack weights: each in one process, on its device."""
    hardware = config.hardware
    return Hardware(
        accelerator=hardware.accelerator,
        precision=hardware.train_precision,
        compile=hardware.train_compile,
    )


def training_hardware(config: DictConfig) -> Hardware:
    """How train.py trains a model: on all of the run's devices."""
    devices = device_count(config)
    auto = 0 if on_cpu(config) else max(1, cores() // devices - 1)
    return replace(
        member_hardware(config),
        devices=devices,
        workers=_or(config.hardware.loader_processes, auto),
        fast_dev_run=config.fast_dev_run,
    )


_gpu_lease = ExitStack()
_has_device = False


def take_gpu(store: Path) -> None:
    """Reserve a GPU for this process of a sweep, on a machine with several, while it lives.

    Raises UserError where all GPUs are reserved by leases in the store.
    """
    global _has_device
    if _has_device or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    host = os.uname().nodename
    for gpu in gpus:
        if _gpu_lease.enter_context(lease(store, store / "devices" / host / gpu)):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            _has_device = True
            return
    raise UserError(
        f"all {len(gpus)} GPUs of {host} have a job of a sweep on this store: use at most "
        f"hydra.launcher.n_jobs={len(gpus)}"
    )
