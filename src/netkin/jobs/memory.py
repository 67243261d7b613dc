"""Memory between the tensors that are freed and the next ones that need it.

A step of an attack frees what it has computed and the next one asks for as much again. glibc hands
large blocks back to the system each time, and the pages that come anew have to be cleared and
mapped: 4,000 to 60,000 page faults a step of a full-size model, up to two fifths of its time
(experiments/results/speed.md). So they are kept while a model is run, and handed back with it.
"""

import ctypes
from contextlib import suppress
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
"""glibc's malloc.h."""
KEEP = {TRIM_THRESHOLD: -1, TOP_PAD: 2**26, MMAP_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
"""Nothing is handed back unasked (-1 is glibc's "never"), and the heap grows by 64 MiB at least."""
GROWN = {TRIM_THRESHOLD: 2**26, TOP_PAD: 0, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}
"""What glibc's own rules come to once a block of 32 MiB has been freed."""


def keep_freed() -> bool:
    """Have this process keep what it frees, from now on; False where the allocator isn't glibc's.

    Where another allocator is preloaded (jemalloc, tcmalloc), it decides, and this does nothing.
    """
    return _set(KEEP)


def hand_back_freed() -> None:
    """Give what is free to the system: 0.05 to 0.1 s for 1 to 2 GB."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


def as_glibc_does() -> bool:
    """Undo `keep_freed`, as far as glibc allows: to compare with."""
    return _set(GROWN)


def _set(options: dict[int, int]) -> bool:
    try:
        return all([_libc().mallopt(option, value) for option, value in options.items()])
    except AttributeError:
        return False


def _libc() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
