"""Files are complete or absent, and an entry has one identity."""

import json
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from netkin.attacks import PGD, as_attack
from netkin.data.digits import Digits
from netkin.data.subset import Subset, draw
from netkin.errors import DamagedFile, StoreError, UserError
from netkin.evaluation import Evaluation
from netkin.results import Results
from netkin.store import folder
from netkin.store.files import create_json, digest, read_tensors, write, write_tensors
from netkin.store.layout import Folder, Store
from netkin.store.outcomes import contents, read_table
from netkin.zoo.member import Task

SUBSET = Subset("some", ("a", "b"), (0, 1), (0, 1))


def test_others_may_read_what_they_may_read_of_any_file(tmp_path: Path) -> None:
    """safetensors makes files for their owner alone, which a shared store must not."""
    (tmp_path / "any").touch()
    write_tensors(tmp_path / "t.safetensors", {"x": torch.zeros(2)}, "me")
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_tensors_come_back(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    write_tensors(file, {"images": images[:, :, ::2], "index": torch.tensor([3, 4])}, "me")
    found = read_tensors(file, "me")
    assert torch.equal(found["images"], images[:, :, ::2])
    assert found["index"].tolist() == [3, 4]
    with pytest.raises(DamagedFile, match="of another model, attack or part"):
        read_tensors(file, "you")


def test_only_other_libraries_files_lack_a_checksum(tmp_path: Path) -> None:
    other, stripped = tmp_path / "other.safetensors", tmp_path / "stripped.safetensors"
    save_file({"x": torch.ones(2)}, other, {"format": "pt"})
    assert read_tensors(other, ours=False)["x"].tolist() == [1, 1]
    save_file({"x": torch.ones(2)}, stripped, {"netkin": json.dumps({"params": "5"})})
    for file, ours in ((other, True), (stripped, True), (stripped, False)):
        with pytest.raises(DamagedFile, match="its header lacks the checksum"):
            read_tensors(file, ours=ours)
    table = tmp_path / "t.parquet"
    pl.DataFrame({"x": [1]}).write_parquet(table, metadata={"made_by": "x"})
    for read in (read_table, contents):
        with pytest.raises(DamagedFile):
            read(table)


def test_an_entry_is_claimed_once_and_checked_afterwards(tmp_path: Path) -> None:
    own = {"model": {"timm": "test_vit", "kwargs": {"depth": 2}}, "attack": {"steps": 50}}
    Folder(tmp_path / "e", own).claim().claim()
    other = {"model": {"timm": "test_vit", "kwargs": {"depth": 3}}, "attack": {"steps": 50}}
    with pytest.raises(UserError, match=r"made with model\.kwargs\.depth = 2, now it is 3"):
        Folder(tmp_path / "e", other).claim()
    with pytest.raises(UserError, match=r"made with attack = .* now it is nothing"):
        Folder(tmp_path / "e", {"model": own["model"]}).claim()
    Folder(tmp_path / "s", {"shard_size": 12}).claim()
    with pytest.raises(UserError, match=r"use the same shard_size, 12, choose"):
        Folder(tmp_path / "s", {"shard_size": 100}).claim()


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    Folder(tmp_path / "e", {}).claim()
    (tmp_path / "e" / "identity.json").write_text("{")
    with pytest.raises(UserError, match=r"identity\.json cannot be read"):
        Folder(tmp_path / "e", {}).claim()


def test_attacks_of_other_settings_live_side_by_side(tmp_path: Path) -> None:
    images = Digits()
    task = Task("digits", 10)
    subset = draw(images, "quick", 5)
    attacks = [as_attack(PGD(steps=n), "pgd", {"steps": n}) for n in (50, 20)]
    a, b = (Results(Store(tmp_path), Evaluation(images, subset, task, each)) for each in attacks)
    assert a.attack_folder.path != b.attack_folder.path
    identity = json.loads((a.attack_folder.path / "identity.json").read_text())
    assert identity["attack"] == {"steps": 50, "dtype": "uint8"}
    manifest = json.loads((a.folder / "manifest.json").read_text())
    assert (manifest["ids"], manifest["sha256"]) == ([*subset.ids], subset.digest)


def test_digests_do_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "hf-hub:org/name", "a=b", "..", "x y"])
def test_any_name_is_one_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "root" / folder(name)
    assert path.parent == tmp_path / "root"
    path.mkdir(parents=True)
    assert (tmp_path / "root").exists() and path.resolve().parent == (tmp_path / "root").resolve()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"store=.*file/store cannot be written"):
        Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match=r"^cannot write \S*/file/identity\.json \("):
        create_json(tmp_path / "file" / "identity.json", {})


def test_a_complete_store_can_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    store = Store(tmp_path / "full")
    assert not store.writable and Store.__doc__
    with pytest.raises(UserError, match=r"empty cannot be written \(Read-only file system\)"):
        Store(tmp_path / "empty")


@given(st.data())
def test_no_byte_of_a_shard_goes_unnoticed(data: st.DataObject) -> None:
    """Flip any bits of any byte: the file is refused, or has the same content (blanks of JSON)."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "t.safetensors"
        tensors = {"images": torch.arange(60, dtype=torch.uint8), "index": torch.tensor([3, 4])}
        write_tensors(file, tensors, "me", params="5")
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        with suppress(StoreError):
            found = read_tensors(file)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("wrap", ["os", "safetensors", "polars"])
def test_a_full_disk_is_named_whoever_notices(tmp_path: Path, wrap: str) -> None:
    """In the words of each library that writes files; what was there before stays."""

    def fail(path: Path) -> None:
        path.write_text("half")
        if wrap == "os":
            raise OSError(28, "No space left on device")
        if wrap == "safetensors":
            text = "Error while serializing: I/O error: No space left on device (os error 28)"
            raise SafetensorError(text)
        raise pl.exceptions.ComputeError("IO error: No space left on device (os error 28)")

    write(tmp_path / "file", lambda path: path.write_text("old"))
    with pytest.raises(StoreError, match=r"\(No space left on device\); what was finished"):
        write(tmp_path / "file", fail)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.subset("digits", SUBSET) / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "labels": [1, 1]}))
    with pytest.raises(StoreError, match="its images do not fit its own hash"):
        store.subset("digits", SUBSET)
    file.write_text("{")
    with pytest.raises(StoreError, match="it cannot be read"):
        store.subset("digits", SUBSET)


def test_of_two_claims_at_once_one_is_refused(tmp_path: Path) -> None:
    """Many entries of one name and two identities: every folder belongs to the first."""
    outcomes = []

    def claim(steps: int) -> None:
        ready.wait()
        try:
            outcomes.append(Folder(tmp_path / "e", {"steps": steps}).claim().identity["steps"])
        except UserError:
            outcomes.append(None)

    ready = threading.Barrier(8)
    threads = [threading.Thread(target=claim, args=(i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = json.loads((tmp_path / "e" / "identity.json").read_text())["steps"]
    assert sorted(outcomes, key=str) == sorted([winner] * 4 + [None] * 4, key=str)
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["identity.json"]
