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

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any

import psutil

from netkin.errors import Stopped, StoreError, UserError
from netkin.jobs.process import keep_freed, release_freed
from netkin.jobs.progress import Bars
from netkin.jobs.results import Result
from netkin.jobs.signals import blocked, quiet_stops

Advance = Callable[[int], None]
Failed = Callable[[Any, Exception], None]

PATIENCE = 1.0
"""Seconds until work that another process on the store has taken is tried again."""
GRACE = 10.0
"""Seconds that workers have to give up their work when the run is stopped. They need far less,
except on a machine that is busy with other things; SLURM kills after 30."""

log = logging.getLogger(__name__)


class Jobs:
    """Runs module-level functions `work(context, item, advance)` over items, stage by stage.

    Args:
        context: what every job needs; sent to each worker once.
        workers: processes at once; with 1, jobs run in this process.
        threads: torch threads of each worker.
        display: displays progress.
        preload: modules that workers import before they start.
        devices: that work on one member is split over; above 1, each worker is one of them.
        gpus: whether devices are GPUs: the first worker's is the first one, and so on.

    `stopped` is called after the workers were stopped before their work was finished, to clean up
    what they may have left.
    """

    def __init__(
        self,
        context: Any,
        workers: int,
        threads: int,
        display: Bars,
        preload: Sequence[str] = (),
        devices: int = 1,
        gpus: bool = False,
    ):
        self.context, self.workers, self.threads = context, workers, threads
        self.display, self.preload = display, preload
        self.devices, self.gpus = devices, gpus and devices > 1
        self.stopped: Callable[[], None] = lambda: None
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

        `work` returns a `netkin.jobs.results.Result`; what another process has taken, its
        `remaining`, is tried again later. The display shows an item by its `name`.

        An item's error goes to `failed`, and the others continue. Without `failed`, and where the
        store has failed, the first error ends the stage and is raised.
        """
        Stopped.check()
        if not items:
            return
        self.display.start(stage, [item.name for item in items], units)
        run = self._here if self.workers == 1 else self._in_pool
        for item, outcome in run(stage, work, items):
            if isinstance(outcome, Exception):
                if failed is None or isinstance(outcome, StoreError):
                    raise outcome
                failed(item, outcome)
                continue
            if outcome.remaining is None:
                self.display.finish(stage, item.name, outcome)
            else:
                self.display.wait(stage, item.name)
            yield item, outcome
        self.display.end(stage)

    def _here(self, stage: str, work: Callable, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        _set_up(self.threads)
        todo, idle = list(items), 0

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
            idle += 1
            if isinstance(outcome, Result) and outcome.remaining is not None:
                todo.append(outcome.remaining)
                if idle > len(todo):  # other processes have taken all that is left
                    time.sleep(PATIENCE)
            else:
                idle = 0

    def _in_pool(
        self, stage: str, work: Callable, items: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]:
        pool = self._started()
        self._starting = True  # the first jobs start the workers
        jobs: dict[Future, Any] = {pool.submit(_run, stage, work, item): item for item in items}
        self._starting = False
        later: list[tuple[float, Any]] = []
        try:
            with self._listening():
                while jobs or later:
                    Stopped.check()
                    now = time.monotonic()
                    for due, item in [entry for entry in later if entry[0] <= now]:
                        jobs[pool.submit(_run, stage, work, item)] = item
                        later.remove((due, item))
                    # Not for longer: the signal that stops the run may wake another thread.
                    for job in wait(jobs, PATIENCE / 4, FIRST_COMPLETED).done:
                        item, error = jobs.pop(job), job.exception()
                        if isinstance(error, BrokenProcessPool):
                            raise error
                        outcome = error or job.result()
                        yield item, outcome
                        if isinstance(outcome, Result) and outcome.remaining is not None:
                            later.append((time.monotonic() + PATIENCE, outcome.remaining))
                    if later and not jobs:
                        time.sleep(PATIENCE / 4)
        except BrokenProcessPool:
            time.sleep(0.5)  # a signal that killed the workers may be about to reach this process
            raise UserError(
                f"a worker process died during {stage} (was it killed, or out of memory?); what "
                "was finished is kept: run the same command again, with fewer workers if need be"
            ) from None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is not None:
            return self._pool
        # forkserver: one clean process imports torch once, and the workers are its forks.
        method = "forkserver" if hasattr(os, "fork") else "spawn"
        processes = multiprocessing.get_context(method)
        default = multiprocessing.get_start_method(allow_none=True)
        if default not in (None, "fork", "forkserver", "spawn"):
            # joblib's processes have a start method that ours do not know.
            multiprocessing.set_start_method(method, force=True)
        if method == "forkserver":
            processes.set_forkserver_preload(list(self.preload))
            resource_tracker.ensure_running()  # whose start would end with SIGINT not blocked
            # Ctrl-C reaches all processes of a terminal, also those that still import torch
            # and have no handler yet. The main process decides, and sends SIGTERM.
            with blocked([signal.SIGINT]):
                forkserver.ensure_running()
        # As bytes: multiprocessing would move the context's tensors to shared memory, and an
        # array that shares memory with one of them would read memory that was freed.
        context = pickle.dumps(self.context)
        with _named_semaphores():
            self._events, devices = processes.Queue(), None
            if self.gpus:
                devices = processes.Queue()
                visible = os.environ.get("CUDA_VISIBLE_DEVICES")
                names = visible.split(",") if visible else map(str, range(self.workers))
                for name in names:
                    devices.put(name.strip())
            arguments = (context, self.threads, self._events, devices)
            self._pool = ProcessPoolExecutor(self.workers, processes, _start, arguments)
        return self._pool

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass the workers' progress on to the display from a thread of this process."""
        done = threading.Event()

        def listen() -> None:
            while True:
                try:
                    self.display.advance(*self._events.get(timeout=0.02 if done.is_set() else 0.2))
                except queue.Empty:
                    if done.is_set():
                        return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

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
        server = getattr(forkserver._forkserver, "_forkserver_pid", None)
        if self._starting and server:
            # It would still start the worker that it was told to, for a parent that has gone.
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
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


@contextmanager
def _named_semaphores() -> Iterator[None]:
    """Semaphores made in the block are named after this process; those of ended ones are removed.

    multiprocessing's tracker removes semaphores when a process ends, but `kill -9` of a process
    group ends the tracker, too, and its semaphores would stay in /dev/shm for good.
    """
    for file in Path("/dev/shm").glob("sem.netkin-*"):
        with suppress(OSError, ValueError, IndexError):
            if not psutil.pid_exists(int(file.name.split("-")[1])):
                file.unlink()
    usual = SemLock.__dict__["_make_name"]  # joblib has one of its own, too
    SemLock._make_name = staticmethod(  # type: ignore[attr-defined]
        lambda: f"/netkin-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    )
    try:
        yield
    finally:
        SemLock._make_name = usual  # type: ignore[attr-defined]


# What follows runs in a worker process.

_context: Any = None
_events: Any = None
_working = False


def _start(context: bytes, threads: int, events: Any, devices: Any) -> None:
    """Set up a worker process."""
    global _context, _events
    _context, _events = pickle.loads(context), events
    if devices is not None:
        # Before CUDA starts; the device is number 0 to this process.
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    # Where a signal cannot be blocked. A function, since Lightning calls the handler that is set,
    # which SIG_IGN cannot be.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, _give_up)
    quiet_stops()
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


def _set_up(threads: int) -> None:
    """Prepare this process for running models."""
    import torch

    torch.set_num_threads(threads)
    keep_freed()


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
