"""A sweep's jobs on SLURM: hydra/launcher=slurm (conf/hydra/launcher/slurm.yaml).

Hydra's own submitit launcher is silent, stops at the first failure, and submits everything again
when it is started again. This one notes in the store (`.jobs/`) which job does what. When the same
command is started again, it waits for the jobs that are still in the queue, submits what is left,
and leaves out what the store holds completely.

A job that gets a signal first ends what it is doing (its leases, its W&B run), and then has
submitit put it back into the queue. A job that fails ends with exit code 1, so that it is FAILED
for SLURM and the jobs that depend on it (afterok) do not start.

Only squeue, scancel and the files of the jobs are used: sacct needs a database that not every
cluster has.
"""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.cli.mistakes import ENDS, one_line
from netkin.errors import Stopped, UserError, and_more, first_line
from netkin.jobs.signals import STOPPING, blocked
from netkin.store.files import digest, write_json

NAME = "hydra_plugins.netkin.SlurmLauncher"
"""The launcher's `_target_`: Hydra takes no launcher from another package."""
SHARED = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
    "stderr_to_stdout",
)
"""Parameters that submitit has for all kinds of clusters."""
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States of jobs that are over, unless they are put back into the queue at once."""
LAST_POLLS = 3
"""How often a job has to be seen ended without a result until it counts as ended: it may be put
back, and a shared file system may be late."""
COUNTS_S = 60.0
"""Least seconds between two lines with the counts."""
COLUMNS = ("JobArrayID", "State", "RestartCnt", "Reason", "NodeList")
WIDTH = 80
"""Characters of each column of squeue."""


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().class_name_to_class[NAME] = SlurmLauncher


@dataclass
class Job:
    """A job of a sweep.

    Attributes:
        title: the overrides that set it apart from the others, if any.
        note: the file in the store that says which job runs this command.
        id: SLURM's, such as 17_3; "" where it is not in SLURM's hands.
        folder: of its log and its result.
        state: SLURM's, or DONE, or FAILED with a reason.
        restarts: how often it was put back into the queue.
        seen_ended: how often it was found to have ended without a result.
    """

    title: str
    note: Path = Path()
    id: str = ""
    folder: Path = Path()
    state: str = ""
    reason: str = ""
    restarts: int = 0
    seen_ended: int = 0

    @property
    def log(self) -> Path:
        """Where it prints."""
        return self.folder / f"{self.id}_0_log.out"

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected of it."""
        return self.state in ("DONE", "FAILED")

    def __str__(self) -> str:
        return f"{self.id} {self.title}".strip()

    def news(self, known: dict[str, str] | None) -> list[str]:
        """Update it by its row of the queue; returns lines about what has changed."""
        before, result = self.state, self._result()
        if result is not None:
            self.state, self.reason = ("FAILED", result) if result else ("DONE", "")
            return [f"{self}: failed: {result}" if result else f"{self}: done"]
        state = known["State"] if known else "UNKNOWN"
        if known is None or state in ENDED:
            self.seen_ended += 1
            if self.seen_ended < LAST_POLLS:
                return []
            self.state = "FAILED"
            self.reason = f"ended by SLURM or from outside, state {state}; {self._last_line()}"
            return [f"{self}: failed: {self.reason}"]
        self.seen_ended, lines = 0, []
        self.state, self.reason, restarts = state, known["Reason"], int(known["RestartCnt"] or 0)
        if restarts > self.restarts:
            self.restarts, before = restarts, "PENDING"
            lines.append(
                f"{self}: put back into the queue, by its time limit or for another job; it goes "
                "on from the store"
            )
        if state == "RUNNING" and before != "RUNNING":
            lines.append(f"{self}: started on {known['NodeList']}")
        return lines

    def _result(self) -> str | None:
        """What it left: "" where it is done, its error in one line, None if it has not ended."""
        with suppress(OSError):  # makes a shared file system read the folder again
            self.folder.chmod(self.folder.stat().st_mode)
        try:
            outcome, value = pickle.loads((self.folder / f"{self.id}_0_result.pkl").read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        except Exception as error:  # made by other code
            return f"its result cannot be read ({error})"
        if outcome == "success":
            return ""
        line = [line for line in str(value).splitlines() if line.strip()][-1].strip()
        return line.removeprefix(f"{UserError.__module__}.UserError: ")

    def _last_line(self) -> str:
        with suppress(OSError):
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
            if last := next((line for line in reversed(lines) if line), ""):
                return f"its log {self.log} ends in: {last[:200]}"
        return f"it has no log {self.log}"


class SlurmLauncher(Launcher):
    """Runs jobs with submitit, and goes on with those of an earlier start.

    Args:
        cancel: whether Ctrl-C and SIGTERM cancel the jobs.
        poll_s: seconds between two queries of the queue.
        submitit_folder: of a job's log and result; %j is its id.
        max_num_timeout: how often the time limit may put a job back into the queue.
        parameters: for sbatch, by submitit's names.
    """

    def __init__(
        self,
        cancel: bool,
        poll_s: float,
        submitit_folder: str,
        max_num_timeout: int,
        **parameters: Any,
    ):
        if poll_s <= 0:
            raise UserError(f"hydra.launcher.poll_s must be above 0, got {poll_s}")
        self.cancel, self.poll_s, self.folder = cancel, poll_s, submitit_folder
        self.max_num_timeout = max_num_timeout
        self.parameters: Any = OmegaConf.to_container(OmegaConf.create(parameters), resolve=True)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """What Hydra calls first."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit what is not done or in the queue, and wait for all jobs.

        Raises UserError that names each job that failed, when no job is left.
        """
        executor = self._executor()
        common = set.intersection(*map(set, job_overrides))
        jobs = [
            Job(" ".join(o for o in filter_overrides(each) if o not in common), self._note(each))
            for each in job_overrides
        ]
        try:
            known = queue()
        except OSError as error:
            raise UserError(f"SLURM does not answer: {_flat(error)}") from None
        new = _submitted_before(jobs, known)
        try:
            if new:
                state = Singleton.get_state()
                arguments = [
                    (list(job_overrides[i]), initial_job_idx + i, jobs[i].note, state) for i in new
                ]
                self._submit(executor, [jobs[i] for i in new], arguments)
            wait(jobs, self.poll_s)
        except Stopped as stop:
            self._stopped(stop, jobs)
            raise
        if failed := [job for job in jobs if job.state == "FAILED"]:
            named = "; ".join(f"{job} ({job.reason})" for job in failed)
            others = "The others are done: run" if len(failed) < len(jobs) else "Run"
            raise UserError(
                f"{len(failed)} of {_jobs(jobs)} failed: {named}. {others} the same command again "
                "for what is left"
            )
        return []

    def _note(self, overrides: Sequence[str]) -> Path:
        own = OmegaConf.masked_copy(self.config, [str(k) for k in self.config if k != "hydra"])
        content = OmegaConf.to_container(own, resolve=False)
        key = digest({"config": content, "overrides": sorted(filter_overrides(overrides))})
        return Path(self.config.store.dir).absolute() / ".jobs" / f"{key[:16]}.json"

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "hydra/launcher=slurm needs submitit: pip install -e '.[cluster]'"
            ) from None
        if not shutil.which("sbatch") or not shutil.which("srun"):
            raise UserError(
                "hydra/launcher=slurm: there is no SLURM here (no sbatch and srun in PATH); start "
                "the command on a cluster's login node, or choose hydra/launcher=joblib"
            )
        executor = submitit.AutoExecutor(
            self.folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
        )
        try:
            executor.update_parameters(
                **{k if k in SHARED else f"slurm_{k}": v for k, v in self.parameters.items()}
            )
        except (ValueError, NameError) as error:
            raise UserError(f"hydra.launcher: {first_line(error)}") from None
        return executor

    def _submit(self, executor: Any, jobs: Sequence[Job], arguments: Sequence[tuple]) -> None:
        """Submit jobs and note them, without a stop in between. Raises UserError if sbatch does."""
        with blocked(STOPPING):
            try:
                with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    submitted = executor.map_array(self, *zip(*arguments, strict=True))
            except RuntimeError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                why = "; ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in lines)
                raise UserError(f"sbatch refuses {_jobs(jobs)}: {why or 'no reason'}") from None
            for job, made in zip(jobs, submitted, strict=True):
                job.id, job.folder = made.job_id, made.paths.folder
                write_json(job.note, {"job": job.id, "folder": str(job.folder)})
        log = f"{Path(self.folder).absolute()}/%j_0_log.out with %j as the job"
        print(f"submitted to SLURM: {jobs[0].id.partition('_')[0]}\nlogs: {log}", flush=True)

    def _stopped(self, stop: Stopped, jobs: Sequence[Job]) -> None:
        """Add to a stop's words what becomes of the jobs, and cancel them if that is chosen."""
        done = sum(job.state == "DONE" for job in jobs)
        stop.done = f"with {done} of {_jobs(jobs)} done"
        left = [job.id for job in jobs if job.id and not job.over]
        if not left:
            return
        command, what = ["scancel", *left], "still in SLURM (to end them: {})"
        if self.cancel:
            try:
                run_slurm(*command)
                what = "cancelled"
            except OSError:
                what = "not cancelled, since SLURM does not answer ({})"
        stop.done += f", {len(left)} {what.format(' '.join(command))}"

    def __call__(
        self, overrides: list[str], number: int, note: Path, singletons: dict[type, Singleton]
    ) -> None:
        """Run a job, in the job, and end as its outcome, or the signal that it got, demands.

        Args:
            overrides: of this job.
            number: its place in the sweep.
            note: gets the files that the job has made sure of.
            singletons: Hydra's.
        """
        from submitit import JobEnvironment

        job, requeue = JobEnvironment(), signal.getsignal(signal.SIGUSR2)
        for each in STOPPING:
            signal.signal(each, _stop)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit prints a line for each of them
        try:
            Singleton.set_state(singletons)
            setup_globals()
            composed = self.context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(composed):
                composed.hydra.job.update({"id": job.job_id, "num": number})
            sweep = ("hydra.sweep.dir", "hydra.sweep.subdir")
            files = run_job(self.task, composed, *sweep, self.context).return_value or ()
        except Stopped as stop:
            if stop.code == 128 + signal.SIGUSR2 and callable(requeue):
                requeue(signal.SIGUSR2, None)  # exits, unless that was too often
            sys.exit(stop.code)
        except ENDS as error:  # submitit keeps it for the launcher, and exits with code 1
            raise UserError(one_line(error, overrides=overrides)) from None
        made = [str(Path(file).absolute()) for file in files]
        with suppress(ValueError):  # without it the job would be submitted again
            write_json(note, {**_read(note), "made": made})

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit puts back into the queue: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def run_slurm(*command: str) -> str:
    """The output of a command of SLURM. Raises OSError with its message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def queue() -> dict[str, dict[str, str]]:
    """This user's jobs that SLURM still knows, with the values of COLUMNS, by id."""
    wanted = ",".join(f"{name}:{WIDTH}" for name in COLUMNS)
    found = {}
    for line in run_slurm("squeue", "--me", "-h", "-r", "-t", "all", "-O", wanted).splitlines():
        values = [line[i * WIDTH :][:WIDTH].strip() for i in range(len(COLUMNS))]
        found[values[0]] = dict(zip(COLUMNS, values, strict=True))
    return found


def wait(jobs: Sequence[Job], poll_s: float) -> None:
    """Wait until all jobs are over; print a line when one starts, ends or is put back."""
    shown, printed, answers = "", 0.0, True
    while True:
        lines: list[str] = []
        try:
            known, answers = queue(), True
            lines += [ln for job in jobs if not job.over for ln in job.news(known.get(job.id))]
            counts, over = _counts(jobs), all(job.over for job in jobs)
            if over or not shown or (counts != shown and time.monotonic() - printed > COUNTS_S):
                lines.append(counts)
                shown, printed = counts, time.monotonic()
        except OSError as error:
            over = False
            if answers:
                lines.append(f"SLURM does not answer ({_flat(error)}); still trying")
            answers = False
        for line in lines:
            print(line, flush=True)
        if over:
            return
        time.sleep(poll_s)


def _submitted_before(jobs: Sequence[Job], known: dict[str, dict[str, str]]) -> list[int]:
    """Set those that are done, or in the queue, by their notes; returns the others' numbers."""
    new, lines = [], []
    for number, job in enumerate(jobs):
        content = _read(job.note)
        found = known.get(content.get("job", ""), {"State": "CANCELLED"})
        if content.get("made") and all(Path(file).exists() for file in content["made"]):
            job.state = "DONE"
        elif found["State"] not in ENDED:
            job.id, job.folder = content["job"], Path(content["folder"])
            job.restarts = int(found["RestartCnt"] or 0)
            lines.append(f"{job}: in the queue already; its log is {job.log}")
        else:
            new.append(number)
    done = sum(job.state == "DONE" for job in jobs)
    before = f": {done} done before, {len(lines)} in the queue already," if done or lines else ""
    print(f"{_jobs(jobs)}{before} {len(new)} to submit", *lines, sep="\n", flush=True)
    return new


def _counts(jobs: Sequence[Job]) -> str:
    """How many jobs are done, failed, waiting and running, and what they wait for."""
    named = {"DONE": "done", "FAILED": "failed", "PENDING": "waiting"}
    counts = Counter(named.get(job.state, "running") for job in jobs)
    parts = [f"{counts[name]} {name}" for name in (*named.values(), "running") if counts[name]]
    reasons = {job.reason for job in jobs if job.state == "PENDING"} - {"", "None"}
    why = f" ({and_more(sorted(reasons), 3)})" if reasons else ""
    return f"{_jobs(jobs)}: {', '.join(parts)}{why}"


def _jobs(jobs: Sequence[Job]) -> str:
    return f"{len(jobs)} job{'s' * (len(jobs) != 1)}"


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


def _read(note: Path) -> dict[str, Any]:
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
        state = run_slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()
    except OSError:
        return False
    return state == "RUNNING"
