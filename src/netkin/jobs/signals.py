"""Signals: who must not get them, and what a stop must not print.

A terminal sends Ctrl-C to all processes of a command, SLURM its signals to all of a job. The main
process decides what a signal means; the processes that load images for it leave signals alone.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from netkin.errors import Stopped

STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
STOPPING |= {signal.SIGUSR1, signal.SIGUSR2}
"""HUP comes when a terminal or its connection closes; USR1 and USR2 are what SLURM sends before a
job's time is up."""
OTHERS = STOPPING - {signal.SIGTERM}
"""A worker leaves these to the main process, which decides, and sends SIGTERM."""


@contextmanager
def blocked(numbers: Iterable[int]) -> Iterator[None]:
    """Signals of these numbers are delivered to this thread after the block; processes that are
    started in it inherit the mask for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def quiet_stops() -> None:
    """Where a stop reaches a library's `__del__`, which swallows it: print no trace, stop again."""

    def stop_again(failed: Any) -> bool:
        if not isinstance(failed.exc_value, Stopped):
            return False
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()
        return True

    without_trace(stop_again)


def without_trace(handled: Callable[[Any], bool]) -> None:
    """Print nothing of an exception that Python ignores (`sys.unraisablehook`) where `handled`,
    which gets the hook's argument, returns True."""
    usual = sys.unraisablehook
    sys.unraisablehook = lambda failed: None if handled(failed) else usual(failed)
