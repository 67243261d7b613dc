"""Datasets by their `root`: the layouts of files, archives and tables that can be read."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from netkin.data import cifar, idx
from netkin.data.classes import in_order, labels_of, read_classes
from netkin.data.files import (
    Listing,
    are_splits,
    by_folder,
    find_split,
    folders_of,
    list_tar,
    read_webdataset,
    split_of,
    used,
    walk,
)
from netkin.data.images import Images, Labelled, Row
from netkin.data.labels import by_annotations, by_labels, is_annotated
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
            in a tar file; or flat images in those places with `labels`; or
            CIFAR's, MNIST's or Tiny ImageNet's files as published; or `hfds/NAME` (a Hugging
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
    columns, folder = (image_column, label_column), Path(root).expanduser()
    with of_reader(root, labels, *columns):
        if root.startswith(PREFIXES):
            images = read(root, split, columns, names, class_order)
        elif form := next((f for f in (idx, cifar) if not labels and f.find(folder, split)), None):
            if white_level is not None:
                raise UserError(f"white_level is of 16-bit images; those of {root} have 8 bits")
            return form.read(folder, split, names)
        elif labels is None:
            listing = list_files(root, split)
            read_labels = by_annotations if is_annotated(listing) else by_folder
            images = read_labels(listing, names, class_order)
        elif (file := Path(labels).expanduser()).name == GROUND_TRUTH:
            raise UserError(f"labels={labels} are of ImageNet, in its own order: dataset=imagenet")
        else:
            images = by_labels(list_files(root, split), file, names, class_order, split)
    return images.of_range(white_level)


@contextmanager
def of_reader(
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
        reason = str(error)
        if isinstance(error, OSError) and error.filename:
            reason = f"{error.strerror}: {error.filename}"
        raise UserError(f"root={root} cannot be read: {' '.join(reason.split())[:300]}") from None


def list_files(root: str, split: str) -> Listing:
    """The files of a split of a folder or an archive. Raises UserError where there are none."""
    path = Path(root).expanduser()
    tops, archive = folders_of(path), path / ARCHIVES.get(split, "")
    if archive.is_file() and archive != path and not any(map(split_of, tops)):
        return list_tar(archive, "" if split == "train" else split)
    # A folder with other folders in it has its images there, whatever archives lie beside them.
    if path.suffix == ".tar" or (not tops and any(path.glob("*.tar"))):
        return list_tar(path, split)
    if not path.is_dir():
        unpack = "unpack it, or " if path.is_file() else ""
        raise UserError(f"root={path} is not a folder; {unpack}expected {path}/{split}/<class>/...")
    kaggle = (path / name for name in KAGGLE_IMAGES)
    if inside := next((folder for folder in kaggle if (folder / split).is_dir()), None):
        path, tops = inside, folders_of(inside)
    elif len(tops) == 1 and not split_of(tops[0]) and (below := folders_of(path / tops[0])):
        path, tops = path / tops[0], below  # an archive's own folder, with splits or classes in it
    name, of_val = find_split(tops, split), split_of(split) == "val"
    if of_val and not are_splits(tops) and "test" not in map(str.lower, tops):
        name = None
    if name is None and not (of_val and "train" not in map(split_of, tops)):
        raise UserError(f"{path} has no folder {split}; expected {path}/{split}/<class>/<image>")
    place = path / (name or "")
    return replace(walk(place), notes=[used(place, name or "", tops if name else ())])


KINDS = {"image": "Image", "label": "ClassLabel"}
"""Of columns of hfds/, by their usual names: the types that `datasets` has for them."""
Columns = tuple[str | None, str | None]
"""Of images and labels, where they are given."""


def read(
    root: str, split: str, columns: Columns, classes: Sequence[str] = (), class_order: str = "text"
) -> Labelled:
    """A dataset of hfds/ or wds/; errors of their libraries go through."""
    prefix, _, rest = root.partition("/")
    if prefix == "hfds":
        return read_table(rest, split, columns, classes, class_order)
    from timm.data.readers import create_reader

    reader: Any = create_reader("wds/", root=str(Path(rest).expanduser()), split=split)
    shards = [Path(reader.root) / name for name in reader.split_info.filenames]
    return read_webdataset(shards, classes)


def read_table(
    name: str, split: str, columns: Columns, classes: Sequence[str] = (), class_order: str = "text"
) -> Labelled:
    """A split of a dataset that the library `datasets` loads, or that its `save_to_disk` wrote.

    Args:
        name: of a dataset or a folder.
        split: its own name of the split.
        columns: by default the only one of images and the only one of class labels, else those
            that are called image and label.
        classes: names in order, in place of the dataset's own names, in its order.
        class_order: of labels that are text; see `netkin.data.classes.labels_of`.

    Raises UserError that lists the columns when one is not found, and that names a row without an
    image or label. Errors of `datasets` itself go through.
    """
    import datasets

    (table, notes), where = _load(name, split), f"hfds/{name}"
    features = table.features
    listed = ", ".join(
        f"{key} ({getattr(feature, 'dtype', '') if kind == 'Value' else kind})"
        for key, feature in features.items()
        if (kind := type(feature).__name__)
    )
    found = []
    for (usual, kind), given in zip(KINDS.items(), columns, strict=True):
        of_kind = [key for key, feature in features.items() if type(feature).__name__ == kind]
        column = given or (of_kind[0] if len(of_kind) == 1 else usual)
        if column not in features:
            problem = f"no column {given}" if given else f"no one column of {usual}s"
            raise UserError(
                f"{where} has {problem}: its columns are {listed}; name one with "
                f"{usual}_column=NAME"
            )
        found.append(column)
    image, label = found
    if any(a not in (b, c) for a, b, c in zip(found, KINDS, columns, strict=True)):
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
    own = list(features[label].names) if classified else []
    written = [own[value] if classified else str(value) for value in values]
    ids = _ids(paths, sources, written)
    labels, names, more = labels_of(ids, written, f"column {label}", own or classes, class_order)
    if classified and classes:
        names = list(classes)
        if len(names) < len(own):
            raise UserError(
                f"{where} has {len(own)} classes, such as {own[0]!r}; {len(names)} names of "
                "classes were given"
            )
    return Labelled(ids, labels, names, sources, (*notes, *more))


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


def _ids(paths: Sequence[str | None], sources: Sequence[Row], classes: Sequence[str]) -> list[str]:
    """Unique ids of rows. Hugging Face keeps names of files without their folders: where they
    repeat, the class is before them. What has no name, or repeats still, is told apart by its bytes
    and its place among those like it."""
    parts = [Path(path or "").parts for path in paths]
    # A file system's absolute path would differ between machines.
    names = ["/".join(of[-2:] if of[:1] == ("/",) else of) for of in parts]
    if max(Counter(filter(None, names)).values(), default=1) > 1:
        names = [name and f"{of}/{name}" for of, name in zip(classes, names, strict=True)]
    times: Counter[str] = Counter()
    ids = []
    for name, source in zip(names, sources, strict=True):
        own = name or hashlib.sha256(source.read()[1]).hexdigest()[:20]
        times[own] += 1
        ids.append(own if times[own] == 1 else f"{own}-{times[own]}")
    return ids
