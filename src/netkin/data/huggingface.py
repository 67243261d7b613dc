"""Hugging Face datasets, by name or as folders of the local disk."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netkin.data.classes import labels_of
from netkin.data.decode import Source
from netkin.data.images import Labelled
from netkin.errors import UserError


@dataclass(frozen=True, slots=True)
class Row(Source):
    """An image of a table, whose column holds the bytes or the path of an encoded image."""

    table: Any
    column: str
    index: int

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        cell = self.table[self.index][self.column]
        content = cell["bytes"] or Path(cell["path"]).read_bytes()
        return len(content), content[:most]


def read_table(
    name: str,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    ids_are: str = "path",
    classes: Sequence[str] = (),
    class_order: str = "text",
) -> Labelled:
    """A split of a dataset that the library `datasets` loads, or that its `save_to_disk` wrote.

    Args:
        name: of a dataset or a folder.
        split: its own name of the split.
        image_column, label_column: by default the only one of images and the only one of class
            labels, else those that are called image and label.
        ids_are: of images that have a file's name, "path" within the dataset, or "name" alone;
            the others have a hash of their bytes.
        classes: names in order, in place of the dataset's own names, in its order.
        class_order: of labels that are text; see `netkin.data.classes.labels_of`.

    Raises UserError that lists the columns when one is not found. Errors of `datasets` itself go
    through.
    """
    import datasets

    table: Any = _load(name, split)
    features = table.features
    image = _column(name, features, image_column, "image", "Image")
    label = _column(name, features, label_column, "label", "ClassLabel")
    columns = ((image, image_column, "image"), (label, label_column, "label"))
    guessed = []
    if any(given is None and column != usual for column, given, usual in columns):
        listed = _columns(features)
        guessed = [f"images are column {image} and labels column {label}, of {listed}"]
    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    sources = [Row(encoded, image, i) for i in range(len(encoded))]
    ids = _ids([row[image]["path"] for row in encoded], sources, ids_are)
    labels, names, notes = _labels(table[label], features[label], f"hfds/{name}", classes)
    if labels is None:
        written = dict(zip(ids, map(str, table[label]), strict=True))
        labels, names, notes = labels_of(written, f"column {label}", classes, class_order)
    return Labelled(ids, labels, names, sources, (*guessed, *notes))


def _load(name: str, split: str) -> Any:
    import datasets

    path = Path(name).expanduser()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved: Any = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                splits = ", ".join(map(str, saved))
                raise UserError(
                    f"hfds/{name} cannot be read: it has no split {split}, but {splits}"
                )
            return saved[split]
        return saved
    return datasets.load_dataset(str(path) if path.is_dir() else name, split=split)


def _column(
    name: str, features: Mapping[str, Any], given: str | None, usual: str, kind: str
) -> str:
    of_kind = [key for key, feature in features.items() if type(feature).__name__ == kind]
    if given is not None and given in features:
        return given
    if given is None and len(of_kind) == 1:
        return of_kind[0]
    if given is None and usual in features:
        return usual
    problem = f"no column {given}" if given is not None else f"no one column of {usual}s"
    raise UserError(
        f"hfds/{name} has {problem}: its columns are {_columns(features)}; name one "
        f"with {usual}_column=NAME"
    )


def _columns(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} ({_kind(feature)})" for key, feature in features.items())


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _ids(paths: list[str | None], sources: list[Row], ids_are: str) -> list[str]:
    times: Counter[str] = Counter()
    ids = []
    for path, source in zip(paths, sources, strict=True):
        if path:
            file = Path(path)
            # A file system's absolute path would differ between machines.
            parts = file.parts[-2:] if file.is_absolute() else file.parts
            ids.append(file.name if ids_are == "name" else "/".join(parts))
            continue
        name = hashlib.sha256(source.read()[1]).hexdigest()[:20]
        times[name] += 1
        # Equal bytes without a name are told apart by how often they came before.
        ids.append(name if times[name] == 1 else f"{name}-{times[name]}")
    return ids


def _labels(
    column: Sequence[Any], feature: Any, where: str, classes: Sequence[str]
) -> tuple[list[int] | None, list[str], list[str]]:
    """(labels, classes, notes) of a column of class labels; no labels for other columns."""
    values = list(column)
    wrong = next((value for value in values if not isinstance(value, int | str)), 0)
    if wrong != 0:
        raise UserError(f"{where} has a label {wrong!r}; expected a class's index or name")
    if type(feature).__name__ != "ClassLabel":
        return None, [], []
    if any(value < 0 for value in values):
        raise UserError(f"{where} has images without labels (-1); take another split")
    names = list(classes) or list(feature.names)
    if len(names) < len(feature.names):
        raise UserError(
            f"{where} has {len(feature.names)} classes, such as {feature.names[0]!r}; "
            f"{len(names)} names of classes were given"
        )
    return values, names, []
