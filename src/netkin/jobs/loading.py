"""A DataLoader whose processes leave signals to the process that they load for.

A terminal sends Ctrl-C to all processes of a command, SLURM its signals to all of a job. Loading
processes are forks, with the handlers of their parent: each would stop the run for itself, or put
the job back into SLURM's queue. Without a handler they would die while the parent reads from them.
"""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from netkin.jobs.signals import blocked

STOPPING = {
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
}
"""USR1 and USR2 are what SLURM sends before a job's time is up."""


class ShieldedLoader(DataLoader):
    """Needs `worker_init_fn=obey_parent`."""

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batches, from processes that are started here."""
        with blocked(STOPPING):
            return super().__iter__()


def obey_parent(_worker: int = 0) -> None:
    """In a loading process: exit on SIGTERM, if the parent sends it.

    Where the sender is not known (macOS), on any SIGTERM.
    """
    if hasattr(signal, "pthread_sigmask"):
        threading.Thread(target=_exit_on_sigterm, daemon=True).start()


def _exit_on_sigterm() -> None:
    while True:
        if not hasattr(signal, "sigwaitinfo"):
            number, by_parent = signal.sigwait(STOPPING), True
        else:
            info = signal.sigwaitinfo(STOPPING)
            number, by_parent = info.si_signo, info.si_pid == os.getppid()
        if number == signal.SIGTERM and by_parent:
            os._exit(0)
