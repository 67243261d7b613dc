"""What evaluate.py and train.py share: one line for a user's mistake, and the exit code."""

import importlib
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments import sweep
from netkin.errors import Stopped, UserError

ERRORS = (UserError, HydraException, OmegaConfBaseException)
OUTPUTS = "; if it is the run's folder, choose another with hydra.run.dir=PATH, or make room"


def run_study(config: DictConfig) -> None:
    """Run the study that the experiment names.

    A user's mistake ends a single run here, before Hydra adds its own lines to it. In a multirun
    it goes on to Hydra, which finishes the other jobs first.
    """
    try:
        importlib.import_module(config.experiment.study).run(config)
    except ERRORS as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        fail(one_line(error), 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        fail(f"{error}{OUTPUTS}", 1)


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra main function and exit: 1 with one line for an error, 130 or 143 if stopped."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors up to here instead of printing traces
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    command = shlex.join(["python", *sys.argv])
    try:
        sys.argv[1:] = sweep.arguments(sys.argv[0], sys.argv[1:])
        main()
    except ERRORS as error:
        fail(one_line(error), 1)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a folder for outputs that cannot be made, a full disk
        fail(f"{error}{OUTPUTS}", 1)
    except Stopped as stop:
        _end_children()
        done = f" {stop.done}" if stop.done else ""
        fail(f"stopped{done}; what is finished is kept. To go on: {command}", stop.code)


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _at_once)
    raise Stopped(128 + number)


def _at_once(number: int, _frame: FrameType | None) -> None:
    """What a second Ctrl-C does."""
    os._exit(128 + number)


def _end_children() -> None:
    """The jobs of a sweep: at its exit, Python would wait for them."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.terminate()


def fail(message: str, code: int) -> None:
    print(f"error: {message}" if code == 1 else message, file=sys.stderr)
    sys.exit(code)


def one_line(error: BaseException) -> str:
    """An error's message on one line; Hydra wraps its own over several, causes last."""
    while isinstance(error.__cause__, ERRORS):
        error = error.__cause__
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
