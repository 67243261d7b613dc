"""Work on many members at once: processes on a CPU, one after another elsewhere.

Small networks do not fill a core's vector units, let alone several cores: with one thread each,
several members at once finish sooner than one member on all cores. Results do not depend on the
number of workers, only (in the last float bits) on the threads that each has.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from netkin.errors import UserError

Advance = Callable[[int], None]


class Display(Protocol):
    """Where progress is shown; see `netkin.progress`."""

    def start(self, stage: str, names: Sequence[str], units: int) -> None: ...
    def advance(self, stage: str, units: int) -> None: ...
    def finish(self, stage: str, name: str, result: Any) -> None: ...
    def end(self, stage: str) -> None: ...


class Jobs:
    """Runs module-level functions `work(context, item, advance)` over items, stage by stage.

    Args:
        context: what every job needs; sent to each worker once.
        workers: processes at once; with 1, jobs run in this process.
        threads: torch threads of each worker.
        display: where progress is shown.
        preload: modules that workers import before they start.
    """

    def __init__(
        self,
        context: Any,
        workers: int,
        threads: int,
        display: Display,
        preload: Sequence[str] = (),
    ):
        self.context, self.workers, self.threads = context, workers, threads
        self.display, self.preload = display, preload
        self._pool: ProcessPoolExecutor | None = None
        self._events: Any = None

    def run(
        self, stage: str, work: Callable, items: Sequence[Any], units: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (item, result) as jobs finish; `units` is the stage's total of `advance` calls.

        Items are told apart in the display by their `name`. The first error ends the stage.
        """
        if not items:
            return
        self.display.start(stage, [item.name for item in items], units)
        run = self._here if self.workers == 1 else self._in_pool
        for item, result in run(stage, work, items):
            self.display.finish(stage, item.name, result)
            yield item, result
        self.display.end(stage)

    def _here(self, stage: str, work: Callable, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        _use_threads(self.threads)
        for item in items:
            yield item, work(self.context, item, lambda n: self.display.advance(stage, n))

    def _in_pool(
        self, stage: str, work: Callable, items: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]:
        pool = self._started()
        jobs = {pool.submit(_work, stage, work, item): item for item in items}
        try:
            with self._listening():
                for job in as_completed(jobs):
                    yield jobs[job], job.result()
        except BrokenProcessPool:
            raise UserError(
                f"a worker process died during {stage} (was it killed, or out of memory?); what "
                "was finished is kept: run the same command again, with fewer workers if need be"
            ) from None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # forkserver: one clean process imports torch once, and the workers are its forks.
            method = "forkserver" if hasattr(os, "fork") else "spawn"
            processes = multiprocessing.get_context(method)
            if method == "forkserver":
                processes.set_forkserver_preload(list(self.preload))
            self._events = processes.Queue()
            self._pool = ProcessPoolExecutor(
                self.workers, processes, _start, (self.context, self.threads, self._events)
            )
        return self._pool

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass the workers' progress on to the display from a thread of this process."""
        done = threading.Event()

        def listen() -> None:
            while not done.is_set():
                try:
                    self.display.advance(*self._events.get(timeout=0.2))
                except queue.Empty:
                    continue

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
            if kind is not None:  # do not wait for jobs whose results nobody will read
                for process in multiprocessing.active_children():
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


_context: Any = None
_events: Any = None


def _start(context: Any, threads: int, events: Any) -> None:
    """Set up a worker process."""
    global _context, _events
    _context, _events = context, events
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _use_threads(threads)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _work(stage: str, work: Callable, item: Any) -> Any:
    return work(_context, item, lambda n: _events.put((stage, n)))
