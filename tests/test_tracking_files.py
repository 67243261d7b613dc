"""Trackers that write files, and the state of a run, whatever its tracker."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from netkin.errors import Stopped
from netkin.tracking import CSV, track
from tests.test_tracking import info


def test_csv(tmp_path: Path) -> None:
    with track({"kind": "csv"}, info(tmp_path)) as tracker:
        assert isinstance(tracker, CSV)
        tracker.summary({"a": 1.5, "b": float("nan")})
        tracker.curve([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], "epoch")
        tracker.add("stages", [{"stage": "craft", "seconds": 1.0}])
        tracker.add("stages", [{"stage": "transfer", "shards": 2}])
    rows = pl.read_csv(tmp_path / "metrics.csv").rows()
    assert rows == [("a", None, 1.5), ("b", None, None), ("loss", 1, 2.0), ("loss", 2, 1.0)]
    assert pl.read_csv(tmp_path / "stages.csv").rows() == [
        ("craft", 1.0, None),
        ("transfer", None, 2),
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["numbers"] == {"a": 1.5, "b": None}


@pytest.mark.parametrize("fails", [False, True])
def test_tensorboard(tmp_path: Path, fails: bool) -> None:
    """What was logged is kept, also where the run fails."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    run = replace(info(tmp_path), config={"lr": 0.1})
    with suppress(ValueError), track({"kind": "tensorboard"}, run) as tracker:
        tracker.curve([{"epoch": 1, "train/loss": 2.0}, {"epoch": 2, "train/loss": 1.0}], "epoch")
        tracker.summary({"accuracy": 0.5, "teacher": "a"})
        if fails:
            raise ValueError
    found = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert found.Scalars("accuracy")[0].value == 0.5


@pytest.mark.parametrize(
    ("error", "state"), [(None, "finished"), (ValueError(), "failed"), (Stopped(143), "stopped")]
)
def test_the_state_of_a_run(tmp_path: Path, error: BaseException | None, state: str) -> None:
    def now() -> str:
        return json.loads((tmp_path / "summary.json").read_text())["state"]

    with suppress(ValueError, Stopped), track({"kind": "none"}, info(tmp_path)):
        assert now() == "running"
        if error is not None:
            raise error
    assert now() == state


def test_no_logger_writes_nothing(tmp_path: Path) -> None:
    with track({"kind": "none"}, info(tmp_path)) as tracker:
        tracker.curve([{"a": 1, "step": 1}], "step")
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
