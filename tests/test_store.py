"""Files that are whole or not there, and entries that are what they say."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from netkin.data.subset import Subset
from netkin.errors import UserError
from netkin.store import (
    Entry,
    OutcomeStore,
    Store,
    digest,
    folder,
    read_tensors,
    write,
    write_tensors,
)

SUBSET = Subset("some", ("a", "b"), (0, 1), (0, 1))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write(file, lambda path: path.write_text("old"))

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"file\.txt \(No space left on device\).*is kept"):
        write(file, fail)
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]


def test_tensors_come_back(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    write_tensors(file, {"images": images[:, :, ::2], "index": torch.tensor([3, 4])})
    found = read_tensors(file)
    assert torch.equal(found["images"], images[:, :, ::2])
    assert found["index"].tolist() == [3, 4]


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"x": torch.zeros(100)})
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"t\.safetensors is damaged .* remove it"):
        read_tensors(file)


def test_an_entry_is_claimed_once_and_checked_ever_after(tmp_path: Path) -> None:
    mine = {"model": {"timm": "test_vit", "kwargs": {"depth": 2}}, "attack": {"steps": 50}}
    Entry(tmp_path / "e", mine).claim().claim()
    other = {"model": {"timm": "test_vit", "kwargs": {"depth": 3}}, "attack": {"steps": 50}}
    with pytest.raises(UserError, match=r"made with model\.kwargs\.depth = 2, now it is 3"):
        Entry(tmp_path / "e", other).claim()
    with pytest.raises(UserError, match=r"made with attack = .* now it is nothing"):
        Entry(tmp_path / "e", {"model": mine["model"]}).claim()


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    Entry(tmp_path / "e", {}).claim()
    (tmp_path / "e" / "identity.json").write_text("{")
    with pytest.raises(UserError, match=r"identity\.json cannot be read"):
        Entry(tmp_path / "e", {}).claim()


def test_attacks_of_other_settings_live_side_by_side(tmp_path: Path) -> None:
    subset = Store(tmp_path).subset("digits", SUBSET)
    a, b = subset.attack("pgd", {"steps": 50}), subset.attack("pgd", {"steps": 20})
    assert a.path != b.path
    assert json.loads((a.path / "identity.json").read_text())["attack"] == {"steps": 50}
    manifest = json.loads((subset.path / "manifest.json").read_text())
    assert (manifest["ids"], manifest["sha256"]) == (["a", "b"], SUBSET.digest)


def test_digests_do_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "hf-hub:org/name", "a=b", "..", "x y"])
def test_any_name_is_one_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "root" / folder(name)
    assert path.parent == tmp_path / "root"
    path.mkdir(parents=True)
    assert (tmp_path / "root").exists() and path.resolve().parent == (tmp_path / "root").resolve()


def rows(*predictions: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"image_id": ["a", "b"][: len(predictions)], "label": 1, "prediction": predictions}
    )


def test_outcomes_are_one_table(tmp_path: Path) -> None:
    table = OutcomeStore(tmp_path)
    for source, target, predictions in (
        ("m/1", "m/1", (0, 0)),
        ("m/1", "7", (1, 0)),
        ("7", "m/1", ()),
        ("7", "7", (1,)),
    ):
        table.write(source, target, "x", rows(*predictions))
    found = table.read(["m/1", "7"])
    assert found.columns == ["target", "image_id", "label", "prediction", "fooled", "source"]
    assert found.filter(source="m/1", target="7")["fooled"].to_list() == [False, True]
    assert set(found["source"]) == {"m/1", "7"}
    # Another reader: polars itself, over the whole folder.
    glob = pl.read_parquet(tmp_path / "**/*.parquet", hive_schema={"source": pl.String})
    assert glob.height == found.height == 5


def test_outcomes_of_other_models_are_refused(tmp_path: Path) -> None:
    table = OutcomeStore(tmp_path)
    assert not table.has("a", "b", "x")
    table.write("a", "b", "x", rows(0, 1))
    assert table.has("a", "b", "x")
    with pytest.raises(UserError, match="made by other models of these names"):
        table.has("a", "b", "y")
    file = table.file("a", "b")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"target=b\.parquet is damaged"):
        table.has("a", "b", "x")


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"store\.dir=.*file/store cannot be written"):
        Store(tmp_path / "file" / "store")
