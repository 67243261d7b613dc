"""Values of a config, checked; a mistake names its key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from netkin.errors import UserError


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def run_folder() -> Path:
    """The folder of this run's own outputs, made if need be."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def swept() -> list[str]:
    """The overrides in which this job differs from others of its sweep; none in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return []
    return own_overrides(list(hydra.overrides.task), Path(hydra.sweep.dir))


def own_overrides(overrides: Sequence[str], sweep: Path) -> list[str]:
    """Those of a job's overrides that were not typed as they are: of a sweep in a folder."""
    try:  # Hydra writes it before the jobs start
        typed = OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task
    except (OSError, YAMLError, OmegaConfBaseException):
        return list(overrides)
    return [override for override in overrides if override not in typed]


def positive_int(value: Any, name: str, auto: bool = False) -> int:
    """A value that must be a whole number of 1 or more. Raises UserError that names its key.

    Args:
        value: of the config.
        name: its key.
        auto: whether the error names the word auto as another valid value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        choice = "auto or " if auto else ""
        raise UserError(f"{name} must be {choice}a whole number of 1 or more, got {value!r}")
    return value


def whole_numbers(value: Any, name: str, least: int = 1) -> list[int]:
    """A value that must be a list of whole numbers. Raises UserError that names its key."""
    if not isinstance(value, list | ListConfig) or any(
        not isinstance(n, int) or isinstance(n, bool) or n < least for n in value
    ):
        raise UserError(f"{name} must list whole numbers of {least} or more, got {value!r}")
    return list(value)


def lists(settings: DictConfig, group: str, *names: str) -> None:
    """Raises UserError for one of a group's settings that must be a list and is none."""
    for name in names:
        if not isinstance(settings[name], ListConfig):
            raise UserError(f"{group}.{name} must be a list, got {settings[name]!r}")


def positive(value: Any, name: str) -> float:
    """A value that must be a number above 0. Raises UserError that names its key."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{name} must be above 0, got {value!r}")
    return value


def one_of(value: Any, allowed: tuple[Any, ...], name: str) -> None:
    """A value that must be one of some. Raises UserError that names its key."""
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(str, allowed))}, got {value!r}")


def may_stop(config: DictConfig) -> bool:
    """Whether a run of the config stops at score.half_width; train.py's config has no scores."""
    return "score" in config and config.score.half_width is not None
