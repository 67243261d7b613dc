"""Values of a config, and errors that name its keys: the library's own name arguments."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from netkin.errors import UserError, check_known

T = TypeVar("T")


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def changed(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A config with other values of some keys."""
    result = config.copy()
    for key, value in values.items():
        OmegaConf.update(result, key, value, force_add=True)  # as arguments of a foreign attack
    return result


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
    """Those of a job's overrides that were typed as sweeps: of a sweep in a folder."""
    try:  # Hydra writes it before the jobs start
        typed = OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task
    except (OSError, YAMLError, OmegaConfBaseException):
        return list(overrides)
    parser = OverridesParser.create()
    fixed = [
        each for text in typed if not (each := parser.parse_override(text)).is_sweep_override()
    ]
    keys = {each.key_or_group for each in fixed}  # of a job, values are written in another way
    return [text for text in overrides if parser.parse_override(text).key_or_group not in keys]


def may_stop(config: DictConfig) -> bool:
    """Whether a run of the config stops at score.half_width; train.py's config has no scores."""
    return "score" in config and config.score.half_width is not None


def refuse_stopping(config: DictConfig) -> None:
    """Raises UserError for a half-width that a command would ignore."""
    if may_stop(config):
        raise UserError(
            f"experiment={config.experiment.name} takes no score.half_width: its numbers are of "
            "all images. Leave it out, or run experiment=pairwise with it first"
        )


@contextmanager
def naming(keys: Mapping[str, str]) -> Iterator[None]:
    """Replace arguments by config keys in errors of the library.

    An argument is replaced where a message begins with it ("steps must be ...") and where it stands
    before an equals sign ("... or mode=offline"); `keys` are such as {"steps": "attack.steps"}.
    """
    try:
        yield
    except (UserError, HydraException) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, UserError | HydraException):
            cause = cause.__cause__
        argument = r"^[a-z_0-9]+\b|(?<![\w.=/-])[a-z_0-9]+(?==)"
        message = re.sub(argument, lambda name: keys.get(name[0], name[0]), str(cause))
        if not isinstance(cause, UserError) or message == str(cause):
            raise
        cause.args = (message,)
        raise cause from None


def naming_group(group: str, values: DictConfig) -> AbstractContextManager[None]:
    """`naming` for a group of the config whose keys are the library's arguments.

    An argument that the config takes from another key is named by that key: `root: ${dataset.root}`
    is dataset.root.
    """
    keys = {}
    for key, value in OmegaConf.to_container(values, resolve=False).items():  # type: ignore[union-attr]
        other = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        keys[str(key)] = other[1] if other else f"{group}.{key}"
    return naming(keys)


def construct(function: Callable[..., T], group: str, values: DictConfig, *first: Any) -> T:
    """Call a function of the library with the values of a group of the config as arguments, after
    `first`. Raises UserError that names the key of an unknown, missing or unusable value.
    """
    parameters = list(inspect.signature(function).parameters.values())[len(first) :]
    known, arguments = [parameter.name for parameter in parameters], resolved(values)
    for key in arguments:
        check_known(key, known, f"{group} has no setting {key!r}")
    if needed := [p.name for p in parameters if p.default is p.empty and p.name not in arguments]:
        raise UserError(f"{group} needs a value of {', '.join(needed)}")
    with naming_group(group, values):
        return function(*first, **arguments)
