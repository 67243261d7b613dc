"""Named semaphores of processes that were killed: multiprocessing's stay in /dev/shm for good.

Its tracker removes them when a process ends, but `kill -9` of a process group, or a cluster's
scheduler, ends the tracker, too. So ours are named after their process, and later ones sweep.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import SemLock
from pathlib import Path

import psutil

FOLDER, PREFIX = Path("/dev/shm"), "netkin"


@contextmanager
def named() -> Iterator[None]:
    """Semaphores that are made in the block are named after this process."""
    usual = SemLock.__dict__["_make_name"]  # joblib has one of its own, too
    SemLock._make_name = staticmethod(  # type: ignore[attr-defined]
        lambda: f"/{PREFIX}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )
    try:
        yield
    finally:
        SemLock._make_name = usual  # type: ignore[attr-defined]


def sweep() -> None:
    """Remove those of processes of this machine that have ended."""
    for file in FOLDER.glob(f"sem.{PREFIX}-*"):
        with suppress(OSError, ValueError, IndexError):
            if not psutil.pid_exists(int(file.name.split("-")[1])):
                file.unlink()
