"""Shards are written beside the work that makes the next one."""

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from netkin.errors import StoreError
from netkin.passes import craft
from netkin.passes.craft import Writer
from netkin.store.files import read_tensors, write_tensors


def held(gone: list[str], name: str) -> ExitStack:
    stack = ExitStack()
    stack.callback(gone.append, name)
    return stack


def test_the_last_file_is_written_while_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held is let go after the write, and leaving waits for it."""
    go, gone = threading.Event(), list[str]()

    def slow(file: Path, tensors: dict) -> None:
        assert go.wait(10)
        write_tensors(file, tensors)

    monkeypatch.setattr(craft, "write_tensors", slow)
    with Writer() as writer:
        writer.write(tmp_path / "a.safetensors", {"x": torch.ones(1)}, held(gone, "a"))
        assert not gone and not (tmp_path / "a.safetensors").exists()
        go.set()
    assert gone == ["a"]
    assert read_tensors(tmp_path / "a.safetensors")["x"].item() == 1


def test_a_write_that_fails_is_the_next_ones_error(tmp_path: Path) -> None:
    """The next write raises its error, and both leases are released."""
    (tmp_path / "file").touch()
    gone: list[str] = []
    with Writer() as writer:
        writer.write(tmp_path / "file" / "a.safetensors", {"x": torch.ones(1)}, held(gone, "a"))
        with pytest.raises(StoreError, match=r"cannot write .*a\.safetensors"):
            writer.write(tmp_path / "b.safetensors", {"x": torch.ones(1)}, held(gone, "b"))
        writer.wait()
    assert gone == ["a", "b"] and not (tmp_path / "b.safetensors").exists()
