"""Signals that wait: of this thread, and for good of processes that are started meanwhile."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def blocked(numbers: Iterable[int]) -> Iterator[None]:
    """Signals of these numbers are delivered after the block; processes inherit the mask."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
