"""How evaluate.py and train.py start and end: one line for a user's mistake, and the exit code."""

import importlib
import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.cli import folder, stop, sweep, usage
from experiments.cli.mistakes import explained, no_group, options, refuse_no_options
from experiments.cli.opening import opening
from experiments.cli.stop import fail
from experiments.cli.values import check_half_width, one_of
from netkin.errors import (
    DamagedFile,
    OtherContents,
    OtherTraining,
    OutputsError,
    Stopped,
    StoreError,
    Unreadable,
    UserError,
)

NAME = r"[\w.@/:*-]+"
HELPERS = re.compile(r"multiprocessing\.(forkserver|resource_tracker)")
ERRORS = (UserError, HydraException, OmegaConfBaseException)
ENDS = (*ERRORS, OSError)
"""What ends a command in one line; an OSError is a folder that cannot be made, or a full disk."""
HINTS: dict[type[UserError], str] = {
    OtherTraining: (
        "name=NAME of train.py and {name: NAME, timm: ...} of evaluate.py name a model, "
        "store.dir=PATH a store; resume=never starts an unfinished training again"
    ),
    OtherContents: (
        "{name: NAME, timm: ...} in model.members names a model, store.dir=PATH a store; "
        "`python evaluate.py experiment=store remove=[NAME] confirm=true{store}` removes a model's "
        "results"
    ),
    Unreadable: "dataset.on_error=skip leaves out images that cannot be read",
    DamagedFile: (
        "`python evaluate.py experiment=store remove=damaged confirm=true{store}` removes all that "
        "is damaged"
    ),
    StoreError: "store.dir=PATH names a store",
    OutputsError: "hydra.run.dir=PATH names the run's folder",
}
"""What to type, by the error of the library; {store} is the override of the run's store."""
OUTPUTS = "; if it is the run's folder, choose another with hydra.run.dir=PATH, or make room"


RENAMED = {
    "accelerator": "hardware.accelerator",
    "workers": "hardware.members_at_once",
    "threads": "hardware.threads",
    "batch_size": "hardware.batch_size",
    "precision": "hardware.craft_precision",
    "compile": "hardware.craft_compile",
    "memory_format": "hardware.memory_format",
    "fuse": "hardware.fuse",
    "trainer.devices": "hardware.devices",
    "trainer.precision": "hardware.train_precision",
    "trainer.compile": "hardware.train_compile",
    "trainer.workers": "hardware.loader_processes",
    "trainer.fast_dev_run": "fast_dev_run",
    "loader.workers": "hardware.loader_processes",
    "loader.prefetch": "hardware.prefetch",
    "loader.pin_memory": "hardware.pin_memory",
    "loader.decode_threads": "hardware.decode_threads",
}
"""Former names of keys, and their names now."""


def refuse_old_names(overrides: Sequence[str]) -> None:
    """Raises UserError, with the new name, for an override of a key by its former name."""
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if new := RENAMED.get(key):
            typed = override.replace(key, new, 1)
            raise UserError(f"{key} is now called {new}: type {typed}")


def spelled_out(overrides: Sequence[str]) -> list[str]:
    """Overrides in Hydra's words: what the command line takes beside the options of a group.

    model=NAME is model.members=[NAME], of experiment=relatives its setting; see `with_members`.
    similarity=PATH is a file, and similarity.dir=FOLDER alone has the published 69.
    """
    spelled = with_members(overrides)
    if "experiment=relatives" in overrides:
        one = re.compile(rf"model\.members=\[({NAME})\]")
        spelled = [one.sub(r"relatives.model=\1", text) for text in spelled]
    spelled = [text for text in spelled if text != "similarity=null"]  # it is null unless given
    known = {*options("similarity")}
    for i, text in enumerate(spelled):
        key, _, value = text.partition("=")
        if key == "similarity" and value not in known and not value.startswith("{"):
            files = value.split(",")
            spelled[i] = f"similarity={','.join(f'{{file: {file}}}' for file in files)}"
    keys = {text.partition("=")[0] for text in spelled}
    if "similarity.dir" in keys and "similarity" not in keys:
        spelled.append("similarity=sat69")
    return spelled


def with_members(overrides: Sequence[str]) -> list[str]:
    """Overrides with model=NAME written as model.members=[NAME], where conf/model has no such NAME.

    model=[A,B] stands for model.members=[A,B]. With --multirun, model=A,B is a sweep over two lists
    of one member.
    """
    lists = {*options("model")}
    spelled = []
    for override in overrides:
        names = re.fullmatch(rf"model=({NAME}(?:,{NAME})*|\[{NAME}(?:,{NAME})*\])", override)
        if names is None or names[1] in lists:
            spelled.append(override)
        elif names[1].startswith("["):
            spelled.append(f"model.members={names[1]}")
        else:
            several = ",".join(f"[{name}]" for name in names[1].split(","))
            spelled.append(f"model.members={several}")
    return spelled


def run_study(config: DictConfig, script: str) -> Any:
    """Run the study of the config's experiment.

    A user's mistake ends a single run here, before Hydra adds its own lines to it. In a multirun
    Hydra gets the error and finishes the other jobs first.

    Args:
        config: as composed.
        script: evaluate or train, whose config this is.

    Returns what the study returns: the files of the store that it has made sure of, or None.
    """
    # Relative paths are those of the folder where the command was started, also with
    # hydra.job.chdir=true.
    os.chdir(HydraConfig.get().runtime.cwd)
    find_own_modules()
    try:
        own = config.experiment.get("script", "evaluate")
        if own != script:
            raise UserError(
                f"experiment={config.experiment.name} is run by {own}.py: "
                f"python {own}.py experiment={config.experiment.name}"
            )
        check_half_width(config)
        one_of(config.quiet, (True, False), "quiet")
        one_of(config.index, (True, False), "index")
        if not config.quiet:
            print(opening(config, script), flush=True)
        with stop.while_importing(_stop):
            module = _imported(config.experiment.study)
            _imported("netkin.jobs.progress").Bars.quiet = config.quiet
        result = _drawn(module, config)
        if config.index:
            _imported("experiments.cli.index").write_index(Path("outputs"), config.store.dir)
        return result
    except BrokenPipeError:
        raise
    except ENDS as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        fail(one_line(error, script, HydraConfig.get().overrides.task), 1)
    except (TypeError, AttributeError):
        if HydraConfig.get().mode == RunMode.MULTIRUN or not (line := no_group(config, script)):
            raise
        fail(line, 1)


def _drawn(module: ModuleType, config: DictConfig) -> Any:
    """Run the study with figures of the config's width."""
    from experiments.cli.keys import naming  # matplotlib and torch, which the study imports, too
    from netkin.report.style import figure_width

    with ExitStack() as stack:
        with naming({"width": "figure.width"}):
            stack.enter_context(figure_width(config.figure.width))
        return module.run(config)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (OSError, MemoryError, ImportError) as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        raise UserError(
            f"a library cannot be loaded ({' '.join(str(error).split())[:200]}); is memory limited "
            "(ulimit -v), or is the installation damaged?"
        ) from None


def find_own_modules() -> None:
    """Modules in the folder where the command was started can be imported, in the jobs of a sweep
    and in worker processes, too. It is last: a user's file must not replace a library of ours."""
    own = HydraConfig.get().runtime.cwd
    if own not in sys.path:
        sys.path.append(own)


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra main function and exit: 1 with one line for an error, 130 or 143 if stopped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show all characters
            stream.reconfigure(errors="replace")
    logging.raiseExceptions = False  # a log on a full disk is no reason for a trace
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors up to here instead of printing traces
    for number in stop.SIGNALS:
        signal.signal(number, _stop)
    command = stop.command()
    script, given = Path(sys.argv[0]).stem, sys.argv[1:]
    try:
        if usage.asked(given):
            usage.show(script, given)
            return
        if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*given}:
            from experiments.cli import slurm  # imports torch, which other runs do later

            slurm.register()
        refuse_old_names(given)
        refuse_no_options(given)
        sys.argv[1:] = sweep.arguments(sys.argv[0], spelled_out(sys.argv[1:]))
        try:
            main()
        finally:
            if not isinstance(sys.exc_info()[1], Stopped | BrokenPipeError):
                folder.print_jobs()
        Stopped.check()
    except BrokenPipeError:
        stop.silence()
        sys.exit(128 + signal.SIGPIPE)
    except ENDS as error:
        fail(one_line(error, script, given), 1)
    except Stopped as stopped:
        _end_children()
        Stopped.requested = 0
        done = f" {stopped.done}" if stopped.done else ""
        fail(f"stopped{done}; what is finished is kept. To go on: {command}", stopped.code)
    finally:
        folder.release()
        _close_logs()
        for number in stop.SIGNALS:
            signal.signal(number, _at_once)


def _close_logs() -> None:
    """Close the files that Hydra has opened for the run's log."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in stop.SIGNALS:
        signal.signal(each, _at_once)
    Stopped.requested = 128 + number
    raise Stopped(128 + number)


def _at_once(number: int, _frame: FrameType | None) -> None:
    """Exit without cleaning up, on a second Ctrl-C."""
    os._exit(128 + number)


def _end_children() -> None:
    """End the jobs of a sweep, for which Python would wait at its exit.

    multiprocessing's helpers, and workers, which have been stopped, end by themselves and clean up.
    """
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if not HELPERS.search(" ".join(child.cmdline())):
                child.terminate()


def one_line(error: BaseException, script: str = "evaluate", overrides: Sequence[str] = ()) -> str:
    """An error's message on one line; Hydra wraps its own over several, causes last.

    Args:
        error: of netkin, Hydra or OmegaConf.
        script, overrides: of the command, to say what may have been meant.
    """
    while isinstance(error.__cause__, ERRORS):
        error = error.__cause__
    if line := explained(error, script, overrides):
        return line
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error}{OUTPUTS}"
    line = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    hint = next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), None)
    stores = [text for text in overrides if text.startswith("store.dir=")]  # the last one holds
    store = f" {shlex.quote(stores[-1])}" if stores else ""
    return f"{line} ({hint.replace('{store}', store)})" if hint else line
