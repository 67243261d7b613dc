"""How a source is crafted is decided once, and kept beside its shards."""

import json
import logging
from pathlib import Path

import pytest

from netkin.errors import StoreError
from netkin.passes.tune import Choice, decided
from netkin.store.layout import Entry
from netkin.zoo.execution import Execution
from tests.zoo.test_execution import classifier, images

pytestmark = pytest.mark.usefixtures("one_thread")

AUTO = Choice(Execution(), time_formats=True, batch_size="auto")


def test_what_auto_decides_is_kept_and_used_again(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry", {"model": "m"}).claim()
    model = classifier("test_byobnet")
    execution, size = decided(entry, AUTO, model, images(), shard_size=20)
    kept = json.loads((entry.path / "execution.json").read_text())
    rows = kept["timed"]
    assert {row["memory_format"] for row in rows} == {"contiguous", "channels_last"}
    assert {row["batch_size"] for row in rows} >= {8, 16}
    best = min(rows, key=lambda row: row["ms_per_image"])
    assert (execution.memory_format, size) == (best["memory_format"], best["batch_size"])
    for memory_format, batch_size in (("channels_last", 8), ("contiguous", 20)):
        changed = {**kept, "memory_format": memory_format, "batch_size": batch_size}
        (entry.path / "execution.json").write_text(json.dumps(changed))
        again = decided(entry, AUTO, model, images(), shard_size=20)
        assert again == (Execution(memory_format=memory_format), batch_size)


def test_the_defaults_time_nothing(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry", {"model": "m"}).claim()
    found = decided(entry, Choice(), classifier("test_byobnet"), images(), shard_size=20)
    assert found == (Execution(), 20)
    assert json.loads((entry.path / "execution.json").read_text())["timed"] == []


def test_what_was_begun_otherwise_goes_on_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier("test_byobnet")
    entry = Entry(tmp_path / "entry", {"model": "m"}).claim()
    decided(entry, Choice(Execution(fuse=False)), model, images(), shard_size=20)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        again = decided(entry, Choice(), model, images(), shard_size=20)
    assert again[0] == Execution(fuse=False)
    assert "test_byobnet goes on as it was begun, with fuse=False" in caplog.text


def test_a_first_shard_without_images_decides_nothing(tmp_path: Path) -> None:
    """It is stored without running the model; the next one decides, by the choice."""
    entry = Entry(tmp_path / "entry", {"model": "m"}).claim()
    (entry.path / "00000.safetensors").touch()
    decision = decided(entry, Choice(), classifier("test_byobnet"), images(), shard_size=20)
    assert decision == (Execution(), 20)


def test_a_damaged_decision_is_named(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "entry", {"model": "m"}).claim()
    (entry.path / "execution.json").write_text("{")
    with pytest.raises(StoreError, match=r"execution\.json cannot be read"):
        decided(entry, AUTO, classifier("test_byobnet"), images(), shard_size=20)
