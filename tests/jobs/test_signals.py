"""Signals to all processes of a job reach the main one only; a stop is never swallowed."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from typing import Any, cast

import pytest
import torch
from torch.utils.data import Dataset

from netkin.jobs.signals import STOPPING
from netkin.runner import Loaded, Loading

PROGRAM = """
import os, signal, time
from netkin.errors import Stopped
from netkin.jobs.signals import quiet_stops

def stop(number, frame):
    raise Stopped(128 + number)

class Library:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

signal.signal(signal.SIGTERM, stop)
quiet_stops()
try:
    library = Library()
    del library
    time.sleep(20)
except Stopped as stopped:
    raise SystemExit(stopped.code)
"""


def test_a_stop_in_a_destructor_comes_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")


@pytest.mark.parametrize("number", sorted(STOPPING))
def test_a_signal_to_loading_processes_changes_nothing(number: signal.Signals) -> None:
    main, handled = os.getpid(), list[int]()

    def handler(*_: Any) -> None:
        handled.append(os.getpid())
        assert os.getpid() == main, "run in a loading process"

    before = signal.signal(number, handler)
    try:
        items = cast(Dataset, Loaded(list(range(40)), lambda i: {"x": torch.tensor(i)}))
        loader = Loading(items, batch_size=None, num_workers=2)
        batches = iter(loader)
        workers: list[BaseProcess] = cast(Any, batches)._workers
        found = []
        for i, batch in enumerate(batches):
            found.append(int(batch["x"]))
            if i % 10 == 0:
                for worker in workers:
                    kill(cast(int, worker.pid), number)
                os.kill(main, number)
                time.sleep(0.02)
        assert found == list(range(40)) and handled == [main] * 4
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(number, before)
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0


def kill(pid: int, number: signal.Signals) -> None:
    """A signal by another process."""
    subprocess.run(["sh", "-c", f"kill -{int(number)} {pid}"], check=True)
