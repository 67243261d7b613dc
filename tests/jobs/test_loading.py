"""Signals to all processes of a job reach the main one only."""

import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.process import BaseProcess
from typing import Any, cast

import pytest
import torch
from torch.utils.data import Dataset

from netkin.jobs import loading
from netkin.jobs.loading import STOPPING, ShieldedLoader, obey_parent
from netkin.jobs.signals import blocked
from netkin.runner import Loaded


@pytest.mark.parametrize("number", sorted(STOPPING))
def test_a_signal_to_loading_processes_changes_nothing(number: signal.Signals) -> None:
    main, handled = os.getpid(), list[int]()

    def handler(*_: Any) -> None:
        handled.append(os.getpid())
        assert os.getpid() == main, "run in a loading process"

    before = signal.signal(number, handler)
    try:
        items = cast(Dataset, Loaded(list(range(40)), lambda i: {"x": torch.tensor(i)}))
        loader = ShieldedLoader(items, batch_size=None, num_workers=2, worker_init_fn=obey_parent)
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


def test_a_loading_process_obeys_its_parent() -> None:
    with blocked(loading.STOPPING):
        process = multiprocessing.get_context("fork").Process(target=wait)
        process.start()
    kill(cast(int, process.pid), signal.SIGTERM)
    process.join(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(20)
    assert process.exitcode == 0


def wait() -> None:
    loading.obey_parent()
    time.sleep(60)


def kill(pid: int, number: signal.Signals) -> None:
    """A signal by another process."""
    subprocess.run(["sh", "-c", f"kill -{int(number)} {pid}"], check=True)
