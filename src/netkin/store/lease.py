"""Leases: which process is making what, so that several share one store and do nothing twice.

A lease is a small file in `<store>/.leases/`. It only saves work: what is written is whole, and the
same whoever writes it, so two processes that did the same work would waste time and nothing else.

What this asks of a shared file system: a rename within a folder is atomic, creating a file with
O_EXCL fails where it exists, and opening a file shows when it was last modified. Local file
systems, NFS from version 3 on, Lustre, GPFS and BeeGFS do all three. Locks and agreeing clocks are
not needed.

- A holder touches its leases every BEAT seconds.
- A lease is dead when its holder was a process of this machine that is gone, or when an observer
  has not seen it touched for STALE seconds of its own clock.
- Generations `<key>.0`, `<key>.1`, ... settle who takes over a dead lease: the one who creates the
  next. A holder that was only slow finds itself outdated, which does no harm: see above.
- A new holder has to look whether the work was done in the meantime.
"""

import glob
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
    """A process: `machine` tells one boot of one computer (and container) from all others."""

    machine: str
    host: str
    pid: int
    started: float
    product: str = ""

    def runs_here(self) -> bool:
        """Whether this is a process of this machine that is still there."""
        if self.machine != this_machine():
            return False
        try:
            process = psutil.Process(self.pid)
            # What nobody has waited for is dead, too. Start times move with the system's clock.
            return process.status() != psutil.STATUS_ZOMBIE and (
                abs(process.create_time() - self.started) < 5
            )
        except psutil.Error:
            return False


@cache
def this_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def token() -> str:
    """This process in a file's name."""
    return _token(this_machine(), os.getpid())


def _token(machine: str, pid: int) -> str:
    return f"{hashlib.sha256(machine.encode()).hexdigest()[:8]}-{pid}"


def me(product: str = "") -> Holder:
    """This process as the holder of a lease."""
    pid = os.getpid()
    started = psutil.Process(pid).create_time()
    return Holder(this_machine(), platform.node(), pid, started, product)


_beating: set[Path] = set()
_beater: tuple[int, threading.Thread] | None = None
_seen: dict[Path, tuple[int, float]] = {}
"""When an observer has first seen a lease's present modification time, by its own clock."""


@contextmanager
def lease(root: Path, product: Path) -> Iterator[bool]:
    """Become the one who makes `product`, a path below the store's `root`, for the block's time.

    Yields whether that worked; if not, another process has it in hand. Raises StoreError when the
    store cannot be written.
    """
    mine = _acquire(_folder(root), _key(root, product), _name(root, product))
    if mine is None:
        yield False
        return
    _beating.add(mine)
    _start_beating()
    try:
        yield True
    finally:
        _beating.discard(mine)
        _release(mine)


def is_held(root: Path, product: Path) -> bool:
    """Whether a living process has a product in hand (at this moment)."""
    newest = _newest(_folder(root), _key(root, product))
    return newest is not None and _holder(newest)[1]


def holders(root: Path) -> list[tuple[Holder | None, bool, Path]]:
    """All leases of a store: (holder, where its file could be read; whether it lives; the file)."""
    found = sorted(_folder(root).glob("*.*")) if _folder(root).is_dir() else []
    return [(*_holder(file), file) for file in found]


def sweep(root: Path) -> None:
    """Remove what processes of this machine left in a store when they were killed."""
    for holder, lives, file in holders(root):
        if holder is None or lives or holder.machine != this_machine():
            continue
        product = root / holder.product
        begun = glob.escape(f".{product.name}.{_token(holder.machine, holder.pid)}-")
        with suppress(OSError):
            for half in product.parent.glob(f"{begun}*.tmp"):
                half.unlink()
            file.unlink()


def _folder(root: Path) -> Path:
    return root / ".leases"


def _name(root: Path, product: Path) -> str:
    return product.relative_to(root).as_posix()


def _key(root: Path, product: Path) -> str:
    return hashlib.sha256(_name(root, product).encode()).hexdigest()[:24]


def _newest(folder: Path, key: str) -> Path | None:
    found = folder.glob(f"{key}.*") if folder.is_dir() else ()
    return max(found, key=_generation, default=None)


def _generation(file: Path) -> int:
    return int(file.suffix[1:])


def _acquire(folder: Path, key: str, product: str) -> Path | None:
    newest = _newest(folder, key)
    if newest is not None and _holder(newest)[1]:
        return None
    mine = folder / f"{key}.{0 if newest is None else _generation(newest) + 1}"
    try:
        folder.mkdir(exist_ok=True)
        file = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:  # another one was quicker
        return None
    except OSError as error:
        raise StoreError(
            f"cannot write {mine} ({error.strerror}); make room or permission"
        ) from None
    try:
        with os.fdopen(file, "w") as out:
            json.dump(asdict(me(product)), out)
    except OSError as error:
        mine.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {mine} ({error.strerror}); what was finished before is kept: make room, "
            "and run the same command again"
        ) from None
    return mine


def _release(mine: Path) -> None:
    """Remove a lease and those that it took over."""
    for generation in range(_generation(mine), -1, -1):
        with suppress(OSError):
            mine.with_suffix(f".{generation}").unlink()


def _holder(file: Path) -> tuple[Holder | None, bool]:
    """Who holds a lease, and whether that process lives, as far as one can see by now."""
    try:
        with file.open() as opened:  # opened, so that NFS asks its server
            touched = os.fstat(opened.fileno()).st_mtime_ns
            content = opened.read()
    except OSError:  # released meanwhile: whoever asks may look again
        return None, False
    try:
        holder = Holder(**json.loads(content))
    except (ValueError, TypeError):  # created this moment, or on a disk that was full
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
