"""Errors that are printed as one line without a stack trace, and the stop of a run by a signal."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class UserError(ValueError):
    """A user's mistake. The message says what was expected, what was given and what to do."""


class StoreError(UserError):
    """The store is full, cannot be written, or is damaged, so other members would fail, too."""


class OutputsError(UserError):
    """The folder of a run's own outputs is full or cannot be written."""


class DamagedFile(StoreError):
    """A file of the store was changed or cut after it was written.

    Attributes:
        problem: what is wrong with it, without its path and what to do.
    """

    def __init__(self, message: str, problem: str = ""):
        super().__init__(message)
        self.problem = problem


class OtherContents(UserError):
    """The store has results of other settings, or other models, under a name that is needed."""


class Unreadable(UserError):
    """Images that cannot be decoded; a dataset can be read without them."""


class OtherTraining(UserError):
    """Stored weights, or a checkpoint, belong to another training than the one that is needed."""


class Stopped(BaseException):
    """SIGINT or SIGTERM. Not a KeyboardInterrupt, which Lightning turns into exit code 1.

    Attributes:
        code: the exit code, 128 + the signal's number.
        done: the progress of the work at that moment, in words.
    """

    def __init__(self, code: int, done: str = ""):
        super().__init__(code)
        self.code, self.done = code, done

    requested: ClassVar[int] = 0
    """The code of a stop that a signal asked for. A library may have caught its exception."""

    @classmethod
    def check(cls) -> None:
        """Raise again if a stop was asked for and has not ended the work yet."""
        if cls.requested:
            raise cls(cls.requested)


def near(name: str, known: Iterable[str], n: int = 3) -> str:
    """A hint such as ``; did you mean resnet50, resnet51q?``, or "" when no name is near."""
    matches = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=n, cutoff=0.6)
    return f"; did you mean {', '.join(matches)}?" if matches else ""


@contextmanager
def reading(what: object, expected: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of the kinds that a file's reader has as a UserError: what cannot be read, why, and
    what was expected."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{what} cannot be read ({reason}); {expected}") from None


def check_known(name: object, known: Iterable[str], problem: str) -> None:
    """Raises UserError with a problem where a name is not one of those known: with near ones, and
    with all if there are at most 20."""
    listed = list(dict.fromkeys(known))
    if name not in listed:
        all_of = f" (there are {', '.join(listed) or 'none'})" if len(listed) <= 20 else ""
        raise UserError(f"{problem}{near(str(name), listed)}{all_of}")


def and_more(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, and how many more there are: "a, b, c and 5 more"."""
    listed = list(names)
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message, at most 300 characters, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
