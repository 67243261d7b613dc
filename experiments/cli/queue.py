"""SLURM's queue: the jobs of a sweep, what became of them, and lines about it.

Only squeue, scancel and the files of the jobs are used: sacct needs a database that not every
cluster has.
"""

import pickle
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from netkin.errors import and_more

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States of jobs that are over, unless they are put back into the queue at once."""
LAST_POLLS = 3
"""How often a job has to be seen ended without a result until it counts as ended: it may be put
back, and a shared file system may be late."""
OFTEN, RARELY = 60.0, 600.0
"""Seconds between two lines with the counts: where they have changed, and where not."""
COLUMNS = {"JobArrayID": 40, "State": 30, "RestartCnt": 12, "Reason": 80, "NodeList": 80}


@dataclass
class Job:
    """A job of a sweep.

    Attributes:
        title: the overrides that set it apart from the others, if any.
        id: SLURM's, such as 17_3; "" where it is not in SLURM's hands.
        folder: of its log and its result.
        state: SLURM's, or DONE, or FAILED with a reason.
        node: where it runs.
        restarts: how often it was put back into the queue.
        seen_ended: how often it was found to have ended without a result.
        started: when it was seen to start, by this process's clock.
    """

    title: str
    id: str = ""
    folder: Path = Path()
    state: str = ""
    reason: str = ""
    node: str = ""
    restarts: int = 0
    seen_ended: int = 0
    started: float | None = None

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


def run_slurm(*command: str) -> str:
    """The output of a command of SLURM. Raises OSError with its message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def queue() -> dict[str, dict[str, str]]:
    """This user's jobs that SLURM still knows, with the values of COLUMNS, by id."""
    wanted = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    found = {}
    for line in run_slurm("squeue", "--me", "-h", "-r", "-t", "all", "-O", wanted).splitlines():
        values, start = {}, 0
        for name, width in COLUMNS.items():
            values[name] = line[start : start + width].strip()
            start += width
        found[values["JobArrayID"]] = values
    return found


def compressed(ids: Iterable[str]) -> str:
    """Ids as scancel takes them: 17_0, 17_1, 17_2 and 18 as 17_[0-2] 18."""
    arrays: dict[str, list[int]] = {}
    for job in ids:
        array, _, task = job.partition("_")
        arrays.setdefault(array, []).extend([int(task)] if task else [])
    words = []
    for array, tasks in arrays.items():
        ranges: list[list[int]] = []
        for task in sorted(tasks):
            if ranges and task == ranges[-1][1] + 1:
                ranges[-1][1] = task
            else:
                ranges.append([task, task])
        texts = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
        words.append(f"{array}_[{texts}]" if len(tasks) > 1 else f"{array}_{texts}".strip("_"))
    return " ".join(words)


def wait(jobs: Sequence[Job], poll_s: float, say: Callable[[str], None]) -> None:
    """Wait until all jobs are over; a line when one starts, ends or is put back."""
    shown, said, answers = "", 0.0, True
    while True:
        try:
            known = queue()
            answers = True
        except OSError as error:
            if answers:
                say(f"SLURM does not answer ({' '.join(str(error).split())}); still trying")
            answers = False
            time.sleep(poll_s)
            continue
        lines = [line for job in jobs if not job.over for line in _news(job, known.get(job.id))]
        counts = summary(jobs)
        over, passed = all(job.over for job in jobs), time.monotonic() - said
        if not shown or over or passed > (OFTEN if counts != shown else RARELY):
            lines.append(counts)
            shown, said = counts, time.monotonic()
        for line in lines:
            say(line)
        if over:
            return
        time.sleep(poll_s)


def summary(jobs: Sequence[Job]) -> str:
    """How many jobs are done, failed, running and waiting, and for what."""
    waiting = [job for job in jobs if job.state == "PENDING"]
    counts = {
        "done": sum(job.state == "DONE" for job in jobs),
        "failed": sum(job.state == "FAILED" for job in jobs),
        "waiting": len(waiting),
    }
    counts["running"] = len(jobs) - sum(counts.values())
    parts = [f"{n} {what}" for what, n in counts.items() if n]
    reasons = sorted({job.reason for job in waiting} - {"", "None"})
    why = f" ({and_more(reasons, 3)})" if reasons else ""
    return f"{jobs_of(len(jobs))}: {', '.join(parts)}{why}"


def jobs_of(n: int) -> str:
    """1 job, 2 jobs."""
    return f"{n} job{'s' * (n != 1)}"


def _news(job: Job, known: dict[str, str] | None) -> list[str]:
    """Update a job; the lines about it."""
    before = job.state
    result = _result(job)
    if result is not None:
        job.state, job.reason = ("FAILED", result) if result else ("DONE", "")
        took = f" in {(time.monotonic() - job.started) / 60:.1f} min" if job.started else ""
        return [f"{job}: failed: {result}" if result else f"{job}: done{took}"]
    state = known["State"] if known else "UNKNOWN"
    if known is None or state in ENDED:
        job.seen_ended += 1
        if job.seen_ended < LAST_POLLS:
            return []
        job.state = "FAILED"
        job.reason = f"ended by SLURM or from outside, state {state}; {_last_words(job)}"
        return [f"{job}: failed: {job.reason}"]
    job.seen_ended = 0
    restarts = int(known["RestartCnt"] or 0)
    job.state, job.reason, job.node = state, known["Reason"], known["NodeList"]
    lines = []
    if restarts > job.restarts:
        job.restarts = restarts
        lines.append(
            f"{job}: put back into the queue, by its time limit or for another job; it goes on "
            "from the store"
        )
        before = "PENDING"
    if state == "RUNNING" and before != "RUNNING":
        job.started = time.monotonic()
        lines.append(f"{job}: started on {job.node}")
    return lines


def _result(job: Job) -> str | None:
    """What a job left: "" where it is done, its error in one line, or None if it has not ended."""
    file = job.folder / f"{job.id}_0_result.pkl"
    with suppress(OSError):  # makes a shared file system look again
        job.folder.chmod(job.folder.stat().st_mode)
    try:
        outcome, value = pickle.loads(file.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    except Exception as error:  # made by other code
        return f"its result cannot be read ({error})"
    if outcome == "success":
        return ""
    return [line for line in str(value).splitlines() if line.strip()][-1].strip()


def _last_words(job: Job) -> str:
    with suppress(OSError):
        lines = [line.strip() for line in job.log.read_text(errors="replace").splitlines()]
        if last := next((line for line in reversed(lines) if line), ""):
            return f"its log {job.log} ends in: {last[:200]}"
    return f"it has no log {job.log}"


def refusal(text: str) -> str:
    """sbatch's reason in one line."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "without a reason"
