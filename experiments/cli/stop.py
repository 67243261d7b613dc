"""How a command ends early: by an error, or by a signal from its first line on.

Imports nothing but small modules, so that it is ready before anything else.
"""

import atexit
import gc
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from netkin.errors import Stopped
from netkin.jobs.signals import STOPPING

Handler = Callable[[int, FrameType | None], None]


def command() -> str:
    """The command as it was typed, to be copied."""
    return shlex.join(["python", *sys.argv])


def before_work() -> None:
    """Stop at once, without an exception, which an import may catch or print."""
    handle(_leave)
    # Looking for garbage among what is imported takes a fifth of the imports, and 0.8 s at exit.
    gc.disable()
    atexit.register(gc.freeze)


def handle(handler: Handler) -> None:
    """Have a function called for each signal that stops a run; `nohup` stays without effect."""
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def while_importing() -> Iterator[None]:
    """Stop as in `before_work` in the block, unless signals have another handler, as in a job on
    SLURM. After it garbage is collected, but not among what was imported."""
    ours = signal.getsignal(signal.SIGTERM) is by_exception
    if ours:
        handle(_leave)
    try:
        yield
    finally:
        if ours:
            handle(by_exception)
        if not gc.isenabled():
            gc.freeze()
            gc.enable()


def by_exception(number: int, _frame: FrameType | None) -> None:
    """Raise `Stopped`. A second signal exits at once, but for SIGHUP: a closed terminal sends two,
    and can be printed to no more."""
    handle(at_once)
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)
        for stream in (1, 2):
            try:
                os.write(stream, b"")
            except OSError:
                silence(stream)
    Stopped.requested = 128 + number
    raise Stopped(128 + number)


def at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _leave(number: int, _frame: FrameType | None) -> None:
    with suppress(OSError):  # its terminal has closed
        os.write(2, f"stopped before any work. To go on: {command()}\n".encode())
    for folder in _temporary:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(128 + number)


_temporary: list[str] = []


def own_temporary_folder() -> None:
    """Have this process, and what it starts, make temporary files in a folder that goes with it.

    Some are left otherwise: PyTorch's and W&B's, made when they are imported, also by workers.
    """
    if not _temporary:
        import tempfile
        from multiprocessing import util

        _temporary.append(util.get_temp_dir())
        tempfile.tempdir = os.environ["TMPDIR"] = _temporary[0]


def silence(stream: int = 1) -> None:
    """Print nothing from here on: the reader of our output has left, as `| head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def fail(message: str, code: int) -> NoReturn:
    """Print a message on the error stream, as an error where the code is 1, and exit."""
    text = f"error: {message}" if code == 1 else message
    width = shutil.get_terminal_size().columns
    if sys.stderr.isatty() and len(text) > width:  # which would break words
        said, colon, typed = text.partition(": python ")
        text = textwrap.fill(
            said + colon[:1], width, break_long_words=False, break_on_hyphens=False
        )
        text += f"\n  python {typed}" if colon else ""
    print(text, file=sys.stderr)
    sys.exit(code)
