"""Keeps freed memory in the process between the steps of an attack.

A step frees its tensors, and the next one allocates as much again. glibc returns large blocks to
the system each time, which has to clear and map the new pages: 4,000 to 60,000 page faults a step
of a full-size model, up to two fifths of its time (experiments/results/speed.md). Freed memory is
therefore kept while a model is run, and returned to the system afterwards.
"""

import ctypes
from contextlib import suppress
from typing import Any

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
"""glibc's malloc.h."""
KEEP = {TRIM_THRESHOLD: -1, TOP_PAD: 2**26, MMAP_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
"""Nothing is returned without a call (-1 is glibc's "never"); the heap grows by 64 MiB at least."""
GROWN = {TRIM_THRESHOLD: 2**26, TOP_PAD: 0, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}
"""The values that glibc sets itself once a block of 32 MiB has been freed."""


def keep_freed() -> bool:
    """Keep what this process frees from now on; False where the allocator isn't glibc's.

    A preloaded allocator (jemalloc, tcmalloc) follows its own rules: then this does nothing.
    """
    return _set(KEEP)


def hand_back_freed() -> None:
    """Return free memory to the system: 0.05 to 0.1 s for 1 to 2 GB."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


def as_glibc_does() -> bool:
    """Undo `keep_freed` as far as glibc allows, for comparisons."""
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
