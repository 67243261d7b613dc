"""A sweep's jobs on SLURM: hydra/launcher=slurm (conf/hydra/launcher/slurm.yaml).

Hydra's own submitit launcher is silent, stops at the first failure, and submits everything again
when it is started again. This one notes in the store (`.jobs/`) which job does what. When the same
command is started again, it waits for the jobs that are still in the queue, submits what is left,
and leaves out what the store holds completely.
"""

import io
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from experiments.cli import queue, slurm_job
from experiments.cli.queue import Job
from netkin.errors import Stopped, UserError, first_line
from netkin.jobs.signals import blocked
from netkin.store.files import digest, write_json

NAME = "hydra_plugins.netkin.SlurmLauncher"
"""The launcher's `_target_`: Hydra takes no launcher from another package."""


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().class_name_to_class[NAME] = SlurmLauncher


class SlurmLauncher(Launcher):
    """Runs jobs with submitit, and goes on with those of an earlier start.

    Args:
        cancel: whether Ctrl-C and SIGTERM cancel the jobs.
        poll_s: seconds between two looks at the queue.
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
        self.parameters = {
            key: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in parameters.items()
        }

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
        jobs, notes = self._jobs(job_overrides), [self._note(each) for each in job_overrides]
        new = self._take_up(jobs, notes)
        try:
            if new:
                arguments = [
                    (list(job_overrides[i]), initial_job_idx + i, notes[i], Singleton.get_state())
                    for i in new
                ]
                self._submit(executor, [jobs[i] for i in new], arguments)
            queue.wait(jobs, self.poll_s, _say)
        except Stopped as stop:
            self._stopped(stop, jobs)
            raise
        if failed := [job for job in jobs if job.state == "FAILED"]:
            reasons = dict.fromkeys(job.reason for job in failed)
            named = "; ".join(
                f"{', '.join(str(job) for job in failed if job.reason == reason)} ({reason})"
                for reason in reasons
            )
            others = "The others are done: run" if len(failed) < len(jobs) else "Run"
            raise UserError(
                f"{len(failed)} of {queue.jobs_of(len(jobs))} failed: {named}. {others} the same "
                "command again for what is left"
            )
        return []

    def _jobs(self, job_overrides: Sequence[Sequence[str]]) -> list[Job]:
        """The jobs, titled by what is not common to all."""
        common = set.intersection(*map(set, job_overrides))
        return [
            Job(" ".join(o for o in filter_overrides(each) if o not in common))
            for each in job_overrides
        ]

    def _take_up(self, jobs: Sequence[Job], notes: Sequence[Path]) -> list[int]:
        """Set those that are done, or in the queue, by their notes; returns the others' numbers."""
        known, new = self._settled(notes), []
        for number, (job, note) in enumerate(zip(jobs, notes, strict=True)):
            content = slurm_job.read(note)
            found = known.get(content.get("job", ""), {"State": "CANCELLED"})
            if content.get("made") and all(Path(file).exists() for file in content["made"]):
                job.state = "DONE"
            elif found["State"] not in queue.ENDED:
                job.id, job.folder = content["job"], Path(content["folder"])
                job.restarts = int(found["RestartCnt"] or 0)
            else:
                new.append(number)
        total, done = queue.jobs_of(len(jobs)), sum(job.state == "DONE" for job in jobs)
        if len(new) == len(jobs):
            _say(f"{total} to submit")
        else:
            there = len(jobs) - len(new) - done
            _say(f"{total}: {done} done before, {there} in the queue already, {len(new)} to submit")
        for job in jobs:
            if job.id:
                _say(f"{job}: in the queue already; its log is {job.log}")
        return new

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
                **{k if k in _SHARED else f"slurm_{k}": v for k, v in self.parameters.items()}
            )
        except (ValueError, NameError) as error:
            raise UserError(f"hydra.launcher: {first_line(error)}") from None
        return executor

    def _note(self, overrides: Sequence[str]) -> Path:
        """The file in the store that says which job runs a command."""
        own = OmegaConf.masked_copy(self.config, [str(k) for k in self.config if k != "hydra"])
        content = OmegaConf.to_container(own, resolve=False)
        key = digest({"config": content, "overrides": sorted(filter_overrides(overrides))})
        return Path(self.config.store.dir).absolute() / ".jobs" / f"{key[:16]}.json"

    def _settled(self, notes: Sequence[Path]) -> dict[str, dict[str, str]]:
        """The queue, once none of the noted jobs is just ending."""
        for _ in range(60):
            known = _queue()
            ids = {slurm_job.read(note).get("job") for note in notes}
            if not any(known[job]["State"] == "COMPLETING" for job in ids if job in known):
                break
            time.sleep(min(self.poll_s, 1.0))
        return known

    def _submit(self, executor: Any, jobs: Sequence[Job], arguments: Sequence[tuple]) -> None:
        """Submit jobs and note them, without a stop in between. If sbatch refuses, they failed."""
        with blocked((signal.SIGINT, signal.SIGTERM)):
            try:
                with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    submitted = executor.map_array(self, *zip(*arguments, strict=True))
            except RuntimeError as error:
                reason = f"sbatch refused it: {queue.refusal(str(error))}"
                for job in jobs:
                    job.state, job.reason = "FAILED", reason
                _say(f"{queue.jobs_of(len(jobs))} failed: {reason}")
                return
            for job, made, (*_, note, _) in zip(jobs, submitted, arguments, strict=True):
                job.id, job.folder = made.job_id, made.paths.folder
                write_json(note, {"job": job.id, "folder": str(job.folder)})
        _say(f"submitted to SLURM: {queue.compressed(job.id for job in jobs)}")
        _say(f"logs: {Path(self.folder).absolute()}/%j_0_log.out with %j as the job")

    def _stopped(self, stop: Stopped, jobs: Sequence[Job]) -> None:
        """Add to a stop's words what becomes of the jobs, and cancel them if that is chosen."""
        done = sum(job.state == "DONE" for job in jobs)
        stop.done = f"with {done} of {queue.jobs_of(len(jobs))} done"
        left = [job.id for job in jobs if job.id and not job.over]
        if not left:
            return
        command, what = f"scancel {queue.compressed(left)}", "still in SLURM (to end them: {})"
        if self.cancel:
            try:
                queue.run_slurm(*command.split())
                what = "cancelled"
            except OSError:
                what = "not cancelled, since SLURM does not answer ({})"
        stop.done += f", {len(left)} {what.format(command)}"

    def __call__(
        self, overrides: list[str], number: int, note: Path, singletons: dict[type, Singleton]
    ) -> None:
        """Run a job; in the job."""
        slurm_job.run(self.context, self.task, self.config, overrides, number, note, singletons)

    def checkpoint(self, *arguments: Any) -> Any:
        """What submitit puts back into the queue: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


_SHARED = (
    *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
    "stderr_to_stdout",
)
"""Parameters that submitit has for all kinds of clusters."""


def _say(line: str) -> None:
    print(line, flush=True)


def _queue() -> dict[str, dict[str, str]]:
    try:
        return queue.queue()
    except OSError as error:
        raise UserError(f"SLURM does not answer: {' '.join(str(error).split())}") from None
