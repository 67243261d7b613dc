"""Where models run: devices, worker processes, and the GPU of a job of a sweep."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.cli.keys import naming
from experiments.cli.values import one_of, positive_int
from netkin.errors import UserError
from netkin.jobs.devices import device_of
from netkin.run import Processes
from netkin.runner import Loader, Runner
from netkin.store.lease import lease
from netkin.training.weights import Hardware
from netkin.zoo.execution import MEMORY_FORMATS, PRECISIONS, Execution, check_execution

AUTO = "auto"
BATCH_SIZE = 100
"""Images at once with hardware.batch_size=auto; it is halved where memory runs out."""
TRAIN_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of training, by Lightning's names."""


def on_cpu(config: DictConfig) -> bool:
    """Whether models run on the CPU."""
    one_of(config.hardware.accelerator, ("auto", "cpu", "gpu"), "hardware.accelerator")
    return device_of(config.hardware.accelerator).type == "cpu"


def device(config: DictConfig) -> torch.device:
    """The device of work that runs on one."""
    return device_of(config.hardware.accelerator)


def device_count(config: DictConfig) -> int:
    """The number of devices that each member's work is split over."""
    number = config.hardware.devices
    if number == "auto":
        return 1 if on_cpu(config) else torch.cuda.device_count()
    positive_int(number, "hardware.devices", auto=True)
    if not on_cpu(config) and number > torch.cuda.device_count():
        raise UserError(
            f"hardware.devices={number}, but this machine has {torch.cuda.device_count()} GPU(s)"
        )
    return number


def members_at_once(config: DictConfig) -> int:
    """Members that are worked on side by side: by default one a CPU core, or one on a GPU."""
    number, devices = config.hardware.members_at_once, device_count(config)
    if devices > 1:
        if number not in ("auto", 1):
            raise UserError(
                f"hardware.members_at_once={number} does not go with hardware.devices={devices}: "
                "the devices share each member's work, so leave hardware.members_at_once=auto"
            )
        return devices
    if number == "auto":
        return cores() if on_cpu(config) else 1
    return positive_int(number, "hardware.members_at_once", auto=True)


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def build_runner(config: DictConfig) -> Runner:
    """Where and how models run.

    Stored shards are loaded on a CPU by the model's process, for a GPU by two others.
    """
    hardware, gpu = config.hardware, not on_cpu(config)
    one_of(hardware.craft_precision, tuple(PRECISIONS), "hardware.craft_precision")
    one_of(hardware.memory_format, (*MEMORY_FORMATS, AUTO), "hardware.memory_format")
    for name in ("fuse", "craft_compile"):
        one_of(hardware[name], (True, False), f"hardware.{name}")
    layout = hardware.memory_format
    execution = Execution(
        hardware.craft_precision,
        hardware.fuse,
        Execution.memory_format if layout == AUTO else layout,
        hardware.craft_compile,
    )
    with naming({"precision": "hardware.craft_precision"}):
        check_execution(execution, gpu)
    threads = hardware.decode_threads
    if threads == AUTO:
        threads = cores() if gpu else 1
    loader = Loader(
        _loader_processes(config, auto=2 * gpu),
        positive_int(hardware.prefetch, "hardware.prefetch"),
        gpu if hardware.pin_memory == AUTO else bool(hardware.pin_memory),
        positive_int(threads, "hardware.decode_threads", auto=True),
    )
    size = hardware.batch_size
    if size == AUTO:
        size = BATCH_SIZE
    positive_int(size, "hardware.batch_size", auto=True)
    return Runner(hardware.accelerator, size, execution, loader)


def member_hardware(config: DictConfig) -> Hardware:
    """How evaluate.py trains members that lack weights: each in one process, on its device."""
    hardware = config.hardware
    one_of(hardware.train_precision, TRAIN_PRECISIONS, "hardware.train_precision")
    one_of(hardware.train_compile, (True, False), "hardware.train_compile")
    return Hardware(
        accelerator=hardware.accelerator,
        precision=hardware.train_precision,
        compile=hardware.train_compile,
    )


def training_hardware(config: DictConfig) -> Hardware:
    """How train.py trains a model: on all of the run's devices."""
    one_of(config.fast_dev_run, (True, False), "fast_dev_run")
    devices = device_count(config)
    return replace(
        member_hardware(config),
        devices=devices,
        workers=_loader_processes(
            config, auto=0 if on_cpu(config) else max(1, cores() // devices - 1)
        ),
        fast_dev_run=config.fast_dev_run,
    )


def _loader_processes(config: DictConfig, auto: int) -> int:
    """Processes of a device that load or augment images."""
    number = config.hardware.loader_processes
    if number == "auto":
        return auto
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise UserError(
            f"hardware.loader_processes must be auto or a whole number of 0 or more, got {number!r}"
        )
    return number


def processes(config: DictConfig) -> Processes:
    """The processes that work on several models at once."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and not on_cpu(config):
        take_gpu(Path(config.store.dir).expanduser().resolve())
    threads = positive_int(config.hardware.threads, "hardware.threads")
    return Processes(
        members_at_once(config), threads, device_count(config), gpus=not on_cpu(config)
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
