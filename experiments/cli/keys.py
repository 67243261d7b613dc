"""The library's errors name arguments; the commands name config keys."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from experiments.cli.values import resolved
from netkin.errors import UserError, near

T = TypeVar("T")


@contextmanager
def naming(keys: Mapping[str, str]) -> Iterator[None]:
    """Replace arguments by config keys in errors of the library.

    An argument is replaced where a message begins with it ("steps must be ...") and where it stands
    before an equals sign ("... or mode=offline").

    Args:
        keys: the key of each argument, such as {"steps": "attack.steps"}.
    """
    try:
        yield
    except (UserError, HydraException) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, UserError | HydraException):
            cause = cause.__cause__
        if not isinstance(cause, UserError):
            raise
        message = re.sub(
            r"^[a-z_0-9]+\b|(?<![\w.=/-])[a-z_0-9]+(?==)",
            lambda name: keys.get(name[0], name[0]),
            str(cause),
        )
        if message == str(cause):
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
    """Call a function of the library with the values of a group of the config as arguments.

    Args:
        function: of arguments `first`, then those that the group names.
        group: the key of the values.
        values: of the group.

    Raises UserError that names the key of an unknown, missing or unusable value.
    """
    parameters = list(inspect.signature(function).parameters.values())[len(first) :]
    known = [parameter.name for parameter in parameters]
    arguments = resolved(values)
    for key in arguments:
        if key not in known:
            raise UserError(
                f"{group} has no setting {key!r}{near(key, known)} (settings: {', '.join(known)})"
            )
    needed = [p.name for p in parameters if p.default is p.empty and p.name not in arguments]
    if needed:
        raise UserError(f"{group} needs a value of {', '.join(needed)}")
    with naming_group(group, values):
        return function(*first, **arguments)
