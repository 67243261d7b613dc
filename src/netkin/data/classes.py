"""Classes: their order, their names, and the labels that refer to them."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from netkin.errors import UserError, reading

ORDERS = ("text", "natural")
MOST = 100_000
"""Classes that labels may claim by their numbers alone: four times ImageNet-22k's. A label above
is a mistake, which would have a model of so many outputs built."""


def natural_key(name: str) -> list[str | int]:
    """As timm's, with which names of classes and files are sorted as numbers where they are such:
    2 before 10, small letters as capitals."""
    return [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name.lower())]


def in_order(names: Iterable[str], class_order: str) -> list[str]:
    """Names of classes in "text" order (0, 1, 10, 11, 2, ...) or "natural" (0, 1, 2, ..., 10)."""
    if class_order not in ORDERS:
        raise UserError(f"class_order must be {' or '.join(ORDERS)}, got {class_order!r}")
    if class_order == "text":
        return sorted(names)
    return sorted(names, key=lambda name: (natural_key(name), name))


def order_note(names: Sequence[str], what: str, class_order: str) -> list[str]:
    """A note where names in text order would be in another order for timm."""
    natural = in_order(names, "natural")
    if class_order != "text" or list(names) == natural:
        return []
    k = next(k for k, name in enumerate(names) if name != natural[k])
    text, other = (", ".join(order[max(0, k - 2) : k + 1]) for order in (names, natural))
    return [
        f"{what} are in text order ({text}, ...); models that were trained through timm have them "
        f"in natural order ({other}, ...): take class_order=natural for those"
    ]


def read_classes(value: Any) -> list[str]:
    """Names of classes in order, from a list, or from the path of a file.

    A file has one name a line, or is a JSON or YAML list. Raises UserError for other files, and for
    a name that comes twice.
    """
    names = _from_file(Path(value).expanduser()) if isinstance(value, str) else map(str, value)
    counts = Counter(names)
    if twice := [name for name, times in counts.items() if times > 1]:
        where = f"classes={value}" if isinstance(value, str) else "classes"
        raise UserError(f"{where} has {twice[0]!r} {counts[twice[0]]} times; expected once")
    return list(counts)


def _from_file(path: Path) -> list[str]:
    expected = "expected a list of names, or a file with one name a line, or a JSON or YAML list"
    with reading(f"classes={path}", expected, OSError, ValueError, yaml.YAMLError):
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".yaml", ".yml"):
            content: Any = yaml.load(text, yaml.BaseLoader)  # all as text: no is a name
        elif path.suffix.lower() == ".json" or text.lstrip().startswith(("[", "{")):
            content = json.loads(text)
        else:
            content = [line.strip() for line in text.split("\n") if line.strip()]
        if not isinstance(content, list) or not content:
            raise ValueError("it holds no list")
        if not all(isinstance(name, str | int) for name in content):
            raise ValueError("its list holds other things than names")
        return list(map(str, content))


def numbered(highest: int, where: str) -> list[str]:
    """Classes that are known by the highest label alone: "0", "1", ..., str(highest).

    Raises UserError when these are more than there can be.
    """
    if highest >= MOST:
        raise UserError(
            f"{where}: a label of {highest} claims {highest + 1:,} classes, expected at most "
            f"{MOST:,}; are these labels? Give the names of the classes if they are"
        )
    return [str(k) for k in range(highest + 1)]


def labels_of(
    images: Sequence[str],
    written: Sequence[str],
    where: str,
    classes: Sequence[str] = (),
    class_order: str = "text",
    first: int | None = None,
) -> tuple[list[int], list[str], list[str]]:
    """(labels, classes, notes) from labels as they are written.

    Args:
        images: names of the images, for errors.
        written: of each image, a class's name, or its index from 0 or from 1.
        where: the file they are from, for errors.
        classes: names in order; by default the distinct labels, sorted in `class_order`, or, where
            all are numbers, 0 to the largest.
        first: 0 or 1, the first class's index. By default 1 where labels are 1 to K and none is
            0, of K classes, or of K distinct labels where classes are not given; else 0.

    Raises UserError for a label that is no class.
    """
    distinct, notes = set(written), []
    if not classes and not all(map(_is_index, distinct)):
        for image, label in zip(images, written, strict=True):
            if "|" in label or (_is_number(label) and not _is_index(label)):
                raise UserError(
                    f"{where}: label {label[:40]!r} of {image} is neither a class's index, such "
                    "as 0, nor the name of one class; a name that looks so has to be in classes"
                )
        classes = in_order(distinct, class_order)
        notes = order_note(classes, "classes", class_order)
    if classes and distinct <= set(classes):
        index = {name: k for k, name in enumerate(classes)}
        return [index[label] for label in written], list(classes), notes
    values = [int(label) if _is_index(label) else -1 for label in written]
    low, high = min(values, default=0), max(values, default=0)
    if first is None:
        expected = len(classes) or len(distinct)
        first = int(low >= 1 and high == expected > 1)
        if first:
            notes = [f"labels in {where} are numbered from 1 to {high}: 1 was subtracted"]
        elif low >= 1:
            notes = [f"no label in {where} is 0: they are read as counted from 0"]
    classes = list(classes) or numbered(high, where)[first:]
    for image, label, value in zip(images, written, values, strict=True):
        if not 0 <= value - first < len(classes):
            raise UserError(
                f"{where}: label {label[:40]} of {image} is out of range; expected one of "
                f"{len(classes)} class names, or {first} to {len(classes) - 1 + first}"
            )
    return [value - first for value in values], classes, notes


def _is_index(label: str) -> bool:
    return label.isdecimal() and len(label) < 10


def _is_number(label: str) -> bool:
    """Whether Python reads a number (-1, 5.0, 1e3, nan), or nothing (None, null)."""
    if label in ("None", "null", "NULL", "<NA>"):
        return True
    with suppress(ValueError):
        return float(label) is not None
    return False


def class_words(classes: Sequence[str]) -> list[str]:
    """Names of classes as people read them: WordNet ids in words, all others as they are.

    A word is WordNet's first of the class, all of its words where two of `classes` share that
    (ImageNet's two cranes have the id beside it as well). Numbers stay: only a dataset's own list
    of classes says what they are.
    """
    lemmas = [_lemmas(name) for name in classes]
    short = [lemma.split(",")[0] for lemma in lemmas]
    shorts, longs = Counter(short), Counter(lemmas)
    return [
        brief if shorts[brief] == 1 else full if longs[full] == 1 else f"{full} ({name})"
        for name, brief, full in zip(classes, short, lemmas, strict=True)
    ]


def _lemmas(name: str) -> str:
    if not re.fullmatch(r"n\d{8}", name):
        return name
    try:
        return _imagenet().label_name_to_description(name)
    except KeyError:  # not of ImageNet-22k
        return name


@cache
def _imagenet() -> Any:
    from timm.data import ImageNetInfo  # timm takes seconds to import

    return ImageNetInfo()
