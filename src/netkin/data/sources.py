"""Datasets by their `root`: the layouts of files, archives and tables that can be read."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netkin.data.classes import in_order, labels_of, read_classes
from netkin.data.files import (
    Listing,
    are_splits,
    by_folder,
    find_split,
    is_tar,
    list_tar,
    read_webdataset,
    split_of,
    used,
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
    class_order: str = "text",
    image_column: str | None = None,
    label_column: str | None = None,
    white_level: int | None = None,
) -> Images:
    """The images of one split.

    Args:
        root: <root>/<split>/<class>/<image>, or for "val" <root>/<class>/<image>, as folders or
            in a tar file; or flat images in those places with `labels`; or `hfds/NAME` (a Hugging
            Face dataset, or a folder) or `wds/FOLDER` (WebDataset shards with an info file).
        split: "train", "val" or "test"; see `netkin.data.files.SPLITS` for what their folders may
            be called. Without a "val", it is "test". Of hfds and wds their own name of it, or for
            wds a pattern such as "val-{00..09}.tar".
        labels: a file with the labels of flat images; see `netkin.data.labels.by_labels`.
        classes: names of the classes in the order of models' outputs, or a file of them; see
            `netkin.data.classes.read_classes`.
        class_order: where `classes` are not given: "text", or "natural" (2 before 10) as timm's.
        image_column, label_column: of hfds, where they cannot be told.
        white_level: the value of white in 16-bit grey images; 65535, unless given.

    Raises UserError for what cannot be read.
    """
    names = read_classes(classes)
    in_order([], class_order)  # raises for an unknown order
    columns = image_column, label_column
    with reading(root, labels, *columns):
        if root.startswith(PREFIXES):
            images = read(root, split, "path", names, class_order, *columns)
        elif labels is None:
            images = by_folder(list_files(root, split), names, class_order)
        elif (file := Path(labels).expanduser()).name == GROUND_TRUTH:
            raise UserError(f"labels={labels} are of ImageNet, in its own order: dataset=imagenet")
        else:
            images = by_labels(list_files(root, split), file, names, class_order, split)
    return images.of_range(white_level)


@contextmanager
def reading(
    root: str,
    labels: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Iterator[None]:
    """Errors of the file system, and of the libraries that read hfds/ and wds/, as UserErrors.

    Raises UserError, too, for options that would have no effect on the files of a root.
    """
    tables = root.startswith(PREFIXES)
    if labels is not None and tables:
        raise UserError(f"labels={labels} does not go with {root}, which has labels of its own")
    if (image_column or label_column) and not root.startswith("hfds/"):
        raise UserError(f"image_column and label_column are of hfds/..., not of {root}")
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{root} cannot be read ({error}); reading hfds/ and wds/ takes netkin's own extra: "
            "pip install 'netkin[readers]'"
        ) from None
    except Exception as error:  # each reader's library has its own
        if not tables and not isinstance(error, OSError):
            raise
        file = getattr(error, "filename", None)
        reason = f"{error.strerror}: {file}" if isinstance(error, OSError) and file else str(error)
        raise UserError(f"root={root} cannot be read: {' '.join(reason.split())[:300]}") from None


def list_files(root: str, split: str) -> Listing:
    """The files of a split of a folder or an archive. Raises UserError where there are none."""
    path = Path(root).expanduser()
    tops = sorted(f.name for f in path.iterdir() if f.is_dir()) if path.is_dir() else []
    archive = path / ARCHIVES.get(split, "")
    if archive.is_file() and archive != path and not any(map(split_of, tops)):
        return list_tar(archive, "" if split == "train" else split)
    if is_tar(path):
        return list_tar(path, split)
    if not path.is_dir():
        raise UserError(f"root={path} is not a folder; expected {path}/{split}/<class>/...")
    kaggle = (path / name for name in KAGGLE_IMAGES)
    if inside := next((folder for folder in kaggle if (folder / split).is_dir()), None):
        path, tops = inside, sorted(f.name for f in inside.iterdir() if f.is_dir())
    of_val = split_of(split) == "val"
    classes = of_val and not are_splits(tops) and "test" not in map(str.lower, tops)
    name = None if classes else find_split(tops, split)
    if name is None and not (of_val and "train" not in map(split_of, tops)):
        raise UserError(f"{path} has no folder {split}; expected {path}/{split}/<class>/<image>")
    place = path / (name or "")
    return replace(walk(place), notes=[used(place, name or "", tops if name else ())])


def read(
    root: str,
    split: str,
    ids_are: str,
    classes: Sequence[str],
    class_order: str,
    image_column: str | None,
    label_column: str | None,
) -> Labelled:
    """A dataset of hfds/ or wds/; errors of their libraries go through."""
    prefix, _, rest = root.partition("/")
    if prefix == "hfds":
        return read_table(rest, split, image_column, label_column, ids_are, classes, class_order)
    from timm.data.readers import create_reader

    reader: Any = create_reader("wds/", root=str(Path(rest).expanduser()), split=split)
    shards = [Path(reader.root) / name for name in reader.split_info.filenames]
    return read_webdataset(shards, classes)


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
            the others have a hash of their bytes. See `_ids` for names that repeat.
        classes: names in order, in place of the dataset's own names, in its order.
        class_order: of labels that are text; see `netkin.data.classes.labels_of`.

    Raises UserError that lists the columns when one is not found, and that names a row without an
    image or label. Errors of `datasets` itself go through.
    """
    import datasets

    (table, notes), where = _load(name, split), f"hfds/{name}"
    features = table.features
    image = _column(where, features, image_column, "image", "Image")
    label = _column(where, features, label_column, "label", "ClassLabel")
    if (image_column is None and image != "image") or (label_column is None and label != "label"):
        listed = _columns(features)
        notes.append(f"images are column {image} and labels column {label}, of {listed}")
    encoded = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    values, classified = list(table[label]), isinstance(features[label], datasets.ClassLabel)
    paths = []
    for i, (row, value) in enumerate(zip(encoded, values, strict=True)):
        if row[image] is None:
            raise UserError(f"{where}: row {i} of {split} has no image; leave it out")
        if not isinstance(value, int | str) or (classified and value == -1):
            raise UserError(
                f"{where}: row {i} of {split} has label {value!r}; expected a class's index or "
                "name (a split for testing may have none: take another)"
            )
        paths.append(row[image]["path"])
    sources = [Row(encoded, image, i) for i in range(len(encoded))]
    if not classified:
        written = list(map(str, values))
        ids = _ids(paths, sources, written, ids_are)
        labels, names, more = labels_of(ids, written, f"column {label}", classes, class_order)
        return Labelled(ids, labels, names, sources, (*notes, *more))
    own = list(features[label].names)
    names = list(classes) or own
    if len(names) < len(own):
        raise UserError(
            f"{where} has {len(own)} classes, such as {own[0]!r}; {len(names)} names of classes "
            "were given"
        )
    ids = _ids(paths, sources, [own[value] for value in values], ids_are)
    return Labelled(ids, values, names, sources, tuple(notes))


def _load(name: str, split: str) -> tuple[Any, list[str]]:
    """(a split, notes on it)"""
    import datasets

    path = Path(name).expanduser()
    if not any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        return datasets.load_dataset(str(path) if path.is_dir() else name, split=split), []
    saved: Any = datasets.load_from_disk(str(path))
    if not isinstance(saved, datasets.DatasetDict):
        return saved, [f"hfds/{name} has no splits: its images are those of any, also of train"]
    if split not in saved:
        splits = ", ".join(map(str, saved))
        raise UserError(f"hfds/{name} cannot be read: it has no split {split}, but {splits}")
    return saved[split], []


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


def _ids(
    paths: Sequence[str | None], sources: Sequence[Row], classes: Sequence[str], ids_are: str
) -> list[str]:
    """Unique ids of rows. Hugging Face keeps names of files without their folders: where they
    repeat, the class is before them. What has no name, or repeats still, is told apart by its bytes
    and its place among those like it."""
    names = []
    for path in map(Path, [path or "" for path in paths]):
        # A file system's absolute path would differ between machines.
        parts = path.parts[-2:] if path.is_absolute() else path.parts
        names.append(path.name if ids_are == "name" else "/".join(parts))
    if max(Counter(filter(None, names)).values(), default=1) > 1:
        names = [name and f"{of}/{name}" for of, name in zip(classes, names, strict=True)]
    times: Counter[str] = Counter()
    ids = []
    for name, source in zip(names, sources, strict=True):
        own = name or hashlib.sha256(source.read()[1]).hexdigest()[:20]
        times[own] += 1
        ids.append(own if times[own] == 1 else f"{own}-{times[own]}")
    return ids
