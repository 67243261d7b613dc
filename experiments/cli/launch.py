"""How evaluate.py and train.py start and end: their arguments in Hydra's grammar, one line for a
user's mistake, and the exit code."""

import atexit
import fnmatch
import importlib
import io
import itertools
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.cli import folder, mistakes, stop, usage
from experiments.cli.config import CONF, Figure, check, check_read, composed
from experiments.cli.mistakes import ENDS, check_additions, one_line
from experiments.cli.stop import fail
from experiments.cli.values import naming, swept
from netkin.errors import Stopped, UserError, and_more

ROOT = CONF.parent
NAME = r"[\w.@/:*-]+"
GLOB = re.compile(r"source=glob\((.*)\)")
RECIPES = {"distill": ["teacher"], "seeds": ["resnet", "vit"], "hparams": ["resnet", "vit"]}
"""Recipes besides `recipe` that an experiment trains with."""
FLAGS = {flag for action in get_args_parser()._actions for flag in action.option_strings}
"""Hydra's own."""
HELPERS = re.compile(r"multiprocessing\.(forkserver|resource_tracker)")


def run_study(config: DictConfig, script: str) -> Any:
    """Run the study of the config's experiment.

    A user's mistake ends a single run here, before Hydra adds its own lines to it. In a multirun
    Hydra gets the error and finishes the other jobs first. Returns what the study does: the files
    of the store that it has made sure of, or None.
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
        check_read(config, script, HydraConfig.get().overrides.task)
        if not config.quiet:
            print(opening(config), flush=True)
        with ExitStack() as stack:
            with stop.while_importing():
                passes = has_passes_to_do(config)
                if passes:
                    from netkin.jobs import pool

                    pool.serve()  # imports what workers need while this process imports its own
                    atexit.register(pool.end_server)
                from netkin.jobs.progress import Bars
                from netkin.report import beside

                stack.enter_context(beside.painters())
                if config.experiment.study.startswith("experiments.studies.") and not passes:
                    beside.prepare()
                module = importlib.import_module(config.experiment.study)
            Bars.quiet = config.quiet
            if config.figure != OmegaConf.structured(Figure):  # matplotlib is slow to import
                from netkin.report.style import figure_settings

                with naming({"width": "figure.width", "formats": "figure.formats"}):
                    stack.enter_context(figure_settings(**config.figure))
            return module.run(config)
    except BrokenPipeError:
        raise
    except ENDS as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        fail(one_line(error, script, HydraConfig.get().overrides.task), 1)


def has_passes_to_do(config: DictConfig) -> bool:
    """Whether a run needs workers, as far as is known before anything is imported: one on a CPU
    whose store has no outcomes of the dataset."""
    study, hydra = config.experiment.study, HydraConfig.get()
    return (
        study.startswith("experiments.studies.")
        and config.get("similarity") is None
        and hydra.mode != RunMode.MULTIRUN
        and config.hardware.members_at_once != 1
        and len(os.sched_getaffinity(0)) > 1
        and not Path("/dev/nvidia0").exists()
        and not any(Path(config.store.dir).glob(f"{config.dataset.name}/*/*/outcomes*/*/*"))
    )


def opening(config: DictConfig) -> str:
    """The first line of a run, printed before anything slow is imported: what it works on.

    Of a job of a sweep, with what it differs in.
    """
    hydra, about = HydraConfig.get(), [f"store {config.store.dir}"]
    with suppress(Exception):  # mistakes are the run's to report
        if config.get("similarity") is not None:
            about = [f"scores of {config.similarity.get('file') or 'sat69'}"]
        elif config.experiment.name == "compare":
            about = [f"scores of {config.a} and {config.b}"]
        elif config.experiment.study.startswith("experiments.studies."):
            names, data = member_names(config.model.members), config.dataset.name
            of = f"{len(names)} models on {data}" if names else data
            about = [of, f"attack {hydra.runtime.choices['attack']}", *about]
    sweep = hydra.mode == RunMode.MULTIRUN
    job = f"job {int(hydra.job.num) + 1} ({', '.join(swept())}): " if sweep else ""
    return f"{job}{config.experiment.name}: {'; '.join(about)}"


def spelled_out(overrides: Sequence[str]) -> list[str]:
    """Overrides in Hydra's grammar.

    model=NAME is model.members=[NAME], unless conf/model has it, and model=[A,B] is
    model.members=[A,B]; of experiment=relatives model=NAME is its setting. With --multirun,
    model=A,B is a sweep over two lists of one member. similarity=PATH is a file, and
    similarity.dir=FOLDER alone has the published 69. --KEY=VALUE, as W&B's agents have it, is
    KEY=VALUE.
    """
    spelled, lists = [], {*mistakes.options("model")}
    for text in overrides:
        if re.match(rf"--{NAME}=", text) and text.partition("=")[0] not in FLAGS:
            text = text.removeprefix("--")
        key, _, value = text.partition("=")
        names = re.fullmatch(rf"{NAME}(?:,{NAME})*|\[{NAME}(?:,{NAME})*\]", value)
        if key == "model" and names and value not in lists:
            if "experiment=relatives" in overrides:
                text = f"relatives.model={value.strip('[]')}"
            elif value.startswith("["):
                text = f"model.members={value}"
            else:
                text = f"model.members={','.join(f'[{name}]' for name in value.split(','))}"
        elif text == "similarity=null":  # which it is unless given
            continue
        elif key == "similarity" and value != "sat69" and not value.startswith("{"):
            text = f"similarity={','.join(f'{{file: {file}}}' for file in value.split(','))}"
        spelled.append(text)
    keys = {text.partition("=")[0] for text in spelled}
    if "similarity.dir" in keys and "similarity" not in keys:
        spelled.append("similarity=sat69")
    return spelled


def for_all_recipes(script: str, given: Sequence[str]) -> list[str]:
    """Overrides of train.py in which what is typed for `recipe` is also for the other recipes that
    the experiment trains with, before what is typed for these. A sweep is one of all of them, and
    none of a teacher's, whose weights are those of the first run."""
    parsed, parser = get_args_parser().parse_args(list(given)), OverridesParser.create()
    typed = [text for text in parsed.overrides if text.lstrip("+~").startswith("recipe.")]
    kinds = [kind for option, kind in RECIPES.items() if f"experiment={option}" in parsed.overrides]
    if script != "train" or not typed or not kinds:
        return list(given)
    sweeps = {o for o in parsed.overrides if parser.parse_override(o).is_sweep_override()}
    flags = [f"--config-dir={parsed.config_dir}"] if parsed.config_dir else []
    fixed = [o for o in parsed.overrides if o not in {*typed, *sweeps}]
    recipes, more = composed(script, [*flags, *fixed]).recipes, []
    for kind, text in itertools.product(kinds[-1], typed):
        key, equals, value = text.partition("=")
        if kind not in recipes or (text in sweeps and kind == "teacher"):
            continue
        value = f"${{{key.lstrip('+~')}}}" if text in sweeps else value
        more.append(f"{key.replace('recipe.', f'recipes.{kind}.', 1)}{equals}{value}")
    first = given.index(parsed.overrides[0])
    return [*given[:first], *more, *given[first:]]


def arguments(script: str, given: Sequence[str]) -> list[str]:
    """A command's arguments; in a multirun, source=glob(*) becomes the members' names.

    Hydra's own glob() matches options of groups only. Raises UserError for a multirun over jobs of
    several devices.
    """
    parsed = get_args_parser().parse_args(list(given))
    if not parsed.multirun:
        return list(given)
    # Jobs of some launchers are new processes, which must be able to import `experiments`.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    parser = OverridesParser.create()
    fixed = [
        text
        for text in parsed.overrides
        if not GLOB.fullmatch(text) and not parser.parse_override(text).is_sweep_override()
    ]
    flags = [f"--config-dir={parsed.config_dir}"] if parsed.config_dir else []
    config = composed(script, [*flags, *fixed])
    devices = config.hardware.devices
    if devices != 1:
        command = shlex.join(["python", f"{script}.py", *fixed])
        raise UserError(
            f"hardware.devices={devices} in a multirun: all jobs would use the same devices. "
            "Either give each job one device (leave out hardware.devices), or split one run over "
            f"the devices, without -m: {command}"
        )
    return [_expanded(text, config) for text in given]


def _expanded(text: str, config: DictConfig) -> str:
    """source=glob(vit_*) as source=vit_s,vit_ti."""
    match = GLOB.fullmatch(text)
    if match is None:
        return text
    names = member_names(config.model.members)
    matching = fnmatch.filter(names, match[1].strip("'\""))
    if not matching:
        raise UserError(f"{text}: no member matches (they are {and_more(names, 20)})")
    return "source=" + ",".join(f"'{name}'" for name in matching)


def member_names(members: Any) -> list[str]:
    """The names of a list of members, as far as the config tells; empty for no list."""
    if not isinstance(members, list | ListConfig):
        return []
    return [m if isinstance(m, str) else str(m.get("name", m.get("timm"))) for m in members]


def launch(main: Callable[[], None]) -> None:
    """Run a Hydra main function and exit: 1 with one line for an error, or 128 + the number of the
    signal that stopped it (130 of Ctrl-C, 143 of SIGTERM, 129 of a terminal that closes).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show all characters
            stream.reconfigure(errors="replace")
    logging.raiseExceptions = False  # a log on a full disk is no reason for a trace
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors up to here instead of printing traces
    # Before torch: its threads wait for each other in a busy loop, by default for 300,000 turns. On
    # cores that others use, too, training takes 3.6 times as long as with 10,000 (docs/speed.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    stop.handle(stop.by_exception)
    command = stop.command()
    script, given = Path(sys.argv[0]).stem, sys.argv[1:]
    try:
        if {"-h", "--help"} & {*given}:
            usage.show(script, given)
            return
        if "hydra/launcher=slurm" in given:
            try:
                from experiments.cli import slurm
            except ImportError:
                raise UserError(
                    "hydra/launcher=slurm needs submitit: pip install -e '.[cluster]'"
                ) from None
            slurm.register()
        given = for_all_recipes(script, spelled_out(given))
        check_additions(given, script)
        sys.argv[1:] = arguments(script, given)
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
        with suppress(OSError):  # on a full disk
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
