"""The order and the names of classes, and labels that refer to them."""

import json
from pathlib import Path

import pytest

from netkin.data.classes import class_words, labels_of, read_classes
from netkin.data.images import Images
from netkin.data.sources import open_folder
from netkin.errors import UserError
from tests.data.conftest import picture

NUMBERS = [str(k) for k in range(12)]


def number_folders(root: Path) -> None:
    for k, name in enumerate(NUMBERS):
        picture(root / "val" / name / f"{k}.png", k)


def by_name(images: Images) -> dict[str, int]:
    return dict(zip([i.rpartition("/")[2] for i in images.ids], images.labels, strict=True))


def test_folders_of_numbers_in_both_orders(tmp_path: Path) -> None:
    number_folders(tmp_path)
    text = open_folder(str(tmp_path))
    assert text.classes == ["0", "1", "10", "11", *NUMBERS[2:10]]
    note = text.notes[1]
    assert "numbers, read in text order (0, 1, 10, ...)" in note and "class_order=natural" in note
    natural = open_folder(str(tmp_path), class_order="natural")
    assert (natural.classes, natural.notes[1:]) == (NUMBERS, ())
    assert by_name(natural) == {f"{k}.png": k for k in range(12)}
    with pytest.raises(UserError, match="class_order must be text or natural, got 'size'"):
        open_folder(str(tmp_path), class_order="size")


@pytest.mark.parametrize("kind", ["list", "txt", "json", "yaml"])
def test_a_list_of_classes_orders_folders(tmp_path: Path, kind: str) -> None:
    names = ["no", "zebra", "007", "ant"]  # YAML reads no as false and 007 as 7
    for name in names:
        picture(tmp_path / "val" / name / f"{name}.png")
    file = tmp_path / f"classes.{kind}"
    text = {
        "list": "",
        "txt": "\ufeff" + "\r\n".join(names) + "\r\n\r\n",
        "json": json.dumps(names),
        "yaml": "".join(f"- {name}\n" for name in names),
    }[kind]
    file.write_text(text, newline="")
    images = open_folder(str(tmp_path), classes=names if kind == "list" else str(file))
    assert images.classes == names
    expected = {"no.png": 0, "zebra.png": 1, "007.png": 2, "ant.png": 3}
    assert (by_name(images), images.notes[1:]) == (expected, ())


def test_lists_of_classes_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / "val" / name / "1.png")
    images = open_folder(str(tmp_path), classes=["dog", "eel", "cat", "fox"])
    assert by_name(images).keys() == {"1.png"} and images.labels == [0, 2]
    assert images.notes[1:] == (f"2 of the 4 classes have no folder in {tmp_path}/val: eel, fox",)
    with pytest.raises(UserError, match=r"has 1 folders that are not among the 2 names .* 'dog'"):
        open_folder(str(tmp_path), classes=["cat", "Dog"])
    with pytest.raises(UserError, match="'cat' 2 times; expected once"):
        open_folder(str(tmp_path), classes=["cat", "dog", "cat"])
    for name, text in {
        "a.json": '{"a": {"b": 1}}',
        "b.yaml": "- [1",
        "c.txt": "",
        "d": None,
    }.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name} cannot be read .*expected a list of names"):
            read_classes(str(tmp_path / name))


def test_labels_from_one_are_recognised() -> None:
    labels, classes, notes = labels_of("abc", "132", "labels.txt")
    assert (labels, classes) == ([0, 2, 1], ["1", "2", "3"])
    assert notes == ["labels in labels.txt are numbered from 1 to 3: 1 was subtracted"]
    names = ["cat", "dog", "eel"]
    assert labels_of("ab", "13", "labels.txt", names)[0] == [0, 2]
    assert labels_of("ab", "02", "labels.txt", names)[::2] == ([0, 2], [])
    # Neither 0 nor 3 among three classes: from 0 as a rule, and a note.
    labels, _, notes = labels_of("ab", "12", "labels.txt", names)
    assert labels == [1, 2] and "no label in labels.txt is 0" in notes[0]
    with pytest.raises(UserError, match="label 3 of b is out of range"):
        labels_of("ab", "03", "labels.txt", names)


@pytest.mark.parametrize("label", ["20000000", "9" * 5000])
def test_a_huge_label_is_an_error_and_takes_no_memory(label: str) -> None:
    with pytest.raises(UserError, match=r"claims 20,000,001 classes|is out of range"):
        labels_of("ab", ["0", label], "labels.txt", () if len(label) < 10 else ["x", "y"])


def test_classes_in_words() -> None:
    assert class_words(["n01440764", "cat", "7", "n99999999"]) == ["tench", "cat", "7", "n99999999"]
    cranes = class_words(["n02012849", "n03126707"])  # a bird and a machine
    assert cranes == ["crane (n02012849)", "crane (n03126707)"]
