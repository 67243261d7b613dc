"""Leases: several processes share a store, and each works on what no other has taken.

A lease is a small file in `<store>/.leases/`. Leases only save work: a file is written completely
or not at all, and its contents do not depend on who writes it, so two processes that did the same
work would waste time and nothing else.

A shared file system must do three things: rename atomically within a folder, fail to create with
O_EXCL a file that exists, and show on opening when a file was last modified. Local file systems,
NFS from version 3 on, Lustre, GPFS and BeeGFS do. Locks and synchronised clocks are not needed.

- A holder touches its leases every BEAT seconds.
- A lease is dead when its holder was a process of this machine that has ended, or when it was not
  touched for STALE seconds by the observer's own clock.
- The process that creates the next of the generations `<key>.0`, `<key>.1`, ... takes over a dead
  lease. A holder that was only slow may finish its work: see above.
- A new holder has to check whether the work was done in the meantime.
"""

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from netkin.errors import StoreError

BEAT = 10.0
STALE = 60.0
"""Seconds: above what a holder needs between two beats, even where NFS caches times for a while."""


@dataclass(frozen=True)
class Holder:
    """A process: `machine` identifies one boot of one computer (and container)."""

    machine: str
    host: str
    pid: int
    started: float
    product: str = ""

    def runs_here(self) -> bool:
        """Whether this is a process of this machine that is still running."""
        if self.machine != this_machine():
            return False
        try:
            process = psutil.Process(self.pid)
            # A zombie has ended, too. Start times change with the system's clock.
            return process.status() != psutil.STATUS_ZOMBIE and (
                abs(process.create_time() - self.started) < 5
            )
        except psutil.Error:
            return False

    @property
    def token(self) -> str:
        """An identifier of the process for file names."""
        return f"{hashlib.sha256(self.machine.encode()).hexdigest()[:8]}-{self.pid}"


@cache
def this_machine() -> str:
    """An identifier of this boot of this computer (and container)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def me(product: str = "") -> Holder:
    """This process as the holder of a lease."""
    pid = os.getpid()
    started = psutil.Process(pid).create_time()
    return Holder(this_machine(), platform.node(), pid, started, product)


_beating: set[Path] = set()
_beater: tuple[int, threading.Thread] | None = None
_seen: dict[Path, tuple[int, float]] = {}
"""A lease's modification time, and when this process first read it, by its own clock."""


@contextmanager
def lease(root: Path, product: Path) -> Iterator[bool]:
    """Take `product`, a path below the store's `root`, during the block.

    Yields whether that worked; if not, another process has taken it. Raises StoreError when the
    store cannot be written.
    """
    file = _acquire(root, product)
    if file is None:
        yield False
        return
    try:
        _beating.add(file)
        _start_beating()
        yield True
    finally:
        _beating.discard(file)
        for generation in range(_generation(file), -1, -1):  # with those that it took over
            with suppress(OSError):
                file.with_suffix(f".{generation}").unlink()


def is_held(root: Path, product: Path) -> bool:
    """Whether a running process has taken a product, at this moment."""
    newest = _newest(root, product)
    return newest is not None and _holder(newest)[1]


def holders(root: Path) -> list[tuple[Holder | None, bool, Path]]:
    """All leases of a store: (holder, None where unreadable; whether it runs; the file)."""
    return [(*_holder(file), file) for file in sorted((root / ".leases").glob("*.*"))]


def sweep(root: Path) -> None:
    """Remove the leases and half-written files of processes of this machine that have ended."""
    for holder, lives, file in holders(root):
        if holder is not None and not lives and holder.machine == this_machine():
            with suppress(OSError):
                for half in (root / holder.product).parent.glob(f".*.{holder.token}-*.tmp"):
                    half.unlink()
                file.unlink()


def _newest(root: Path, product: Path) -> Path | None:
    """The lease of the newest generation of a product, whoever holds it."""
    files = (root / ".leases").glob(f"{_key(root, product)}.*")
    return max(files, key=_generation, default=None)


def _key(root: Path, product: Path) -> str:
    return hashlib.sha256(product.relative_to(root).as_posix().encode()).hexdigest()[:24]


def _generation(file: Path) -> int:
    return int(file.suffix[1:])


def _acquire(root: Path, product: Path) -> Path | None:
    """The file of a new lease; None where another process has it."""
    newest = _newest(root, product)
    if newest is not None and _holder(newest)[1]:
        return None
    generation = 0 if newest is None else _generation(newest) + 1
    file = root / ".leases" / f"{_key(root, product)}.{generation}"
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("x") as out:
            try:
                out.write(json.dumps(asdict(me(product.relative_to(root).as_posix()))))
                out.flush()
            except BaseException:  # the disk is full, or the run is stopped
                file.unlink(missing_ok=True)
                raise
    except FileExistsError:  # another process was faster
        return None
    except OSError as error:
        raise StoreError(
            f"cannot write {file} ({error.strerror}); what was finished before is kept: make room "
            "or permission, and run the same command again"
            if root.is_dir()
            else f"the store {root} has gone: was it removed, or unmounted? Bring it back and run "
            "the same command again"
        ) from None
    return file


def _holder(file: Path) -> tuple[Holder | None, bool]:
    """The holder of a lease, and whether it runs, as far as this process knows."""
    try:
        with file.open() as opened:  # opening it makes NFS revalidate its cache
            touched = os.fstat(opened.fileno()).st_mtime_ns
            content = opened.read()
    except OSError:  # released in the meantime
        return None, False
    try:
        holder = Holder(**json.loads(content))
    except (ValueError, TypeError):  # not written yet, or the disk was full
        holder = None
    if holder is not None and holder.machine == this_machine() and not holder.runs_here():
        return holder, False
    now = time.monotonic()
    last, since = _seen.get(file, (touched, now))
    if last != touched:
        since = now
    _seen[file] = (touched, since)
    return holder, now - since < STALE


def _start_beating() -> None:
    global _beater
    if _beater is None or _beater[0] != os.getpid():  # threads do not survive a fork
        thread = threading.Thread(target=_beat, daemon=True, name="leases")
        _beater = (os.getpid(), thread)
        thread.start()


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        for file in list(_beating):
            with suppress(OSError):
                os.utime(file)
