"""What the passes change in their process: the memory that it keeps, and the state they restore.

A step of an attack frees its tensors, and the next one allocates as much again. glibc returns large
blocks to the system each time, which has to clear and map the new pages: 4,000 to 60,000 page
faults a step of a full-size model, up to two fifths of its time (experiments/results/speed.md).
Freed memory is therefore kept while a model is run, and returned to the system afterwards.
"""

import ctypes
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from netkin.errors import Stopped

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
"""glibc's malloc.h."""
KEEP = {TRIM_THRESHOLD: -1, TOP_PAD: 2**26, MMAP_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
"""Nothing is returned without a call (-1 is glibc's "never"); the heap grows by 64 MiB at least."""
GROWN = {TRIM_THRESHOLD: 2**26, TOP_PAD: 0, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}
"""The values that glibc sets itself once a block of 32 MiB has been freed."""


def keep_freed(keep: bool = True) -> bool:
    """Keep what this process frees from now on, or (keep=False) leave it to glibc again.

    False where the allocator isn't glibc's: a preloaded one (jemalloc, tcmalloc) is left alone.
    """
    options = KEEP if keep else GROWN
    try:
        return all([_libc().mallopt(option, value) for option, value in options.items()])
    except AttributeError:
        return False


def release_freed() -> None:
    """Return free memory to the system: 0.05 to 0.1 s for 1 to 2 GB."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


def _libc() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None


_one_at_a_time = threading.RLock()


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore the process's global state after the block, for users of the library.

    That is the state of random numbers (torch on all devices, NumPy, Python), the number of torch's
    threads, cuDNN's flags, warnings, the environment, and the handler of Ctrl-C, which raises
    KeyboardInterrupt. One thread is in such a block at a time.
    """
    import numpy as np
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with (
        _one_at_a_time,
        torch.random.fork_rng(gpus),
        torch.inference_mode(False),
        warnings.catch_warnings(),
        _interruptible(),
    ):
        numpy_state, python_state = np.random.get_state(), random.getstate()
        threads, environment = torch.get_num_threads(), dict(os.environ)
        cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)
            keep_freed(False)
            release_freed()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as a KeyboardInterrupt that Lightning does not catch: it would end the process."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main or before is not signal.default_int_handler:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise Stopped(128 + number)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Stopped as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
