"""Label files as people have them."""

from pathlib import Path

import pytest

from netkin.data.images import Images
from netkin.data.sources import open_folder
from netkin.errors import UserError
from tests.data.conftest import picture

NAMES = ("a.png", "b.png", "c d.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        picture(tmp_path / "val" / name, i)
    return tmp_path


def labelled(root: Path, text: str | bytes, *classes: str, name: str = "labels.csv") -> Images:
    content = text if isinstance(text, bytes) else text.encode()
    (root / name).write_bytes(content)
    return open_folder(str(root), "val", str(root / name), classes)


@pytest.mark.parametrize(
    "text",
    [
        "a.png 0\nb.png 2\nc d.png 1\n",
        "a.png\t0\nb.png\t2\nc d.png\t1",
        "a.png, 0\r\nb.png, 2\r\n\r\nc d.png, 1\r\n",
        "a.png;0\nb.png;2\nc d.png;1\n",
        "filename,label\na.png,0\nb.png,2\nc d.png,1\n",
        'Image Id\tClass\n"a.png"\t0\n"b.png"\t2\n"c d.png"\t1\n',
        "label,width,image\n0,40,a.png\n2,40,b.png\n1,40,c d.png\n",
        "val/a.png 0\nval/b.png 2\n./data/val/c d.png 1\n",
        "val\\a.png,0\nval\\b.png,2\nval\\c d.png,1\n",
        "train/a.png 1\nval/a.png 0\nval/b.png 2\nval/c d.png 1\n",
        "ImageId,label\na,0\nb,2\nc d,1\n",
        "a.png 1\nb.png 3\nc d.png 2\n",
        "a.png ant\nb.png cat\nc d.png bee\n",
        "0\n2\n1\n",
        "ant\ncat\nbee\n",
    ],
)
def test_a_label_file_in_any_dress(root: Path, text: str) -> None:
    images = labelled(root, text, "ant", "bee", "cat")
    assert (images.ids, images.labels) == (list(NAMES), [0, 2, 1])
    assert images.load(2).size == (40, 24)


def test_what_a_label_file_is_taken_for_is_noted(root: Path) -> None:
    picture(root / "val" / "e.png")
    (root / "val" / ".f.png").write_bytes(b"")
    text = "filename,label\nval/a.png,1\nval/b.png,3\ntrain/b.png,3\nval/c d.png,2\n"
    images = labelled(root, text)
    assert (images.labels, images.classes) == ([0, 2, 1], ["1", "2", "3"])
    assert images.notes[1:] == (
        f"left out 2 files or folders of {root}/val: 1 hidden, 1 without a line in labels.csv",
        "1 lines of labels.csv are of another split",
        "labels in labels.csv are numbered from 1 to 3: 1 was subtracted",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,0,x\nb.png,2,y\n", "has 3 columns and no header; expected two, image and label"),
        ("a.png 0\nb.png 2\na.png 1\n", r"lists image a\.png twice"),
        ("train/a.png 0\ntrain/b.png 0\n", "names no image of"),
        ("a.png 0\ne.png 1\n", r"lists 1 images that are not in .*, such as e\.png"),
        ("0\n1\n", "has 2 labels, .* has 3 images"),
        ("a.png 0\nb.png -1\n", r"label -1 of b\.png is out of range"),
        ("a.png \u00b2\nb.png 0\n", "out of range"),
        ("a.png 0\nb.png\n", r"line 2: expected 'image label', got 'b\.png'"),
        ("a.png\n", r"line 1: expected 'image label', got 'a\.png'"),
        ('a.png,0\n"b.png,1\nc.png,2\n', "quotation mark"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("", "is empty"),
    ],
)
def test_label_files_that_are_refused(root: Path, text: str | bytes, message: str) -> None:
    names = ["ant", "bee"] if "range" in message else []
    with pytest.raises(UserError, match=message):
        labelled(root, text, *names)
    with pytest.raises(UserError, match="cannot be read"):
        open_folder(str(root), "val", str(root / "nowhere"))


def test_names_of_classes_and_files_of_any_extension(root: Path) -> None:
    picture(root / "val" / "e.gif")
    for text, names, labels, classes in (
        ("e.gif c10\na.png c9\n", {}, [1, 0], ["c10", "c9"]),
        ("e.gif c10\na.png c9\n", {"class_order": "natural"}, [0, 1], ["c9", "c10"]),
        # Numbers in another order, as YAML reads them.
        ("\ufeffe.gif,2\na.png,0\n", {"classes": [2, 0, 1]}, [1, 0], ["2", "0", "1"]),
    ):
        (root / "labels").write_text(text)
        images = open_folder(str(root), "val", str(root / "labels"), **names)
        assert (images.ids, images.labels, images.classes) == (["a.png", "e.gif"], labels, classes)
        assert images.load(1).size == (40, 24)
