"""A process as it was: what the passes set while they run is restored after them."""

import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from netkin.errors import Stopped
from netkin.jobs.memory import as_glibc_does, hand_back_freed

_one_at_a_time = threading.RLock()


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore the process's global state after the block, for users of the library.

    That is the state of random numbers (torch on all devices, NumPy, Python), the number of torch's
    threads, cuDNN's flags, warnings, the environment, and the handler of Ctrl-C, which raises
    KeyboardInterrupt. One thread is in such a block at a time.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with (
        _one_at_a_time,
        torch.random.fork_rng(gpus),
        torch.inference_mode(False),
        warnings.catch_warnings(),
        _interruptible(),
    ):
        numpy_state, python_state = np.random.get_state(), random.getstate()
        threads, environment = torch.get_num_threads(), dict(os.environ)
        cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)
            as_glibc_does()
            hand_back_freed()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as a KeyboardInterrupt that Lightning does not catch: it would end the process."""
    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not ours or before is not signal.default_int_handler:
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise Stopped(128 + number)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Stopped as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
