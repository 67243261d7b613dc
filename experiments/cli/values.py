"""Values of a config and of the run that Hydra composed it for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


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


def may_stop(config: DictConfig) -> bool:
    """Whether a run of the config stops at score.half_width; train.py's config has no scores."""
    return "score" in config and config.score.half_width is not None
