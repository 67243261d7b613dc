"""How a command ends early: by an error, or by Ctrl-C or SIGTERM from its first line on.

Imports nothing but the standard library's small parts, so that it is ready before anything else.
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def command() -> str:
    """The command as it was typed, to be copied."""
    return shlex.join(["python", *sys.argv])


def before_work() -> None:
    """Stop at once, without an exception, which an import may catch or print."""
    for number in SIGNALS:
        signal.signal(number, _leave)


@contextmanager
def while_importing() -> Iterator[None]:
    """`before_work` in the block, where handlers are those of a command."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    ours = all(getattr(handler, "__module__", "") == RAISING for handler in handlers.values())
    if ours:
        before_work()
    try:
        yield
    finally:
        if ours:
            for number, handler in handlers.items():
                signal.signal(number, handler)


RAISING = "experiments.common.launch"
"""The module of the handler that raises once there is work."""


def _leave(number: int, _frame: FrameType | None) -> None:
    line = f"stopped before any work. To go on: {command()}\n"
    os.write(sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else 2, line.encode())
    os._exit(128 + number)


def fail(message: str, code: int) -> NoReturn:
    """Print a message on the error stream, as an error where the code is 1, and exit."""
    print(f"error: {message}" if code == 1 else message, file=sys.stderr)
    sys.exit(code)
