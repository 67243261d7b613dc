"""A job of a sweep on SLURM, from inside; see `experiments.cli.slurm`.

A job that gets a signal first ends what it is doing (its leases, its W&B run), and then has
submitit put it back into the queue. A job that fails ends with exit code 1, so that it is FAILED
for SLURM and the jobs that depend on it (afterok) do not start.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from experiments.cli import queue
from netkin.errors import Stopped, first_line
from netkin.store.files import write_json

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""USR2 is what submitit has SLURM send before a job's time is up."""


def run(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    overrides: list[str],
    number: int,
    note: Path,
    singletons: dict[type, Singleton],
) -> None:
    """Run a job, and end as its outcome, or the signal that it got, demands.

    Args:
        context, task, config: Hydra's.
        overrides: of this job.
        number: its place in the sweep.
        note: the file in the store that gets the files that the job has made sure of.
        singletons: Hydra's.
    """
    from submitit import JobEnvironment

    job, requeue = JobEnvironment(), signal.getsignal(signal.SIGUSR2)
    for each in SIGNALS:
        signal.signal(each, _stop)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit prints a line for each of them
    try:
        Singleton.set_state(singletons)
        setup_globals()
        composed = context.config_loader.load_sweep_config(config, overrides)
        with open_dict(composed):
            composed.hydra.job.update({"id": job.job_id, "num": number})
        done = run_job(task, composed, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    except Stopped as stop:
        if stop.code == 128 + signal.SIGUSR2 and callable(requeue):
            requeue(signal.SIGUSR2, None)  # exits, unless that was too often
        sys.exit(stop.code)
    if done.status == JobStatus.FAILED:
        _fail(job, done._return_value, overrides)
    made = [str(Path(file).absolute()) for file in done.return_value or ()]
    with suppress(ValueError):  # without it the job would be submitted again
        write_json(note, {**read(note), "made": made})


def read(note: Path) -> dict[str, Any]:
    """The content of a note; empty if there is none."""
    with suppress(OSError, ValueError):
        return json.loads(note.read_text())
    return {}


_stopping = False


def _stop(number: int, _frame: FrameType | None) -> None:
    global _stopping
    # SLURM sends more signals while the job ends. Lightning restores a handler that is replaced.
    if _stopping or (number == signal.SIGTERM and _is_warning()):
        return
    _stopping = True
    raise Stopped(128 + number)


def _is_warning() -> bool:
    """Whether SLURM lets this job go on: what preempts it may give it some time (GraceTime)."""
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        state = queue.run_slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()
    except OSError:
        return False
    return state == "RUNNING"


def _fail(job: Any, error: BaseException, overrides: list[str]) -> NoReturn:
    """End a job as failed: for its log, for the launcher, and for SLURM."""
    from submitit.core.utils import cloudpickle_dump, temporary_save_path

    from experiments.cli.mistakes import ENDS, one_line

    if isinstance(error, ENDS):
        line = one_line(error, overrides=overrides)
    else:
        traceback.print_exception(error)
        line = f"{type(error).__name__}: {first_line(error)}"
    with temporary_save_path(job.paths.result_pickle) as file:
        cloudpickle_dump(("error", line), file)
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(1)
