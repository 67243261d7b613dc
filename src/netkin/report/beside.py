"""Figures drawn by processes of their own, beside the analysis: saving them took up to half of an
answer's time.

`python -P -m netkin.report.beside FD` is such a process. It imports matplotlib and little else.
"""

import gc
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import Empty, SimpleQueue
from subprocess import DEVNULL, Popen
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from netkin.report.style import Saved

MOST = 3
"""Processes; the figures of a page are few."""
_painters: ContextVar["Painters | None"] = ContextVar("painters", default=None)


def save(figure: "Figure", stem: Path) -> "tuple[list[Path], Callable[[], Saved]]":
    """`netkin.report.style.save`, by another process in a block of `painters`: the paths of the
    files, and a function that waits for them, or draws what is not begun. Outside such a block they
    are there at once."""
    from netkin.report import style

    job, beside, sent = style.job(figure, stem), _painters.get(), b""
    with suppress(Exception):  # a figure of another's study may have what pickle does not know
        sent = pickle.dumps(job) if beside else b""
    if beside is None or not sent:
        saved = style.save(job)
        return job.paths, lambda: saved
    drawn = beside.threads.submit(beside.save, sent)
    return job.paths, cache(lambda: style.save(job) if drawn.cancel() else drawn.result())


@contextmanager
def painters() -> Iterator[None]:
    """Have figures of this block drawn by other processes, on the cores but this process's own. At
    its end they are drawn; after an error they need not be."""
    number = min(len(os.sched_getaffinity(0)) - 1, MOST)
    if number == 0:
        yield
        return
    beside = Painters(number)
    token = _painters.set(beside)
    try:
        yield
        beside.threads.shutdown()
    finally:
        _painters.reset(token)
        beside.end()


def prepare() -> None:
    """Start a process, which takes a second, before there is anything to draw."""
    if beside := _painters.get():
        beside.threads.submit(beside.start)


class Painters:
    """Processes that draw, each started by the thread that first waits for it."""

    def __init__(self, number: int):
        self.threads, self.ended = ThreadPoolExecutor(number, "figures"), False
        self._all: list[tuple[Popen[bytes], Connection]] = []
        self._idle: SimpleQueue[Connection] = SimpleQueue()

    def save(self, job: bytes) -> "Saved":
        """What a process makes of a pickled job; where it fails or dies, what this process does."""
        from netkin.report import style

        saved = None
        with suppress(EOFError, OSError):
            connection = self._free()
            connection.send_bytes(job)
            saved = connection.recv()
            self._idle.put(connection)
        if saved is None and self.ended:
            raise InterruptedError("the run has ended")
        return saved or style.save(pickle.loads(job))

    def start(self) -> None:
        """Start the first process."""
        if not self._all:
            with suppress(OSError):
                self._idle.put(self._started())

    def _free(self) -> Connection:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._started()

    def _started(self) -> Connection:
        ours, theirs = Pipe()
        command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
        with theirs:  # in a group of its own: a terminal's signals are for the run
            process = Popen(
                command, stdin=DEVNULL, stdout=DEVNULL, pass_fds=[theirs.fileno()], process_group=0
            )
        self._all.append((process, ours))
        return ours

    def end(self) -> None:
        """End the processes, at once."""
        self.ended = True
        for process, _ in list(self._all):
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process, connection in self._all:
            process.kill()  # also one that was being started
            process.wait()
            connection.close()


def main(connection: Connection) -> None:
    """Save figures until the run has ended, or has been killed."""
    gc.disable()  # which takes a fifth of the imports
    from netkin.report import style

    gc.enable()
    with suppress(EOFError, OSError):
        while True:
            job, saved = connection.recv_bytes(), None
            with suppress(Exception):  # the run tries again, and says what is wrong
                saved = style.save(pickle.loads(job))
            connection.send(saved)
    os._exit(0)  # at once: nothing is open


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
