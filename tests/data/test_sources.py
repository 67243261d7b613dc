"""Folders, tar files of splits, Hugging Face datasets and WebDataset shards, by their root."""

import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from netkin.data.digits import Digits
from netkin.data.imagenet import open_imagenet
from netkin.data.sources import open_folder
from netkin.data.subset import draw
from netkin.errors import UserError
from tests.data.conftest import WNIDS, by_id, picture, saved


@pytest.mark.parametrize("root", ["hfds/no/such", "wds/nowhere", "nowhere.tar", "nowhere"])
def test_a_missing_root(root: str) -> None:
    with pytest.raises(UserError, match=re.escape(root.split("/")[-1])):
        open_folder(root)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 0 class folders"):
        open_folder(str(tmp_path))
    (tmp_path / "cat").mkdir()
    picture(tmp_path / "dog" / "a.png")
    with pytest.raises(UserError, match="cat holds no image"):
        open_folder(str(tmp_path))
    picture(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"cat/caf.*\.png is not UTF-8; rename the file"):
        draw(open_folder(str(tmp_path)), "full")


def test_a_tar_of_splits_keeps_them_apart(imagenet: Path) -> None:
    picture(imagenet / "train" / WNIDS[3] / "train_1.JPEG", 50)
    picture(imagenet / "train" / WNIDS[42] / "train_2.JPEG", 51)
    with tarfile.open(imagenet / "both.tar", "w") as tar:
        tar.add(imagenet / "bare", "data/val")
        tar.add(imagenet / "train", "data/train")
    assert len(open_imagenet(str(imagenet / "both.tar")).ids) == 6
    train = open_folder(str(imagenet / "both.tar"), "train")
    assert train.ids == [f"{WNIDS[3]}/train_1.JPEG", f"{WNIDS[42]}/train_2.JPEG"]
    assert train.notes == (f"the images are those of {imagenet}/both.tar/data/train, not of val",)
    with pytest.raises(UserError, match="holds no folder train, but val"):
        open_folder(str(imagenet / "val.tar"), "train")


def test_hugging_face_folders(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(imagenet / "cache"))
    images = open_imagenet(f"hfds/{imagenet / 'folders'}", "validation")
    assert by_id(images) == by_id(open_imagenet(str(imagenet / "folders")))
    with pytest.raises(UserError, match="cannot be read"):
        open_imagenet(f"hfds/{imagenet / 'folders'}", "nosuch")


def test_columns_of_a_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"fine": datasets.Value("int64"), "coarse": datasets.Value("string")}
    labels: Any = {"fine": [1, 3, 2, 1], "coarse": list("baba")}
    paths = [f"{i}.png" for i in range(4)]
    root = saved(tmp_path, labels, paths, kinds, image="photo")
    (tmp_path / "parquet").mkdir()
    table = datasets.load_from_disk(root.removeprefix("hfds/"))["validation"]
    table.to_parquet(str(tmp_path / "parquet" / "validation-00000-of-00001.parquet"))
    for name in (root, f"hfds/{tmp_path / 'parquet'}"):
        listed = r"its columns are photo \(Image\), fine \(int64\), coarse \(string\)"
        with pytest.raises(UserError, match=rf"no one column of labels: {listed}"):
            open_folder(name, "validation")
        with pytest.raises(UserError, match=rf"has no column size: {listed}"):
            open_folder(name, "validation", label_column="size")
        images = open_folder(name, "validation", label_column="fine")
        assert (images.labels, images.classes) == ([0, 2, 1, 0], ["1", "2", "3"])
        assert "images are column photo and labels column fine, of photo" in images.notes[0]
        assert "1 was subtracted" in images.notes[1]
        words = open_folder(name, "validation", image_column="photo", label_column="coarse")
        assert (words.labels, words.classes) == ([1, 0, 1, 0], ["a", "b"])
        assert words.notes == ()  # nothing was guessed
        assert words.load(1).size == (40, 24) and words.ids[1] == "1.png"
    for given, problem in (
        ({"split": "test"}, r"has no split test, but validation"),
        ({"labels": "x"}, "does not go with hfds"),
        ({"root": str(tmp_path), "label_column": "fine"}, r"are of hfds/\.\.\., not of"),
    ):
        with pytest.raises(UserError, match=problem):
            open_folder(**{"root": root, "split": "validation", **given})


def test_equal_images_without_names_and_a_dataset_without_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["a", "b"])
    root = saved(tmp_path, {"label": [0, 1, 1]}, [""] * 3, {"label": kind}, splits=False)
    images = open_folder(root, "validation")
    first = images.ids[0]
    assert images.ids == [first, f"{first}-2", f"{first}-3"]
    assert (images.labels, images.classes) == ([0, 1, 1], ["a", "b"])
    assert "has no splits" in images.notes[0]


def test_webdataset_shards(tmp_path: Path) -> None:
    digits = Digits()
    shards = tmp_path / "digits"
    shards.mkdir()
    for shard in range(2):
        with tarfile.open(shards / f"digits-val-{shard:02d}.tar", "w") as tar:
            for i in range(shard * 5, shard * 5 + 5):
                file = io.BytesIO()
                digits.load(i).save(file, "png")
                label = str(digits.labels[i]).encode()
                for kind, content in (("png", file.getvalue()), ("cls", label), ("json", b"{}")):
                    entry = tarfile.TarInfo(f"scan{i}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    images = open_folder(f"wds/{shards}", "digits-val-{00..01}.tar")
    assert images.ids[6] == "digits-val-01/scan6"
    assert images.labels == digits.labels[:10] and "10 .json" in images.notes[0]
    for i in range(10):
        assert images.load(i).tobytes() == digits.load(i).tobytes()
