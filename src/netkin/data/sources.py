"""Datasets by their `root`: the layouts of files, archives and tables that can be read."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netkin.data.classes import in_order, labels_of, read_classes
from netkin.data.files import (
    ALL_SPLITS,
    SPLITS,
    Listing,
    by_folder,
    is_tar,
    list_tar,
    read_webdataset,
    walk,
)
from netkin.data.images import Images, Labelled
from netkin.data.labels import by_labels
from netkin.errors import UserError

PREFIXES = ("hfds/", "wds/")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE_IMAGES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where Kaggle's archive of ImageNet has the folders train and val."""
ARCHIVES = {"val": "ILSVRC2012_img_val.tar", "train": "ILSVRC2012_img_train.tar"}
"""ImageNet's official archives: flat images, and an archive a class."""


def open_folder(
    root: str,
    split: str = "val",
    labels: str | None = None,
    classes: str | Sequence[str] = (),
    ids_are: str = "path",
    class_order: str = "text",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Images:
    """The images of one split.

    Args:
        root: <root>/<split>/<class>/<image>, or for "val" <root>/<class>/<image>, as folders or
            in a tar file; or flat images in those places with `labels`; or `hfds/NAME` (a Hugging
            Face dataset, or a folder) or `wds/FOLDER` (WebDataset shards with an info file).
        split: "train", or "val" (also found as validation or test); of hfds and wds their own
            name of it, or for wds a pattern such as "val-{00..09}.tar".
        labels: a file with the labels of flat images; see `netkin.data.labels.by_labels`.
        classes: names of the classes in the order of models' outputs, or a file of them; see
            `netkin.data.classes.read_classes`.
        ids_are: "path" below the split's folder, or "name": unlike paths, names are the same in
            class folders and in a flat one.
        class_order: where `classes` are not given: "text", or "natural" (2 before 10) as timm's.
        image_column, label_column: of hfds, where they cannot be told.

    Raises UserError for what cannot be read.
    """
    names = read_classes(classes)
    in_order([], class_order)  # raises for an unknown order
    check_options(root, labels, image_column, label_column)
    if root.startswith(PREFIXES):
        return read(root, split, ids_are, names, class_order, image_column, label_column)
    with files_of(root):
        listing = list_files(root, split)
        if labels is None:
            return by_folder(listing, names, class_order, ids_are)
        file = Path(labels).expanduser()
        if file.name == GROUND_TRUTH:
            raise UserError(f"labels={labels} are of ImageNet, in its own order: dataset=imagenet")
        return by_labels(listing, file, names, class_order, split)


def check_options(
    root: str, labels: str | None, image_column: str | None, label_column: str | None
) -> None:
    """Raises UserError for options that would have no effect on the files of a root."""
    if labels is not None and root.startswith(PREFIXES):
        raise UserError(f"labels={labels} does not go with {root}, which has labels of its own")
    if (image_column or label_column) and not root.startswith("hfds/"):
        raise UserError(f"image_column and label_column are of hfds/..., not of {root}")


@contextmanager
def files_of(root: str) -> Iterator[None]:
    """Errors of the file system as UserErrors that name the dataset."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"root={root} cannot be read ({error.strerror}: {error.filename})"
        ) from None


def list_files(root: str, split: str) -> Listing:
    """The files of a split of a folder or an archive. Raises UserError where there are none."""
    path = Path(root).expanduser()
    archive = path / ARCHIVES.get(split, "")
    extracted = any((path / name).is_dir() for name in ALL_SPLITS)
    if archive.is_file() and archive != path and not extracted:
        return list_tar(archive, "" if split == "train" else split)
    if is_tar(path):
        return list_tar(path, split)
    if split not in SPLITS:
        raise UserError(f"split must be {' or '.join(SPLITS)} of a folder, got {split!r}")
    if not path.is_dir():
        raise UserError(f"root={path} is not a folder; expected {path}/{split}/<class>/...")
    kaggle = (path / name for name in KAGGLE_IMAGES)
    path = next((folder for folder in kaggle if (folder / split).is_dir()), path)
    folder = next((path / name for name in SPLITS[split] if (path / name).is_dir()), None)
    if folder is None and (split != "val" or (path / "train").is_dir()):
        raise UserError(
            f"{path} has no folder {' or '.join(SPLITS[split])}; "
            f"expected {path}/{split}/<class>/<image>"
        )
    return walk(folder or path)


def read(
    root: str,
    split: str,
    ids_are: str,
    classes: Sequence[str],
    class_order: str,
    image_column: str | None,
    label_column: str | None,
) -> Labelled:
    """A dataset of hfds/ or wds/. Raises UserError when its package is missing."""
    prefix, _, rest = root.partition("/")
    try:
        if prefix == "hfds":
            columns = (image_column, label_column)
            return read_table(rest, split, *columns, ids_are, classes, class_order)
        from timm.data.readers import create_reader

        reader: Any = create_reader("wds/", root=str(Path(rest).expanduser()), split=split)
        shards = [Path(reader.root) / name for name in reader.split_info.filenames]
        return read_webdataset(shards, classes)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{root} cannot be read ({error}); reading {prefix}/ takes netkin's own extra: "
            "pip install 'netkin[readers]'"
        ) from None
    except Exception as error:  # each reader's library has its own
        raise UserError(
            f"{root} (split {split}) cannot be read: {' '.join(str(error).split())[:300]}"
        ) from None


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a table, whose column holds the bytes or the path of an encoded image."""

    table: Any
    column: str
    index: int
    within: str = ""

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        """See `netkin.data.images.Source`."""
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
    features, where = table.features, f"hfds/{name}"
    image = _column(where, features, image_column, "image", "Image")
    label = _column(where, features, label_column, "label", "ClassLabel")
    notes = []
    if (image_column is None and image != "image") or (label_column is None and label != "label"):
        listed = _columns(features)
        notes = [f"images are column {image} and labels column {label}, of {listed}"]
    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    sources = [Row(encoded, image, i) for i in range(len(encoded))]
    ids = _ids([row[image]["path"] for row in encoded], sources, ids_are)
    values = list(table[label])
    if wrong := [value for value in values if not isinstance(value, int | str)]:
        raise UserError(f"{where} has a label {wrong[0]!r}; expected a class's index or name")
    if not isinstance(features[label], datasets.ClassLabel):
        written = dict(zip(ids, map(str, values), strict=True))
        labels, names, more = labels_of(written, f"column {label}", classes, class_order)
        return Labelled(ids, labels, names, sources, (*notes, *more))
    if any(value < 0 for value in values):
        raise UserError(f"{where} has images without labels (-1); take another split")
    theirs = list(features[label].names)
    names = list(classes) or theirs
    if len(names) < len(theirs):
        raise UserError(
            f"{where} has {len(theirs)} classes, such as {theirs[0]!r}; {len(names)} names of "
            "classes were given"
        )
    return Labelled(ids, values, names, sources, tuple(notes))


def _load(name: str, split: str) -> Any:
    import datasets

    path = Path(name).expanduser()
    if not any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return datasets.load_dataset(str(path) if path.is_dir() else name, split=split)
    saved: Any = datasets.load_from_disk(str(path))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        splits = ", ".join(map(str, saved))
        raise UserError(f"hfds/{name} cannot be read: it has no split {split}, but {splits}")
    return saved[split]


def _column(
    where: str, features: Mapping[str, Any], given: str | None, usual: str, kind: str
) -> str:
    of_kind = [key for key, feature in features.items() if type(feature).__name__ == kind]
    if given is not None and given in features:
        return given
    if given is None and (len(of_kind) == 1 or usual in features):
        return of_kind[0] if len(of_kind) == 1 else usual
    problem = f"no column {given}" if given is not None else f"no one column of {usual}s"
    raise UserError(
        f"{where} has {problem}: its columns are {_columns(features)}; name one with "
        f"{usual}_column=NAME"
    )


def _columns(features: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} ({getattr(feature, 'dtype', '') if kind == 'Value' else kind})"
        for key, feature in features.items()
        if (kind := type(feature).__name__)
    )


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
