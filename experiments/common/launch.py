"""What evaluate.py and train.py share: one line for a user's mistake, and the exit code."""

import importlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.common import sweep
from netkin.errors import Stopped, UserError

ERRORS = (UserError, HydraException, OmegaConfBaseException)
OUTPUTS = "; if it is the run's folder, choose another with hydra.run.dir=PATH, or make room"


def one_model() -> None:
    """Have `model=NAME` on the command line, for a NAME that is no zoo in conf/model, stand for
    `model.members=[NAME]`; several names separated by commas are a sweep."""
    zoos = {path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml")}
    for i, word in enumerate(sys.argv[1:], start=1):
        found = re.fullmatch(r"model=([\w.@/:*-]+(?:,[\w.@/:*-]+)*)", word)
        if found and found[1] not in zoos:
            names = found[1].split(",")
            sys.argv[i] = "model.members=" + ",".join(f"[{name}]" for name in names)


def run_study(config: DictConfig, script: str) -> None:
    """Run the study that the experiment names; `script` is whose config this is.

    A user's mistake ends a single run here, before Hydra adds its own lines to it. In a multirun
    it goes on to Hydra, which finishes the other jobs first.
    """
    try:
        of = config.experiment.get("script", "evaluate")
        if of != script:
            raise UserError(
                f"experiment={config.experiment.name} is run by {of}.py: "
                f"python {of}.py experiment={config.experiment.name}"
            )
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
