"""The store and the tracker of a run, and how dashboards name and group it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.cli.values import naming, naming_group, resolved, run_folder, swept
from netkin.store.layout import Store
from netkin.tracking import RunInfo, Tracker, track

if TYPE_CHECKING:
    from netkin.evaluation import Evaluation

MEASURING = (
    *("dataset", "subset", "model", "recipe", "attack", "store", "transfer", "score"),
    *("on_suspect", "hardware"),
)
"""Keys that have no effect on a study whose matrix comes from a file."""


def open_store(config: DictConfig) -> Store:
    """The store of a config. Raises UserError that names store.dir where it cannot be written."""
    with naming({"store": "store.dir"}):
        return Store(resolved(config.store)["dir"])


@contextmanager
def tracked(config: DictConfig, info: RunInfo) -> Iterator[Tracker]:
    """`netkin.tracking.track` with the config's logger, whose keys its errors name."""
    with ExitStack() as stack:
        with naming_group("logger", config.logger):
            tracker = stack.enter_context(track(resolved(config.logger), info))
        yield tracker


def info(
    config: DictConfig,
    of: str,
    what: str,
    tags: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> RunInfo:
    """A run, grouped by experiment and data, so that a dashboard compares like runs.

    Jobs of one sweep have a group of their own, and are named by what differs between them.

    Args:
        of: the name of its data.
        what: its name in a single run.
        tags: beside the experiment and the data.
        values: what dashboards sort and plot; the resolved config, unless given.
    """
    hydra, experiment = HydraConfig.get(), config.experiment.name
    sweep = f"-{Path(hydra.sweep.dir).name}" if hydra.mode == RunMode.MULTIRUN else ""
    return RunInfo(
        folder=run_folder(),
        config=resolved(config) if values is None else values,
        group=f"{experiment}-{of}{sweep}",
        job_type=experiment,
        name=", ".join(swept()) or what,
        tags=(experiment, of, *tags),
    )


def run_info(
    config: DictConfig, evaluation: "Evaluation", members: int, names: Sequence[str]
) -> RunInfo:
    """A run that measures. Of few members it is named by their `names`.

    The attack's numbers, and how many models and images there are, are at the config's top level.
    """
    values, attack, subset = resolved(config), evaluation.attack, evaluation.subset
    eps, models = values["attack"].get("eps"), f"{members} models"
    how = attack.name if eps is None else f"{attack.name} eps {eps}"
    what = f"{config.dataset.name}, {how}, {names[0] if len(names) == 1 else models}"
    known = {key: getattr(attack, key, None) for key in ("eps", "step_size", "steps", "seed")}
    numbers = {key: value for key, value in known.items() if value is not None}
    numbers |= {"models": members, "images": len(subset)}
    tags = (subset.name, attack.name)
    return info(config, config.dataset.name, what, tags, {**numbers, **values})


def file_info(config: DictConfig, models: int) -> RunInfo:
    """A run whose matrix comes from a file."""
    stem = Path(matrix_name(config)).stem
    return info(config, stem, f"{stem}, {models} models", values=resolved(used(config)))


TRAINING = ("dataset", "model", "store", "hardware", "logger")
"""Keys of MEASURING that train.py has, too."""


def command(*changes: str, script: str = "evaluate") -> str:
    """The command for another run of the same images, models, attack and store, to be copied;
    `changes` are overrides that it has besides, or instead."""
    new = {change.split("=")[0] for change in changes}
    keys = (*MEASURING, "logger") if script == "evaluate" else TRAINING
    kept = [
        override
        for override in HydraConfig.get().overrides.task
        if (key := override.lstrip("+~").split("=")[0]) not in {*new, "model.candidate"}
        and key.split(".")[0] in keys
    ]
    return shlex.join(["python", f"{script}.py", *changes, *kept])


def with_root(text: str) -> str:
    """A command on ImageNet with the folder that its user has to fill in, unless it has one."""
    return text if "dataset.root=" in text else f"{text} dataset.root=ROOT"


def eps_advice() -> str:
    """How to choose eps where the attack is weak: a sentence with a command to copy."""
    return f"To find an eps that is large enough: {command('experiment=eps')}"


def matrix_name(config: DictConfig) -> str:
    """Where a matrix that is not measured comes from: the file's path, or "sat69"."""
    return str(config.similarity.get("file", "sat69"))


def used(config: DictConfig) -> DictConfig:
    """The config less the keys that a study of a matrix from a file does not read."""
    if config.get("similarity") is None:
        return config
    read = [str(key) for key in config if key not in MEASURING]
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in ((key, config[key]) for key in read)
    }
    return OmegaConf.create(plain)
