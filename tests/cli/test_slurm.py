"""The launcher of SLURM's jobs without a SLURM: what it prints, refuses and reads."""

from pathlib import Path

import pytest

from experiments.cli import slurm
from experiments.cli.slurm import Job
from netkin.store.files import write_json
from tests import isolation
from tests.conftest import SMALL, run_here


@pytest.mark.parametrize(
    ("more", "expected"),
    [("", "SLURM does not answer"), ("hydra.launcher.partiton=gpu", "partiton")],
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


def jobs_in(folder: Path, names: str) -> list[Job]:
    """Jobs 7_0, 7_1, ... as the launcher has submitted them."""
    return [
        Job(f"source={name}", folder / f"{name}.json", f"7_{i}", folder)
        for i, name in enumerate(names)
    ]


def states(*rows: str) -> dict[str, dict[str, str]]:
    """The queue: the name, state and reason of 7_0, 7_1, ..."""
    return {
        f"7_{i}": dict(zip(("name", "state", "reason"), row.split(), strict=True))
        for i, row in enumerate(rows)
    }


def test_a_line_for_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """d ends well for SLURM, and nothing of it is in the launcher's store."""
    jobs = jobs_in(tmp_path, "abcd")
    jobs[2].log.write_text("at work\nKilled\n\n")

    def unreachable() -> dict[str, dict[str, str]]:
        raise OSError("squeue: error: Unable to contact slurm")

    def b_failed() -> dict[str, dict[str, str]]:
        slurm.error_file(tmp_path, "7_1").write_text("no such model")
        return states("n PENDING BeginTime", runs, runs, runs)

    def a_done() -> dict[str, dict[str, str]]:
        write_json(jobs[0].note, {"made": []})
        return {}

    waits, runs = "n PENDING Resources", "n RUNNING None"
    end = states(runs, runs, "n FAILED NonZeroExitCode", "n COMPLETED None")
    seen = [lambda: states(*[waits] * 4), lambda: states(*[runs] * 4), unreachable, unreachable]
    turns = iter([*seen, b_failed, *[lambda: end] * slurm.LAST_POLLS, a_done])
    monkeypatch.setattr(slurm, "queue", lambda: next(turns)())
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    slurm.wait(jobs, 1.0)
    assert capsys.readouterr().out.splitlines() == [
        "4 jobs: 4 waiting (Resources)",
        "4 jobs: 4 running",
        "SLURM does not answer (squeue: error: Unable to contact slurm); still trying",
        "7_0 source=a: put back into the queue; it goes on from the store",
        "7_1 source=b: failed: no such model",
        "4 jobs: 1 failed, 1 waiting, 2 running (BeginTime)",
        "4 jobs: 1 failed, 3 running",
        "7_2 source=c: failed: ended by SLURM or from outside, state FAILED; its log "
        f"{jobs[2].log} ends in: Killed",
        f"7_3 source=d: failed: the job's store is not the launcher's; no {jobs[3].log}",
        "4 jobs: 3 failed, 1 running",
        "4 jobs: 1 done, 3 failed",
    ]


def test_what_an_earlier_start_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Done is what has all its files; another's job of a noted id is not one of the sweep's."""
    jobs = jobs_in(tmp_path, "abcd")
    at = {"token": "t", "name": "netkin", "folder": str(tmp_path)}
    for job, made in zip(jobs, ([__file__], [__file__, "/gone"], None, None), strict=True):
        write_json(job.note, {**at, "job": job.id} | ({} if made is None else {"made": made}))
    known = states("netkin COMPLETED x", "netkin COMPLETED x", "netkin PENDING x", "bash RUNNING x")
    assert slurm._submitted_before(jobs, known) == [1, 3]
    assert "1 done before, 1 in the queue already, 2 to submit" in capsys.readouterr().out


def test_a_job_that_sees_another_store_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import submitit

    class Environment:
        job_id = "7_0"
        paths = type("Paths", (), {"folder": tmp_path})

    monkeypatch.setattr(submitit, "JobEnvironment", Environment)
    note = tmp_path / ".jobs" / "a.json"
    with isolation.restored(), pytest.raises(SystemExit, match="1"):
        slurm.SlurmLauncher()(note, "token", [])
    said = slurm.error_file(tmp_path, "7_0").read_text()
    assert said.startswith("the job's store is not the launcher's: on ") and str(tmp_path) in said
    assert said in capsys.readouterr().out
