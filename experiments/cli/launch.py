"""How evaluate.py and train.py start and end: one line for a user's mistake, and the exit code."""

import importlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.cli import folder, stop, sweep, usage
from experiments.cli.config import Figure, check
from experiments.cli.mistakes import ENDS, check_additions, one_line
from experiments.cli.stop import fail
from experiments.cli.sweep import member_names
from experiments.cli.sweep import spelled_out as spelled_out
from experiments.cli.values import naming, swept
from netkin.errors import Stopped, UserError

HELPERS = re.compile(r"multiprocessing\.(forkserver|resource_tracker)")


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
    # hydra.job.chdir=true. Modules there can be imported, by worker processes, too. It comes last:
    # a user's file must not replace a library of ours.
    cwd = HydraConfig.get().runtime.cwd
    os.chdir(cwd)
    stop.own_temporary_folder()
    if cwd not in sys.path:
        sys.path.append(cwd)
    try:
        of = config.experiment.get("script", "evaluate")
        if of != script:
            name = config.experiment.name
            raise UserError(
                f"experiment={name} is run by {of}.py: python {of}.py experiment={name}"
            )
        check(config, script)
        if not config.quiet:
            print(opening(config, script), flush=True)
        with stop.while_importing():
            from netkin.jobs.progress import Bars

            module = importlib.import_module(config.experiment.study)
        Bars.quiet = config.quiet
        with ExitStack() as stack:
            if config.figure != OmegaConf.structured(Figure):  # matplotlib is slow to import
                from netkin.report.style import figure_settings

                with naming({"width": "figure.width", "formats": "figure.formats"}):
                    stack.enter_context(figure_settings(**config.figure))
            result = module.run(config)
        if config.index:
            from experiments.cli.index import write_index

            write_index(Path("outputs"), config.store.dir)
        return result
    except BrokenPipeError:
        raise
    except ENDS as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        fail(one_line(error, script, HydraConfig.get().overrides.task), 1)


def opening(config: DictConfig, script: str) -> str:
    """The first line of a run, printed before anything slow is imported: what it works on.

    Of a job of a sweep, with what it differs in.
    """
    hydra = HydraConfig.get()
    start = f"{config.experiment.name}: "
    if hydra.mode == RunMode.MULTIRUN:
        start = f"job {int(hydra.job.num) + 1} ({', '.join(swept())}): {start}"
    with suppress(Exception):  # mistakes are the run's to report
        names = member_names(config.model.members)
        models = f"{len(names)} models" if names else "the models of the config"
        dataset, choices = config.dataset.name, hydra.runtime.choices
        if script == "train":
            what = names[0] if len(names) == 1 else "one model"
            if isinstance(config.get("student"), str) and isinstance(config.get("teacher"), str):
                what = f"{config.student} with the teacher {config.teacher}"
            epochs = f" for {config.recipe.epochs} epochs" if config.get("recipe") else ""
            start += f"trains {what} on {dataset}{epochs}; "
        elif config.get("similarity") is not None:
            return f"{start}scores of {config.similarity.get('file') or choices['similarity']}"
        elif config.experiment.study.startswith("experiments.studies."):
            numbers = [f"{k} {config.attack[k]}" for k in ("eps", "steps") if k in config.attack]
            start += f"{models} on {dataset}, {' '.join([choices['attack'], *numbers])}; "
        start += f"store {config.store.dir}"
    return start.removesuffix(": ")


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra main function and exit: 1 with one line for an error, or 128 + the number of the
    signal that stopped it (130 of Ctrl-C, 143 of SIGTERM, 129 of a terminal that closes).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show all characters
            stream.reconfigure(errors="replace")
    logging.raiseExceptions = False  # a log on a full disk is no reason for a trace
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors up to here instead of printing traces
    stop.handle(stop.by_exception)
    command = stop.command()
    script, given = Path(sys.argv[0]).stem, sys.argv[1:]
    try:
        if usage.asked(given):
            usage.show(script, given)
            return
        if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*given}:
            from experiments.cli import slurm

            slurm.register()
        given = spelled_out(given)
        check_additions(given, script)
        sys.argv[1:] = sweep.arguments(sys.argv[0], given)
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
        stop.handle(stop.at_once)


def _close_logs() -> None:
    """Close the files that Hydra has opened for the run's log."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.FileHandler]:
        root.removeHandler(handler)
        handler.close()


def _end_children() -> None:
    """End the jobs of a sweep, for which Python would wait at its exit.

    multiprocessing's helpers, and workers, which have been stopped, end by themselves and clean up.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if not HELPERS.search(" ".join(child.cmdline())):
                child.terminate()
