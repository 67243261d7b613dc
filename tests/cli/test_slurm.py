"""The launcher of SLURM's jobs without a SLURM: what it prints, refuses and reads."""

import pickle
from pathlib import Path

import pytest

from experiments.cli import slurm
from experiments.cli.slurm import Job
from tests.conftest import SMALL, run_here


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "there is no SLURM here (no sbatch and srun in PATH)"),
        ("hydra.launcher.partiton=gpu", "partiton"),
        ("hydra.launcher.poll_s=0", "hydra.launcher.poll_s must be above 0, got 0"),
    ],
)
def test_mistakes(
    more: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sweep = ["-m", *SMALL, "experiment=craft", "source=glob(*)", "hydra/launcher=slurm"]
    words = [*sweep, *more.split(), "hydra.sweep.dir=sweep"]
    done = run_here(*words, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and expected in done.stderr


def leave(job: Job, *result: str) -> None:
    (job.folder / f"{job.id}_0_result.pkl").write_bytes(pickle.dumps(result))


def unreachable() -> dict[str, dict[str, str]]:
    raise OSError("squeue: error: Unable to contact\nslurm")


def test_a_line_for_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(f"source={name}", id=f"7_{i}", folder=tmp_path) for i, name in enumerate("abc")]
    (tmp_path / "7_2_0_log.out").write_text("at work\nKilled\n\n")

    def states(*rows: tuple[str, str, str]) -> dict[str, dict[str, str]]:
        return {
            f"7_{i}": {"State": state, "RestartCnt": n, "Reason": reason, "NodeList": "n1"}
            for i, (state, n, reason) in enumerate(rows)
        }

    waits, runs = ("PENDING", "0", "Resources"), ("RUNNING", "0", "None")
    back, again = ("PENDING", "1", "BeginTime"), ("RUNNING", "1", "None")
    seen = iter(
        [
            lambda: states(waits, waits, waits),
            lambda: states(runs, runs, runs),
            unreachable,
            unreachable,
            lambda: (
                leave(jobs[1], "error", "Traceback\n  x\nValueError: no")
                or states(back, runs, runs)
            ),
            *[lambda: states(again, runs, ("FAILED", "0", "NonZeroExitCode"))] * 3,
            lambda: leave(jobs[0], "success", "") or {},
        ]
    )

    monkeypatch.setattr(slurm, "queue", lambda: next(seen)())
    slurm.wait(jobs, 0.0)
    assert capsys.readouterr().out.splitlines() == [
        "3 jobs: 3 waiting (Resources)",
        "7_0 source=a: started on n1",
        "7_1 source=b: started on n1",
        "7_2 source=c: started on n1",
        "SLURM does not answer (squeue: error: Unable to contact slurm); still trying",
        "7_0 source=a: put back into the queue, by its time limit or for another job; it goes on "
        "from the store",
        "7_1 source=b: failed: ValueError: no",
        "7_0 source=a: started on n1",
        "7_2 source=c: failed: ended by SLURM or from outside, state FAILED; its log "
        f"{tmp_path}/7_2_0_log.out ends in: Killed",
        "7_0 source=a: done",
        "3 jobs: 1 done, 2 failed",
    ]
