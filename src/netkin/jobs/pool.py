"""Work on many members at once: processes on a CPU, one process a device on GPUs.

Small networks do not fill a core's vector units, let alone several cores: several members at once
with one thread each finish sooner than one member on all cores. Results do not depend on the
number of workers, only (in the last float bits) on the threads that each has.

The processes for several devices are netkin's, not Lightning's. Its `ddp` starts the whole command
once a device, with its sweeps and reports. Its `ddp_spawn` starts new processes for every pass of
every member: 27 s and 35 s for an empty pass on two busy cores, where these took 24 s to start once
and 0.2 s a pass afterwards. Its `ddp_fork` cannot be used once CUDA is. The passes need no
collective operations, so no process waits for another that has failed, and only the main process
logs and reports.
"""

import ctypes
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

from netkin.errors import Stopped, StoreError, UserError
from netkin.jobs.progress import Bars
from netkin.jobs.signals import OTHERS, blocked, quiet_stops

Advance = Callable[[int], None]
Failed = Callable[[Any, Exception], None]

PASSES = ("netkin.training.train", "netkin.passes.craft", "netkin.passes.transfer")
"""What the workers of a run import before they start."""
PATIENCE = 1.0
"""Seconds until work that another process on the store has taken is tried again."""
GRACE = 10.0
"""Seconds that workers have to give up their work when the run is stopped. They need far less,
except on a machine that is busy with other things; SLURM kills after 30."""


@dataclass(frozen=True)
class Processes:
    """The processes that work on several models at once.

    Attributes:
        workers: of them; with 1, this process works.
        threads: torch threads of each.
        devices: that work on one model is split over; above 1, each worker is one of them.
        gpus: whether devices are GPUs: the first worker's is the first one, and so on.
    """

    workers: int = 1
    threads: int = 1
    devices: int = 1
    gpus: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """One item's work, as workers return it.

    Attributes:
        seconds: wall-clock time that it took.
        images: number of images that a model was run on, or that were decoded.
        remaining: the item reduced to what another process has taken, which is tried again later;
            None where the item is finished.
        shards: of crafting, the number of shards.
        curves, test_accuracy: of training, a row an epoch (see `netkin.training.fit`), and the
            accuracy in [0, 1] of the weights that were kept, None where it was not evaluated.
    """

    seconds: float = 0.0
    images: int = 0
    remaining: Any = None
    shards: int = 0
    curves: Sequence[Mapping[str, float]] = ()
    test_accuracy: float | None = None

    @property
    def note(self) -> str:
        """What the display adds to the item's name."""
        return f"; test accuracy {self.test_accuracy:.1%}" if self.test_accuracy else ""


def serve(preload: Sequence[str] = PASSES) -> ForkServerContext:
    """Start the process whose forks are the workers, unless it runs; returns what starts workers.

    It imports `preload`, 3 to 6 s, while this process goes on.
    """
    # forkserver: one clean process imports torch once, and the workers are its forks.
    processes = multiprocessing.get_context("forkserver")
    default = multiprocessing.get_start_method(allow_none=True)
    if default not in (None, "fork", "forkserver", "spawn"):
        # joblib's processes have a start method that ours do not know.
        multiprocessing.set_start_method("forkserver", force=True)
    processes.set_forkserver_preload(["netkin.jobs.preloading", *preload])
    # A terminal's signals reach all of its processes, also those that still import torch and
    # have no handler yet. The tracker first: its start ends with SIGINT not blocked.
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        with blocked(OTHERS):
            start()
    return processes


def end_server() -> None:
    """Kill the process of `serve`, which would import to the end after a command that fails."""
    if server := getattr(forkserver._forkserver, "_forkserver_pid", None):
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


class Jobs:
    """Runs module-level functions `work(context, item, advance)` over items, stage by stage.

    Args:
        context: what every job needs; sent to each worker once.
        processes: how many at once.
        display: displays progress.
        preload: modules that workers import before they start.
        stopped: called after the workers were stopped before their work was finished, to clean up
            what they may have left.
    """

    def __init__(
        self,
        context: Any,
        processes: Processes,
        display: Bars,
        preload: Sequence[str] = (),
        stopped: Callable[[], None] = lambda: None,
    ):
        self.context, self.processes, self.display = context, processes, display
        self.preload, self.stopped = preload, stopped
        self._pool: ProcessPoolExecutor | None = None
        self._events: Any = None
        self._starting = False

    def run(
        self,
        stage: str,
        work: Callable,
        items: Sequence[Any],
        units: int,
        failed: Failed | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (item, result) as jobs finish; `units` is the stage's total of `advance` calls.

        `work` returns a `Result`; what another process has taken, its `remaining`, is tried again
        later. The display shows an item by its `name`.

        An item's error goes to `failed`, and the others continue. Without `failed`, and where the
        store has failed, the first error ends the stage and is raised.
        """
        Stopped.check()
        if not items:
            return
        self.display.start(stage, [item.name for item in items], units)
        run = self._here if self.processes.workers == 1 else self._in_pool
        for item, outcome in run(stage, work, items):
            if isinstance(outcome, Exception):
                if failed is None or isinstance(outcome, StoreError):
                    raise outcome
                failed(item, outcome)
                continue
            if outcome.remaining is None:
                self.display.finish(stage, item.name, outcome.note)
            else:
                self.display.wait(stage, item.name)
            yield item, outcome
        self.display.end(stage)

    def _here(self, stage: str, work: Callable, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        _set_up(self.processes.threads)
        todo, refused = list(items), 0

        def advance(units: int) -> None:
            Stopped.check()
            self.display.advance(stage, units)

        while todo:
            item = todo.pop(0)
            try:
                outcome = work(self.context, item, advance)
            except Exception as error:
                outcome = error
            finally:
                release_freed()
            yield item, outcome
            remaining = getattr(outcome, "remaining", None)
            if remaining is None:
                refused = 0
                continue
            todo.append(remaining)
            refused += 1
            if refused >= len(todo):  # other processes have taken all that is left
                time.sleep(PATIENCE)

    def _in_pool(
        self, stage: str, work: Callable, items: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]:
        pool = self._started()
        self._starting = True  # the first jobs start the workers
        jobs: dict[Future, Any] = {pool.submit(_run, stage, work, item): item for item in items}
        self._starting = False
        later: list[tuple[float, Any]] = []
        try:
            while jobs or later:
                Stopped.check()
                while later and later[0][0] <= time.monotonic():
                    _, item = later.pop(0)
                    jobs[pool.submit(_run, stage, work, item)] = item
                # Not for longer: the signal that stops the run may wake another thread.
                if not jobs:
                    time.sleep(PATIENCE / 4)
                for job in wait(jobs, PATIENCE / 4, FIRST_COMPLETED).done:
                    item, error = jobs.pop(job), job.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    outcome = error or job.result()
                    yield item, outcome
                    if (remaining := getattr(outcome, "remaining", None)) is not None:
                        later.append((time.monotonic() + PATIENCE, remaining))
                self._show_progress()
            self._show_progress(0.02)  # what is still on its way
        except BrokenProcessPool:
            time.sleep(0.5)  # a signal that killed the workers may be about to reach this process
            raise UserError(
                f"a worker process died during {stage} (was it killed, or out of memory?); what "
                "was finished is kept: run the same command again, with fewer workers if need be"
            ) from None

    def _show_progress(self, seconds: float = 0.0) -> None:
        """Pass the workers' progress on to the display, until there is none for some seconds."""
        with suppress(queue.Empty):
            while True:
                self.display.advance(*self._events.get(timeout=seconds))

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is not None:
            return self._pool
        processes = serve(self.preload)
        # As bytes: multiprocessing would move the context's tensors to shared memory, and an
        # array that shares memory with one of them would read memory that was freed.
        context = pickle.dumps(self.context)
        self._events, devices = processes.Queue(), None
        workers = self.processes.workers
        if self.processes.gpus and self.processes.devices > 1:
            devices = processes.Queue()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            for name in visible.split(",") if visible else map(str, range(workers)):
                devices.put(name.strip())
        arguments = (context, self.processes.threads, self._events, devices)
        self._pool = ProcessPoolExecutor(workers, processes, _start, arguments)
        return self._pool

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:  # results of running jobs are not needed
                self._stop()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _stop(self) -> None:
        """Have the workers give up their work, and kill those that take too long."""
        assert self._pool is not None
        if self._starting:
            # It would still start the worker that it was told to, for a parent that has gone.
            end_server()
        processes = multiprocessing.active_children()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self.stopped()


# The memory that a working process keeps. A step of an attack frees its tensors, and the next one
# allocates as much again. glibc returns large blocks to the system each time, which has to clear
# and map the new pages: 4,000 to 60,000 page faults a step of a full-size model, up to two fifths
# of its time (experiments/results/speed.md). Freed memory is therefore kept while a model is run.

LIBC: Any = ctypes.CDLL(None)
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
        return all([LIBC.mallopt(option, value) for option, value in options.items()])
    except AttributeError:
        return False


def release_freed() -> None:
    """Return free memory to the system: 0.05 to 0.1 s for 1 to 2 GB."""
    with suppress(AttributeError):
        LIBC.malloc_trim(0)


def _set_up(threads: int) -> None:
    """Prepare this process for running models."""
    import torch

    torch.set_num_threads(threads)
    keep_freed()


# What follows runs in a worker process.

_context: Any = None
_events: Any = None
_working = False


def _start(context: bytes, threads: int, events: Any, devices: Any) -> None:
    global _context, _events
    _context, _events = pickle.loads(context), events
    if devices is not None:
        # Before CUDA starts; the device is number 0 to this process.
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    signal.signal(signal.SIGTERM, _give_up)
    quiet_stops()
    gc.freeze()
    gc.enable()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _set_up(threads)


def _give_up(number: int, _frame: Any) -> None:
    if _working:
        raise Stopped(128 + number)  # unwinds the blocks that hold leases
    os._exit(128 + number)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(stage: str, work: Callable, item: Any) -> Any:
    """The result of work on an item; the process ends where it is told to give up."""
    global _working
    try:
        _working = True
        return work(_context, item, lambda n: _events.put((stage, n)))
    except Stopped as stop:
        os._exit(stop.code)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some libraries' errors cannot be pickled
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
    finally:
        release_freed()
        _working = False
