"""Work on many members at once: processes on a CPU, one process a device on GPUs.

Small networks do not fill a core's vector units, let alone several cores: several members at once
with one thread each finish sooner than one member on all cores. Results do not depend on the
number of workers, only (in the last float bits) on the threads that each has.

The processes for several devices are ours, not Lightning's. Its `ddp` starts the whole command once
a device, with its sweeps and reports. Its `ddp_spawn` starts new processes for every pass of every
member: 27 s and 35 s for an empty pass on two busy cores, where ours took 24 s to start once and
0.2 s a pass afterwards. Its `ddp_fork` took 0.4 s, but cannot be used once CUDA is. Our processes
are independent: the passes need no collective operations, so none waits for another that has
failed, and only the main process logs and reports.
"""

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from typing import Any, Protocol

from netkin.errors import Stopped, StoreError, UserError
from netkin.jobs import semaphores, worker
from netkin.jobs.memory import hand_back_freed
from netkin.jobs.results import Result
from netkin.jobs.signals import blocked

Advance = Callable[[int], None]
Failed = Callable[[Any, Exception], None]

PATIENCE = 1.0
"""Seconds until work that another process on the store has taken is tried again."""
GRACE = 10.0
"""Seconds that workers have to give up their work when the run is stopped. They need far less,
except on a machine that is busy with other things; SLURM kills after 30."""

log = logging.getLogger(__name__)


class Display(Protocol):
    """Displays progress; see `netkin.jobs.progress`."""

    def start(self, stage: str, names: Sequence[str], units: int) -> None:
        """Begin a stage on named items, of `units` in all."""
        ...

    def advance(self, stage: str, units: int) -> None:
        """Some more units are done."""
        ...

    def finish(self, stage: str, name: str, result: Result) -> None:
        """An item is done."""
        ...

    def wait(self, stage: str, name: str) -> None:
        """The rest of an item is done by another process on the store."""
        ...

    def end(self, stage: str) -> None:
        """The stage is done."""
        ...


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
        display: Display,
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
        worker.set_up(self.threads)
        todo, idle = list(items), 0

        def advance(units: int) -> None:
            Stopped.check()
            self.display.advance(stage, units)

        while todo:
            item = todo.pop(0)
            outcome = _outcome(work, self.context, item, advance)
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
        jobs: dict[Future, Any] = {
            pool.submit(worker.run, stage, work, item): item for item in items
        }
        self._starting = False
        later: list[tuple[float, Any]] = []
        try:
            with self._listening():
                while jobs or later:
                    Stopped.check()
                    now = time.monotonic()
                    for due, item in [entry for entry in later if entry[0] <= now]:
                        jobs[pool.submit(worker.run, stage, work, item)] = item
                        later.remove((due, item))
                    # Not for longer: the signal that stops the run may wake another thread.
                    for job in wait(jobs, PATIENCE / 4, FIRST_COMPLETED).done:
                        item = jobs.pop(job)
                        outcome = _result(job)
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
        if self._pool is None:
            # forkserver: one clean process imports torch once, and the workers are its forks.
            method = "forkserver" if hasattr(os, "fork") else "spawn"
            processes = multiprocessing.get_context(method)
            default = multiprocessing.get_start_method(allow_none=True)
            if default not in (None, "fork", "forkserver", "spawn"):
                # joblib's processes have a start method of their own, unknown to ours.
                multiprocessing.set_start_method(method, force=True)
            if method == "forkserver":
                processes.set_forkserver_preload(list(self.preload))
                resource_tracker.ensure_running()  # whose start would end with SIGINT not blocked
                # Ctrl-C reaches all processes of a terminal, also those that still import torch
                # and have no handler yet. The main process decides, and sends SIGTERM.
                with blocked([signal.SIGINT]):
                    forkserver.ensure_running()
            semaphores.sweep()
            # As bytes: multiprocessing would move the context's tensors to shared memory, and an
            # array that shares memory with one of them would read memory that was freed.
            context = pickle.dumps(self.context)
            with semaphores.named():
                self._pool = self._new_pool(processes, context)
        return self._pool

    def _new_pool(self, processes: Any, context: bytes) -> ProcessPoolExecutor:
        self._events, devices = processes.Queue(), None
        if self.gpus:
            devices = processes.Queue()
            for gpu in _visible_gpus(self.workers):
                devices.put(gpu)
        arguments = (context, self.threads, self._events, devices)
        return ProcessPoolExecutor(self.workers, processes, worker.start, arguments)

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


def _visible_gpus(number: int) -> list[str]:
    """CUDA's names of the first GPUs that are visible to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [name.strip() for name in visible.split(",")] if visible else list(map(str, range(number)))
    )


def _result(job: Future) -> Any:
    try:
        return job.result()
    except BrokenProcessPool:
        raise
    except Exception as error:
        return error


def _outcome(work: Callable, *arguments: Any) -> Any:
    """What work returns, or the exception that it raises."""
    try:
        return work(*arguments)
    except Exception as error:
        return error
    finally:
        hand_back_freed()
