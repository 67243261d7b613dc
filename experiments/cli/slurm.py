"""A sweep's jobs on SLURM: hydra/launcher=slurm (conf/hydra/launcher/slurm.yaml).

Hydra's own submitit launcher is silent, stops at the first failure, and submits everything again
when it is started again. This one notes in the store (`.jobs/`) which job does what. When the same
command is started again, it waits for the jobs that are still in the queue, submits what is left,
and leaves out what the store holds completely.

A job finds the launcher's token in its note when it starts, and writes there what it has made when
it ends. So a job that sees another folder as its store fails before it does anything, and none
counts as done whose results are not in the launcher's store. Notes are JSON: whoever can write to
the store runs no code here.

A job that gets a signal first ends what it is doing (its leases, its W&B run), and then has
submitit put it back into the queue. A job that fails ends with exit code 1, so that it is FAILED
for SLURM and the jobs that depend on it (afterok) do not start.

Only squeue, scancel and the files of the jobs are used: sacct needs a database that not every
cluster has.
"""

import io
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import filter_overrides
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

from experiments.cli.mistakes import ENDS, one_line
from netkin.errors import Stopped, UserError, and_more, first_line
from netkin.jobs.signals import STOPPING, blocked
from netkin.store.files import digest, read_json, write_json

NAME = "hydra_plugins.netkin.SlurmLauncher"
"""The launcher's `_target_`: Hydra takes no launcher from another package."""
OWN = ("cancel", "poll_s", "submitit_folder", "max_num_timeout")
"""Settings of the launcher that are not parameters of a job."""
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States of jobs that are over, unless they are put back into the queue at once."""
LAST_POLLS = 3
"""How often a job has to be seen ended without a result until it counts as failed: it may be put
back, and a shared file system may be late."""
COLUMNS = {"id": "%i", "name": "%j", "state": "%T", "reason": "%r"}
"""Of squeue."""
OTHER_STORE = "the job's store is not the launcher's"


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().class_name_to_class[NAME] = SlurmLauncher


@dataclass
class Job:
    """A job of a sweep."""

    title: str  # the overrides that set it apart from the others, if any
    note: Path  # in the store: which job runs this command, and what it has made
    id: str = ""  # SLURM's, such as 17_3; "" where it is not in SLURM's hands
    folder: Path = Path()  # of its log and its error
    state: str = ""  # SLURM's, or DONE, or FAILED
    reason: str = ""  # why it waits or failed
    seen_ended: int = 0  # how often it was found to have ended without a result

    def __str__(self) -> str:
        return f"{self.id} {self.title}".strip()

    @property
    def log(self) -> Path:
        return self.folder / f"{self.id}_0_log.out"

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected of it."""
        return self.state in ("DONE", "FAILED")

    def update(self, row: dict[str, str] | None) -> str:
        """Set its state by its note, its error and its row of the queue.

        Returns a line where it failed or was put back into the queue, else "".
        """
        state = row["state"] if row else "UNKNOWN"
        if "made" in read_json(self.note):
            self.state, self.reason = "DONE", ""
        elif error := _text(error_file(self.folder, self.id)):
            self.state, self.reason = "FAILED", error
        elif row and state not in ENDED:
            back = (self.state, state) == ("RUNNING", "PENDING")
            self.state = state if state in ("RUNNING", "PENDING") else self.state  # or between them
            self.reason, self.seen_ended = row["reason"], 0
            return f"{self}: put back into the queue; it goes on from the store" if back else ""
        elif (seen := self.seen_ended + 1) < LAST_POLLS:
            self.seen_ended = seen
        else:
            ended = f"ended by SLURM or from outside, state {state}"
            lines = [line.strip() for line in _text(self.log).splitlines() if line.strip()]
            ends = f"its log {self.log} ends in: {lines[-1][:200]}" if lines else f"no {self.log}"
            self.state = "FAILED"
            self.reason = f"{OTHER_STORE if state == 'COMPLETED' else ended}; {ends}"
        return f"{self}: failed: {self.reason}" if self.state == "FAILED" else ""


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Runs jobs with submitit, and goes on with those of an earlier start.

    Parameters of conf/hydra/launcher/slurm.yaml, those of sbatch by submitit's names.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Submit what is not done or in the queue, and wait for all jobs.

        Raises UserError that names each job that failed, when no job is left.
        """
        common = set.intersection(*map(set, job_overrides))
        jobs = [
            Job(" ".join(o for o in filter_overrides(each) if o not in common), self._note(each))
            for each in job_overrides
        ]
        try:
            known = queue()
        except OSError as error:
            raise UserError(
                f"hydra/launcher=slurm: SLURM does not answer ({error}); start the command on a "
                "cluster's login node, or choose hydra/launcher=joblib"
            ) from None
        executor, new = self._executor(), _submitted_before(jobs, known)
        try:
            if new:
                state = Singleton.get_state()
                of_hydra = [
                    (list(job_overrides[i]), "hydra.sweep.dir", initial_job_idx + i, "", state)
                    for i in new
                ]
                self._submit(executor, [jobs[i] for i in new], of_hydra)
            wait(jobs, self.params["poll_s"])
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
        assert self.config is not None
        own = OmegaConf.masked_copy(self.config, [str(k) for k in self.config if k != "hydra"])
        content = OmegaConf.to_container(own, resolve=False)
        key = digest({"config": content, "overrides": sorted(filter_overrides(overrides))})
        return Path(self.config.store.dir).absolute() / ".jobs" / f"{key[:16]}.json"

    def _executor(self) -> Any:
        from submitit import AutoExecutor

        folder, most = self.params["submitit_folder"], self.params["max_num_timeout"]
        executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=most)
        shared = OmegaConf.structured(BaseQueueConf)
        own = {key: value for key, value in self.params.items() if key not in OWN}
        try:
            executor.update_parameters(
                **{key if key in shared else f"slurm_{key}": own[key] for key in own}
            )
        except (ValueError, NameError) as error:
            raise UserError(f"hydra.launcher: {first_line(error)}") from None
        return executor

    def _submit(self, executor: Any, jobs: Sequence[Job], of_hydra: Sequence[tuple]) -> None:
        """Submit jobs and note them, without a stop in between. Raises UserError if sbatch does."""
        note = {"token": uuid.uuid4().hex, "name": self.params["name"]}
        with blocked(STOPPING):
            for job in jobs:
                write_json(job.note, note)
            arguments = [(j.note, note["token"], *o) for j, o in zip(jobs, of_hydra, strict=True)]
            try:
                with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    submitted = executor.map_array(self, *zip(*arguments, strict=True))
            except RuntimeError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                why = "; ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in lines)
                raise UserError(f"sbatch refuses {_jobs(jobs)}: {why or 'no reason'}") from None
            for job, made in zip(jobs, submitted, strict=True):
                job.id, job.folder = made.job_id, made.paths.folder
                write_json(job.note, {**note, "job": job.id, "folder": str(job.folder)})
        log = f"{Path(self.params['submitit_folder']).absolute()}/%j_0_log.out with %j as the job"
        print(f"submitted to SLURM: {jobs[0].id.partition('_')[0]}\nlogs: {log}", flush=True)

    def _stopped(self, stop: Stopped, jobs: Sequence[Job]) -> None:
        """Add to a stop's words what becomes of the jobs, and cancel them if that is chosen."""
        done = sum(job.state == "DONE" for job in jobs)
        stop.done = f"with {done} of {_jobs(jobs)} done"
        if left := [job.id for job in jobs if job.id and not job.over]:
            what = f"still in SLURM (to end them: scancel {' '.join(left)})"
            if self.params["cancel"]:
                with suppress(OSError):
                    run_slurm("scancel", *left)
                    what = "cancelled"
            stop.done += f", {len(left)} {what}"

    def __call__(self, note: Path, token: str, *of_hydra: Any) -> None:  # type: ignore[override]
        """Run a job, in the job, and end as its outcome, or the signal that it got, demands.

        The note has the launcher's token, and gets the files that the job has made sure of. The
        rest is what Hydra's launcher calls a job with.
        """
        from submitit import JobEnvironment

        requeue = signal.getsignal(signal.SIGUSR2)
        for each in STOPPING:
            signal.signal(each, _stop)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit prints a line for each of them
        try:
            if read_json(note).get("token") != token:
                store, here = note.parents[1], os.uname().nodename
                raise UserError(f"{OTHER_STORE}: on {here}, {store} is another folder")
            files = super().__call__(*of_hydra).return_value or ()
            made = [str(Path(file).absolute()) for file in files]
            write_json(note, {**read_json(note), "made": made})
        except Stopped as stop:
            if stop.code == 128 + signal.SIGUSR2 and callable(requeue):
                requeue(signal.SIGUSR2, None)  # exits, unless that was too often
            sys.exit(stop.code)
        except ENDS as error:
            line, job = one_line(error, overrides=of_hydra[0]), JobEnvironment()
            error_file(job.paths.folder, job.job_id).write_text(line)
            print(f"error: {line}", flush=True)
            sys.exit(1)


def error_file(folder: Path, job: str) -> Path:
    """Where a job leaves its error in one line."""
    return folder / f"{job}_0_error.txt"


def _text(file: Path) -> str:
    """The content of a file; "" if there is none."""
    with suppress(OSError):
        return file.read_text(errors="replace")
    return ""


def run_slurm(*command: str) -> str:
    """The output of a command of SLURM. Raises OSError with its message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout


def queue() -> dict[str, dict[str, str]]:
    """This user's jobs that SLURM still knows, with the values of COLUMNS, by id."""
    wanted = "\t".join(COLUMNS.values())
    lines = run_slurm("squeue", "--me", "-h", "-r", "-t", "all", "-o", wanted).splitlines()
    rows = [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]
    return {row["id"]: row for row in rows}


def wait(jobs: Sequence[Job], poll_s: float) -> None:
    """Wait until all jobs are over; print what changes: how many there are in which state."""
    shown = trouble = ""
    while True:
        try:
            known, trouble = queue(), ""
            lines = [job.update(known.get(job.id)) for job in jobs if not job.over]
            if (counts := _counts(jobs)) != shown:
                lines.append(shown := counts)
        except OSError as error:
            said = f"SLURM does not answer ({error}); still trying"
            lines, trouble = [said] * (not trouble), said
        for line in filter(None, lines):
            print(line, flush=True)
        if all(job.over for job in jobs):
            return
        time.sleep(max(poll_s, 0.1))


def _submitted_before(jobs: Sequence[Job], known: dict[str, dict[str, str]]) -> list[int]:
    """Set those that are done, or in the queue, by their notes; returns the others' numbers."""
    new, lines = [], []
    for number, job in enumerate(jobs):
        note = read_json(job.note)
        row = known.get(note.get("job", ""))
        if note.get("made") and all(Path(file).exists() for file in note["made"]):
            job.state = "DONE"
        elif row and row["name"] == note.get("name") and row["state"] not in ENDED:
            job.id, job.folder = note["job"], Path(note["folder"])
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
    with suppress(OSError):
        return run_slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip() == "RUNNING"
    return False
