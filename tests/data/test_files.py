"""Which files of a folder or an archive are images, and which are left out and counted."""

import io
import os
import pickle
import tarfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from netkin.data.images import UnreadableImage
from netkin.data.sources import open_folder
from netkin.data.subset import draw
from netkin.errors import UserError
from tests.data.conftest import PIXELS, picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images."""
    for i, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png")):
        picture(tmp_path / "root" / "val" / name, i)
    return tmp_path / "root"


def test_what_other_programs_leave_is_left_out_and_counted(root: Path) -> None:
    cat = root / "val" / "cat"
    for name in (".DS_Store", "._a.png", "Thumbs.db", "notes.txt", "README"):
        (cat / name).write_bytes(b"x")
    picture(cat / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_M.jpg")
    picture(root / "val" / "__MACOSX" / "cat" / "._a.png")
    picture(root / "val" / "no_class.png")
    os.mkfifo(cat / "pipe.png")
    images = open_folder(str(root))
    assert images.classes == ["cat", "dog"] and len(images.ids) == 4
    note = images.notes[1]
    assert note.startswith(f"left out 9 files or folders of {root}/val: ")
    for kind in ("2 hidden", "1 .db", "1 .txt", "1 without extension", "1 @eaDir folder"):
        assert kind in note
    for kind in ("1 __MACOSX folder", "1 images outside", "1 neither file"):
        assert kind in note


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "tiff", "ppm", "pgm", "JPEG", "jp2"])
def test_images_of_many_formats_are_read(root: Path, suffix: str) -> None:
    picture(root / "val" / "cat" / f"z.{suffix}")
    images = open_folder(str(root))
    assert len(images.ids) == 5 and len(images.notes) == 1
    assert images.load(images.ids.index(f"cat/z.{suffix}")).size == (40, 24)


def test_links_to_folders_are_followed_but_not_in_circles(root: Path) -> None:
    picture(root / "more" / "deep" / "e.png", 9)
    (root / "val" / "cat" / "more").symlink_to("../../more")
    (root / "more" / "deep" / "again").symlink_to("../../more")
    (root / "val" / "owl").symlink_to("../more")
    (root / "val" / "dog" / "gone").symlink_to("/nowhere")
    images = open_folder(str(root))
    assert images.classes == ["cat", "dog", "owl"]
    assert {"cat/more/deep/e.png", "owl/deep/e.png"} < {*images.ids} and len(images.ids) == 6
    assert "2 link back, 1 neither file nor folder" in images.notes[1]


@pytest.mark.parametrize("target", ["/nowhere/x.png", "z.png"])
def test_a_link_to_nothing_is_an_unreadable_image(root: Path, target: str) -> None:
    (root / "val" / "cat" / "z.png").symlink_to(target)
    images = open_folder(str(root))
    assert "cat/z.png" in draw(images, "full").ids
    with pytest.raises(UnreadableImage, match=r"cat/z\.png in .* is unreadable"):
        images.load(images.ids.index("cat/z.png"))


def test_a_folder_that_cannot_be_listed_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        open_folder("x" * 5000)
    monkeypatch.setattr(os, "scandir", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"cannot be read: .*Permission denied"):
        open_folder(str(root), "val")


def add(tar: tarfile.TarFile, name: str, content: bytes | None = None, link: str = "") -> None:
    """A file of a picture, of other content, or a link to a name."""
    entry = tarfile.TarInfo(name)
    if link:
        entry.type = tarfile.SYMTYPE if "/" not in link else tarfile.LNKTYPE
        entry.linkname = link
    elif content is None:
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, "png")
        content = file.getvalue()
    entry.size = len(content or b"")
    tar.addfile(entry, io.BytesIO(content or b""))


def test_what_is_left_out_of_a_tar_is_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        add(tar, "./val/cat/a.png")
        add(tar, "./val/cat/more/b.png")
        add(tar, "./val/dog/c.png")
        for litter in ("val/dog/._c.png", "val/dog/.DS_Store", "__MACOSX/a.png", "val/dog/b.txt"):
            add(tar, f"./{litter}", b"abc")
        add(tar, "./val/dog/hard.png", link="./val/dog/c.png")
        add(tar, "./val/dog/soft.png", link="c.png")
    images = pickle.loads(pickle.dumps(open_folder(str(tmp_path / "d.tar"))))
    # A class is a folder of the first level, and ids are the same, as outside of archives.
    assert dict(zip(images.ids, images.labels, strict=True)) == {
        "cat/a.png": 0,
        "cat/more/b.png": 0,
        "dog/c.png": 1,
    }
    assert (np.asarray(images.load(1)) == PIXELS).all()
    note = images.notes[1]
    assert "left out 6 files or folders" in note and "1 .txt" in note
    for kind in ("2 hidden", "1 __MACOSX folder", "2 link within the archive"):
        assert kind in note


@pytest.mark.parametrize("prefix", ["", "data/", "val/", "data/val/"])
def test_folders_before_classes_in_a_tar(tmp_path: Path, prefix: str) -> None:
    names = ["10/a.png", "9/b.png", "train/c.png"]  # a train is a thing, too
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name in names:
            add(tar, prefix + name)
    images = open_folder(str(tmp_path / "d.tar"))
    assert images.classes == ["10", "9", "train"] and "text order" in images.notes[1]
    assert images.labels == [images.classes.index(i.split("/")[-2]) for i in images.ids]
    natural = open_folder(str(tmp_path / "d.tar"), class_order="natural")
    assert natural.classes == ["9", "10", "train"]


def test_a_tar_a_class_in_a_folder_and_in_a_tar(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for name in ("cat", "dog"):
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as tar:
            add(tar, f"{name}_1.png")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "tars", "train")
    for root, split in ((tmp_path / "tars", "val"), (tmp_path / "all.tar", "train")):
        images = open_folder(str(root), split)
        assert images.classes == ["cat", "dog"]
        assert [i.split("/")[-1] for i in images.ids] == ["cat_1.png", "dog_1.png"]
        assert images.labels == [0, 1]
        assert (np.asarray(images.load(1)) == PIXELS).all()


def test_a_tar_that_is_compressed_or_cut(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        add(tar, "val/cat/a.png")
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        add(tar, "val/cat/a.png")
    content = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:700])
    for name in ("z.tar", "cut.tar"):
        with pytest.raises(UserError, match=f"{name} cannot be read .*expected a tar file"):
            open_folder(str(tmp_path / name))
