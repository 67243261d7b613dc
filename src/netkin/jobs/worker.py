"""A worker process of `netkin.jobs.pool`: it sets itself up, works, and gives up when told to."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

from netkin.errors import Stopped
from netkin.jobs.memory import hand_back_freed, keep_freed
from netkin.jobs.signals import quiet_stops

_context: Any = None
_events: Any = None


def start(context: bytes, threads: int, events: Any, devices: Any) -> None:
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
    set_up(threads)


def _give_up(number: int, _frame: Any) -> None:
    if _working:
        raise Stopped(128 + number)  # unwinds the blocks that hold leases
    os._exit(128 + number)


_working = False


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def set_up(threads: int) -> None:
    """Prepare this process for running models."""
    import torch

    torch.set_num_threads(threads)
    keep_freed()


def run(stage: str, work: Callable, item: Any) -> Any:
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
        hand_back_freed()
        _working = False
