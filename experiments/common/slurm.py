"""A sweep's jobs on SLURM: hydra/launcher=slurm (conf/hydra/launcher/slurm.yaml).

Hydra's own submitit launcher is silent, stops at the first failure, and submits everything again
when it is started again. This one notes in the store (`.jobs/`) which job does what. When the same
command is started again, it waits for the jobs that are still in the queue, submits what is left,
and leaves out what the store holds completely.
"""

import copy
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
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.common import queue, slurm_job
from experiments.common.queue import Job
from netkin.errors import Stopped, UserError, first_line
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
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs, new = list[Job](), list[int]()
        executor = self._executor()
        notes = [self._note(overrides) for overrides in job_overrides]
        known = self._settled(notes)
        for number, (overrides, note) in enumerate(zip(job_overrides, notes, strict=True)):
            own = [o for o in filter_overrides(overrides) if o not in common]
            job = Job(" ".join(own) or f"job {number}")
            content = slurm_job.read(note)
            if content.get("made") and all(Path(file).exists() for file in content["made"]):
                job.state = "DONE"
            elif known.get(content.get("job", ""), {}).get("State", "ENDED") not in _OVER:
                job.id, job.folder = content["job"], Path(content["folder"])
            else:
                new.append(number)
            jobs.append(job)
        self._say_what_is_left(jobs, new)
        try:
            if new:
                arguments = [
                    (list(job_overrides[i]), initial_job_idx + i, notes[i], Singleton.get_state())
                    for i in new
                ]
                for i, (job, folder) in zip(new, self._submit(executor, arguments), strict=True):
                    jobs[i].id, jobs[i].folder = job, folder
            queue.wait(jobs, self.poll_s, _say)
        except Stopped as stop:
            self._stopped(stop, jobs)
            raise
        if failed := [job for job in jobs if job.state == "FAILED"]:
            raise UserError(
                f"{len(failed)} of {len(jobs)} jobs failed: "
                + "; ".join(f"{job} ({job.reason.removeprefix('error: ')})" for job in failed)
                + ". The others are done: run the same command again for what is left"
            )
        return []

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
        composed = copy.copy(self.config)
        with open_dict(composed):
            del composed["hydra"]
        content = OmegaConf.to_container(composed, resolve=False)
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

    def _submit(self, executor: Any, arguments: list[tuple]) -> list[tuple[str, Path]]:
        """Submit jobs and note them, without a stop in between."""
        printed = io.StringIO()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            with redirect_stderr(printed):  # submitit prints what it raises
                submitted = executor.map_array(self, *zip(*arguments, strict=True))
            jobs = [(job.job_id, job.paths.folder) for job in submitted]
            for (job, folder), (*_, note, _) in zip(jobs, arguments, strict=True):
                write_json(note, {"job": job, "folder": str(folder)})
        except RuntimeError as error:
            raise UserError(
                f"sbatch refused the jobs: {queue.refusal(str(error))}; see "
                "hydra.launcher.partition, account, timeout_min, mem_gb, cpus_per_task, "
                "gpus_per_node"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _say(f"submitted to SLURM: {queue.compressed(job for job, _ in jobs)}")
        _say(f"logs: {Path(self.folder).absolute()}/%j_0_log.out with %j as the job")
        return jobs

    def _say_what_is_left(self, jobs: Sequence[Job], new: Sequence[int]) -> None:
        done = sum(job.state == "DONE" for job in jobs)
        there = [job for job in jobs if job.id]
        text = f"{len(jobs)} jobs: {done} done before, {len(there)} in the queue already, "
        _say(f"{text}{len(new)} to submit" if done or there else f"{len(jobs)} jobs to submit")
        for job in there:
            _say(f"{job}: in the queue already; its log is {job.log}")

    def _stopped(self, stop: Stopped, jobs: Sequence[Job]) -> None:
        left = [job.id for job in jobs if job.id and not job.over]
        stop.done = (
            f"with {len([job for job in jobs if job.state == 'DONE'])} of {len(jobs)} jobs done"
        )
        if left and self.cancel:
            queue.cancel(left)
            stop.done += f" and {len(left)} cancelled ({queue.compressed(left)})"
        elif left:
            stop.done += (
                f"; {len(left)} go on in SLURM, `scancel {queue.compressed(left)}` ends them"
            )

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
_OVER = (*queue.ENDED, "ENDED")


def _say(line: str) -> None:
    print(line, flush=True)


def _queue() -> dict[str, dict[str, str]]:
    try:
        return queue.queue()
    except OSError as error:
        raise UserError(f"SLURM does not answer: {' '.join(str(error).split())}") from None
