"""How a command ends early: by an error, or by Ctrl-C or SIGTERM from its first line on.

Imports nothing but the standard library's small parts, so that it is ready before anything else.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]


def command() -> str:
    """The command as it was typed, to be copied."""
    return shlex.join(["python", *sys.argv])


def before_work() -> None:
    """Stop at once, without an exception, which an import may catch or print."""
    for number in SIGNALS:
        signal.signal(number, _leave)


@contextmanager
def while_importing(handler: Handler) -> Iterator[None]:
    """`before_work` in the block, unless signals have another handler, as in a job on SLURM."""
    ours = all(signal.getsignal(number) is handler for number in SIGNALS)
    if ours:
        before_work()
    try:
        yield
    finally:
        if ours:
            for number in SIGNALS:
                signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    os.write(2, f"stopped before any work. To go on: {command()}\n".encode())
    os._exit(128 + number)


def silence() -> None:
    """Print nothing from here on: the reader of our output has left, as `| head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, code: int) -> NoReturn:
    """Print a message on the error stream, as an error where the code is 1, and exit."""
    print(f"error: {message}" if code == 1 else message, file=sys.stderr)
    sys.exit(code)
