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


def by_name(images: Images) -> dict[str, int]:
    return dict(zip([i.rpartition("/")[2] for i in images.ids], images.labels, strict=True))


def test_folders_of_numbers_in_both_orders(tmp_path: Path) -> None:
    for k, name in enumerate(NUMBERS):
        picture(tmp_path / "val" / name / f"{k}.png", k)
    text = open_folder(str(tmp_path))
    assert text.classes == ["0", "1", "10", "11", *NUMBERS[2:10]]
    note = text.notes[1]
    assert "in text order (0, 1, 10, ...)" in note and "class_order=natural" in note
    natural = open_folder(str(tmp_path), class_order="natural")
    assert (natural.classes, natural.notes[1:]) == (NUMBERS, ())
    assert by_name(natural) == {f"{k}.png": k for k in range(12)}
    with pytest.raises(UserError, match="class_order must be text or natural, got 'size'"):
        open_folder(str(tmp_path), class_order="size")


@pytest.mark.parametrize("kind", ["list", "txt", "json", "yaml"])
def test_a_list_of_classes_orders_folders(tmp_path: Path, kind: str) -> None:
    names = ["no", "zebra", "007", "ant", "eel"]  # YAML reads no as false and 007 as 7
    for name in names[:4]:
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
    assert by_name(images) == {"no.png": 0, "zebra.png": 1, "007.png": 2, "ant.png": 3}
    assert images.notes[1:] == (f"1 of the 5 classes have no folder in {tmp_path}/val: eel",)


def test_lists_of_classes_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / "val" / name / "1.png")
    for classes, problem in (
        (["cat", "Dog"], r"has 1 folders that are not among the 2 names .* 'dog'"),
        (["cat", "dog", "cat"], "'cat' 2 times; expected once"),
    ):
        with pytest.raises(UserError, match=problem):
            open_folder(str(tmp_path), classes=classes)
    for name, text in {"a.json": '{"a": {"b": 1}}', "b.yaml": "- [1", "c.txt": ""}.items():
        (tmp_path / name).write_text(text)
    for name in ("a.json", "b.yaml", "c.txt", "nowhere"):
        with pytest.raises(UserError, match=f"{name} cannot be read .*expected a list of names"):
            read_classes(str(tmp_path / name))


@pytest.mark.parametrize(
    ("written", "names", "labels", "note"),
    [
        ("132", "", [0, 2, 1], "numbered from 1 to 3: 1 was subtracted"),
        ("13", "xyz", [0, 2], "1 was subtracted"),
        ("02", "xyz", [0, 2], ""),
        ("12", "xyz", [1, 2], "no label in labels.txt is 0"),  # neither 0 nor 3: from 0 as a rule
        ("yx", "xyz", [1, 0], ""),
        ("yx", "", [1, 0], ""),
        ("03", "xyz", None, "label 3 of b is out of range"),
        (["0", "20000000"], "", None, "claims 20,000,001 classes"),  # which take no memory
        (["0", "9" * 5000], "xy", None, "is out of range"),
    ],
)
def test_labels_are_names_or_counted_from_0_or_1(
    written: list[str], names: str, labels: list[int] | None, note: str
) -> None:
    if labels is None:
        with pytest.raises(UserError, match=note):
            labels_of("ab", written, "labels.txt", names)
        return
    found, _, notes = labels_of("abc"[: len(written)], written, "labels.txt", names)
    assert found == labels and (note in notes[0] if note else not notes)


def test_classes_in_words() -> None:
    assert class_words(["n01440764", "cat", "7", "n99999999"]) == ["tench", "cat", "7", "n99999999"]
    cranes = class_words(["n02012849", "n03126707"])  # a bird and a machine
    assert cranes == ["crane (n02012849)", "crane (n03126707)"]
