"""The library's errors name arguments; the commands name config keys."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from hydra.errors import HydraException
from omegaconf import DictConfig

from netkin.errors import UserError


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
