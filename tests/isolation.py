"""The state of this process that a test, or a command run in it, must leave as it was."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

SIGNALS = sorted({*signal.Signals} - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})
"""All that can be handled, but for the one that torch's first loader handles from then on."""
LOADED = {"PYTEST_CURRENT_TEST", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"}
LOADED |= {"PYTORCH_NVML_BASED_CUDA_CHECK", "_RJEM_MALLOC_CONF", "MASTER_PORT"}
LOADED |= {"TORCHINDUCTOR_CACHE_DIR"}
"""Variables of the environment that pytest changes, and scikit-learn, Lightning, polars and torch,
once they are imported or, the third, have begun several processes."""

State = dict[str, Any]


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in LOADED}


def _handlers() -> list[logging.Handler]:
    """The root logger's files, less pytest's, which come and go with a test's phases."""
    return [h for h in logging.getLogger().handlers if type(h) is logging.FileHandler]


def _figures() -> list[int]:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot.get_fignums() if pyplot else []


def _style() -> dict[str, Any]:
    matplotlib = sys.modules.get("matplotlib")
    return dict(matplotlib.rcParams) if matplotlib else {}


def _stop_requested() -> int:
    errors = sys.modules.get("netkin.errors")
    return errors.Stopped.requested if errors else 0


def _threads() -> list[str]:
    """Those that go on; one of a pool that was shut down has some seconds to end."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(3.0)
    return sorted(
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    )


COMPILER = "torch's compiler"
OF_COMPILER = {COMPILER, "environment", "sys.path", "threads"}
"""What torch's compiler changes once it is imported."""

READ: dict[str, Callable[[], Any]] = {
    "log handlers": _handlers,
    "logging.raiseExceptions": lambda: logging.raiseExceptions,
    "signal handlers": lambda: {number.name: signal.getsignal(number) for number in SIGNALS},
    "environment": _environment,
    "sys.argv": lambda: [*sys.argv],
    "sys.path": lambda: [*sys.path],
    "folder": os.getcwd,
    "torch's threads": torch.get_num_threads,
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's gradients": torch.is_grad_enabled,
    "torch's inference mode": torch.is_inference_mode_enabled,
    "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "torch's matmul precision": torch.get_float32_matmul_precision,
    "cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "Hydra's global state": lambda: GlobalHydra.instance().hydra,
    "Hydra's config of the job": lambda: HydraConfig.instance().cfg,
    "matplotlib's figures": _figures,
    "matplotlib's style": _style,
    "threads": _threads,
    "Stopped.requested": _stop_requested,
    COMPILER: lambda: "torch._inductor.compile_fx" in sys.modules,
}


def state() -> State:
    """All that is compared, by its name."""
    return {name: read() for name, read in READ.items()}


def restore(before: State) -> None:
    """Make all that can be set what it was."""
    for handler in _handlers():
        if handler not in before["log handlers"]:
            logging.getLogger().removeHandler(handler)
            handler.close()
    logging.raiseExceptions = before["logging.raiseExceptions"]
    for name, handler in before["signal handlers"].items():
        if handler is not None and signal.getsignal(signal.Signals[name]) is not handler:
            signal.signal(signal.Signals[name], handler)
    for key in _environment().keys() - before["environment"].keys():
        del os.environ[key]
    os.environ.update(before["environment"])
    sys.argv[:] = before["sys.argv"]
    sys.path[:] = before["sys.path"]
    os.chdir(before["folder"])
    torch.set_num_threads(before["torch's threads"])
    torch.set_default_dtype(before["torch's default dtype"])
    torch.set_grad_enabled(before["torch's gradients"])
    torch.use_deterministic_algorithms(before["torch's deterministic algorithms"])
    torch.set_float32_matmul_precision(before["torch's matmul precision"])
    torch.backends.cudnn.deterministic = before["cudnn.deterministic"]
    torch.backends.cudnn.benchmark = before["cudnn.benchmark"]
    GlobalHydra.instance().hydra = before["Hydra's global state"]
    HydraConfig.instance().cfg = before["Hydra's config of the job"]
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
    if before["matplotlib's style"]:
        sys.modules["matplotlib"].rcParams.update(before["matplotlib's style"])
    if errors := sys.modules.get("netkin.errors"):
        errors.Stopped.requested = before["Stopped.requested"]


def differences(before: State, after: State) -> list[str]:
    """What has changed, in words; a library that was imported meanwhile has changed nothing."""
    found = []
    imported = {"matplotlib's style"} if not before["matplotlib's style"] else set()
    if before[COMPILER] != after[COMPILER]:
        imported |= OF_COMPILER
    for name, value in before.items():
        if after[name] == value or name in imported:
            continue
        if isinstance(value, dict):
            now = after[name]
            keys = sorted(k for k in value.keys() | now.keys() if value.get(k) != now.get(k))
            found.append(f"{name}: {', '.join(keys)}")
        else:
            found.append(f"{name}: {value} is now {after[name]}")
    return found


def open_files(folder: Path) -> set[str]:
    """The files below a folder that this process has open, where the system tells."""
    listed = Path("/proc/self/fd")
    found = set()
    for number in os.listdir(listed) if listed.is_dir() else []:
        try:
            name = os.readlink(listed / number)
        except OSError:  # that of the list itself
            continue
        if name.startswith(f"{folder}/") and not Path(name).is_dir():
            found.add(name)
    return found


@contextmanager
def restored() -> Iterator[None]:
    """What the end of a process would undo is undone at the end of the block."""
    before = state()
    try:
        yield
    finally:
        restore(before)
