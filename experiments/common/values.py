"""Values of a config, checked; a mistake names its key."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from netkin.errors import UserError


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def run_folder() -> Path:
    """Where this run's own outputs go; made if need be."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def positive_int(value: Any, name: str, auto: bool = False) -> int:
    """A value that must be a whole number of 1 or more. Raises UserError that names its key.

    Args:
        auto: whether the key takes the word auto, too, which the error then says.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        choice = "auto or " if auto else ""
        raise UserError(f"{name} must be {choice}a whole number of 1 or more, got {value!r}")
    return value


def positive(value: Any, name: str) -> float:
    """A value that must be a number above 0. Raises UserError that names its key."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{name} must be above 0, got {value!r}")
    return value


def one_of(value: Any, allowed: tuple[Any, ...], name: str) -> None:
    """A value that must be one of some. Raises UserError that names its key."""
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(str, allowed))}, got {value!r}")


@contextmanager
def naming(keys: Mapping[str, str]) -> Iterator[None]:
    """Have errors of the library name config keys: it knows its own arguments only.

    Args:
        keys: the key of each argument, such as {"steps": "attack.steps"}.

    Raises UserError in the place of one whose message begins with one of the arguments.
    """
    try:
        yield
    except (UserError, HydraException) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, UserError | HydraException):
            cause = cause.__cause__
        argument = re.match(r"[a-z_0-9]+", str(cause))
        if not isinstance(cause, UserError) or argument is None or argument[0] not in keys:
            raise
        raise type(cause)(keys[argument[0]] + str(cause)[argument.end() :]) from None


def naming_group(group: str, values: DictConfig) -> AbstractContextManager[None]:
    """`naming` for a group of the config whose keys are the library's arguments."""
    return naming({str(key): f"{group}.{key}" for key in values})
