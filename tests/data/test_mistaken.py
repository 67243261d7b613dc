"""What a dataset may be mistaken for without an error: each is read right, or its user is told."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netkin.data.imagenet import open_imagenet
from netkin.data.images import Images
from netkin.data.sources import open_folder
from netkin.data.subset import draw
from netkin.errors import UserError
from tests.data.conftest import PIXELS, WNIDS, picture, saved


@pytest.mark.parametrize(
    ("folders", "used", "others"),
    [
        ("train valid test", "valid", "test, train"),
        ("Training Testing", "Testing", "Training"),
        ("train val validation", "val", "train, validation"),
        ("train test extra", "test", "train"),
        ("valid invalid", "", ""),
        ("cat dog", "", ""),
    ],
)
def test_the_folder_that_is_used_is_said(
    tmp_path: Path, folders: str, used: str, others: str
) -> None:
    for name in folders.split():
        for of in ("ant", "bee"):
            picture(tmp_path / name / of / f"{name}.png")
    images = open_folder(str(tmp_path))
    place = f"the images are those of {tmp_path}{used and '/'}{used}"
    assert images.notes == (place + (f", not of {others}" if used else ""),)
    assert images.classes == (["ant", "bee"] if used else sorted(folders.split()))
    if used:
        assert {Path(image).stem for image in images.ids} == {used}
        assert (
            open_folder(str(tmp_path), folders.split()[1])
            .ids[0]
            .endswith(f"{folders.split()[1]}.png")
        )


@pytest.mark.parametrize(
    ("values", "taken", "note"),
    [
        ("train val test", ["b.png"], "by column Split of t.csv, the images are its 1 rows of val"),
        ("Training Test Test", ["b.png", "c.png"], "its 2 rows of Test"),
        ("1 2 3", ["a.png", "b.png", "c.png"], "names no split, but 1, 2, 3: it is not used"),
        ("train train train", None, "column Split of t.csv has no val, but train"),
    ],
)
def test_a_table_with_a_column_of_splits(
    tmp_path: Path, values: str, taken: list[str] | None, note: str
) -> None:
    rows = ["Split,image,label"]
    for name, value in zip("abc", values.split(), strict=True):
        picture(tmp_path / f"{name}.png")
        rows.append(f"{value},{name}.png,{name}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    arguments = (str(tmp_path), "val", str(tmp_path / "t.csv"), list("abc"))
    if taken is None:
        with pytest.raises(UserError, match=note):
            open_folder(*arguments)
        return
    images = open_folder(*arguments)
    assert images.ids == taken and note in images.notes[-1]


@pytest.mark.parametrize("kind", ["classes", "text"])
def test_equal_names_of_files_in_a_hugging_face_dataset(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["ant", "bee"]
    label = datasets.ClassLabel(names=names) if kind == "classes" else datasets.Value("string")
    labels = [0, 1, 1, 1] if kind == "classes" else ["ant", "bee", "bee", "bee"]
    paths = ["0.png", "0.png", "0.png", "1.png"]
    root = saved(tmp_path, {"label": labels}, paths, {"label": label})
    images = open_folder(root, "validation", label_column="label")
    assert images.ids == ["ant/0.png", "bee/0.png", "bee/0.png-2", "bee/1.png"]
    assert (images.labels, images.classes) == ([0, 1, 1, 1], names)
    assert len(draw(images, "full")) == 4


@pytest.mark.parametrize(
    ("labels", "paths", "message"),
    [
        (["a", None], ["0.png", "1.png"], "row 1 of validation has label None"),
        (["a", "b"], ["0.png", None], "row 1 of validation has no image"),
        ([0.0, 5.0], ["0.png", "1.png"], r"row 0 of validation has label 0\.0"),
        ([["a"], ["b"]], ["0.png", "1.png"], r"row 0 of validation has label \['a'\]"),
        ([0, -1], ["0.png", "1.png"], "'-1' of 1.png is neither a class's index"),
    ],
)
def test_rows_without_an_image_or_a_label_are_named(
    tmp_path: Path, labels: list, paths: list[str | None], message: str
) -> None:
    datasets = pytest.importorskip("datasets")
    kind = {float: "float64", int: "int64"}.get(type(labels[0]), "string")
    label: Any = datasets.Value(kind)
    label = [label] if isinstance(labels[0], list) else label
    root = saved(tmp_path, {"label": labels}, paths, {"label": label})
    with pytest.raises(UserError, match=message):
        open_folder(root, "validation", label_column="label")


@pytest.mark.parametrize("label", ["a|b", "5.0", "-1", "1e3", "nan"])
def test_labels_that_are_no_class(tmp_path: Path, label: str) -> None:
    picture(tmp_path / "0.png")
    picture(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text(f"0.png,0\n1.png,{label}\n")
    arguments = (str(tmp_path), "val", str(tmp_path / "labels.csv"))
    with pytest.raises(UserError, match=r"^labels\.csv: label '.*' of 1\.png is neither") as caught:
        open_folder(*arguments)
    assert "\n" not in str(caught.value)
    assert open_folder(*arguments, ["0", label]).labels == [0, 1]  # as a name


def test_imagenet_in_folders_of_indices(tmp_path: Path) -> None:
    for k in range(1000):
        picture(tmp_path / str(k) / "same_name.png", k % 200)
    images = open_imagenet(str(tmp_path))
    assert list(images.classes) == WNIDS and len({*images.ids}) == 1000
    for image, label in zip(images.ids, images.labels, strict=True):
        assert image == f"{label}/same_name.png"
    (tmp_path / "999").rename(tmp_path / "1000")
    with pytest.raises(UserError, match=r"no WordNet ids of ImageNet-1k, such as '0'; .*0 to 999"):
        open_imagenet(str(tmp_path))


def test_numbers_of_imagenets_classes_in_a_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    text_order = sorted(map(str, range(1000)))  # as the library reads folders of indices

    def opened(names: list[str], *labels: int) -> Images:
        kind = {"label": datasets.ClassLabel(names=names)}
        root = saved(tmp_path / names[0], {"label": list(labels)}, ["a.png", "b.png"], kind)
        return open_imagenet(root, "validation")

    images = opened(text_order, 2, 999)
    of = [images.classes[label] for label in images.labels]
    assert of == [WNIDS[10], WNIDS[999]]
    words = sorted(f"word {k}" for k in range(1000))  # not in the order of the ids
    for names in (text_order[1:20], words):
        with pytest.raises(UserError, match="expected ImageNet-1k's 1000 in its order"):
            opened(names, 2, 3)


def test_12_bits_in_16(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, PIXELS[..., 0].size).astype(np.uint16).reshape(24, 40)
    for of in ("ant", "bee"):
        (tmp_path / of).mkdir()
        Image.fromarray(values).save(tmp_path / of / "a.png")
    dark, right = open_folder(str(tmp_path)), open_folder(str(tmp_path), white_level=4095)
    assert np.asarray(dark.load(0)).max() == 16 and "of 2 that were looked at" in dark.notes[-1]
    assert "set white_level, such as 4095 for 12 bits" in dark.notes[-1] and len(right.notes) == 1
    assert (np.asarray(right.load(0))[..., 0] == np.rint(values / 4095 * 255)).all()
    # Stored results are of one of them.
    assert draw(dark, "full").digest != draw(right, "full").digest
    low = open_folder(str(tmp_path), white_level=4000)
    with pytest.raises(UserError, match="values of 0 to 4095, expected 0 to 4000"):
        low.load(0)
    with pytest.raises(UserError, match="white_level must be a whole number of 1 to 65535, got 0"):
        open_folder(str(tmp_path), white_level=0)


def test_a_large_image_is_read_without_a_warning(tmp_path: Path) -> None:
    """PIL warns from its limit of 89 million pixels on, and refuses twice as many."""
    picture(tmp_path / "a.png")
    code = (
        "from pathlib import Path; from netkin.data import images as i; "
        f"i.Image.MAX_IMAGE_PIXELS = {PIXELS[..., 0].size - 1}; "
        f"print(i.decode('a', Path({str(tmp_path / 'a.png')!r}).read_bytes).size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(40, 24)\n", "")
