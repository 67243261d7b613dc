"""Datasets by their `root`: the layouts of files, archives and tables that can be read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netkin.data import huggingface, imagenet
from netkin.data.classes import in_order, read_classes
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
from netkin.data.imagenet import DEVKIT, GROUND_TRUTH, wnids
from netkin.data.images import Images, Labelled
from netkin.data.labels import by_labels
from netkin.errors import UserError

PREFIXES = ("hfds/", "wds/")


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
    names, columns = read_classes(classes), (image_column, label_column)
    in_order([], class_order)  # raises for an unknown order
    _check_options(root, labels, columns)
    if root.startswith(PREFIXES):
        return _read(root, split, ids_are, names, class_order, *columns)
    with _files_of(root):
        listing = _list(root, split)
        if labels is None:
            return by_folder(listing, names, class_order, ids_are)
        file = Path(labels).expanduser()
        if file.name == GROUND_TRUTH:
            return imagenet.with_label_file(listing, file)
        return by_labels(listing, file, names, class_order, split)


def open_imagenet(
    root: str,
    split: str = "val",
    labels: str | None = None,
    classes: str | Sequence[str] = "all",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Images:
    """ImageNet-1k, or a part of it, with WordNet ids as classes.

    Args:
        root: as of `open_folder`, with class folders named by WordNet id; or flat
            ILSVRC2012_val_*.JPEG files in a folder or a tar file, or Kaggle's archive, extracted.
            Ids are file names, so that every layout of the same files has the same ids.
        split: as of `open_folder`.
        labels: of flat files: the development kit (its archive, folder, or ground truth file),
            Kaggle's LOC_val_solution.csv, or lines of "image wnid" or "image index". Found where
            they lie beside the images.
        classes: "all": models choose among ImageNet's 1,000 classes; "own": among those that the
            images are of; or WordNet ids, or a file of them, to choose among.
        image_column, label_column: of hfds, where they cannot be told.

    Raises UserError for what cannot be read, and classes that are not ImageNet's.
    """
    columns = (image_column, label_column)
    _check_options(root, labels, columns)
    if root.startswith(PREFIXES):
        images = _named_by_id(
            root, lambda names: _read(root, split, "name", names, "text", *columns)
        )
    else:
        with _files_of(root):
            images = _imagenet_files(root, split, labels)
    if isinstance(classes, str) and classes in imagenet.CLASSES:
        return imagenet.choose_classes(images, classes)
    chosen = read_classes(classes)
    present = {images.classes[label] for label in images.labels}
    for problem, names in (
        ("are no WordNet ids of ImageNet-1k", set(chosen) - set(wnids())),
        ("are classes of images, but not among them", present - set(chosen)),
    ):
        if names:
            raise UserError(
                f"classes={classes if isinstance(classes, str) else chosen[:3]}: {len(names)} "
                f"{problem}, such as {min(names)!r}; expected all, own, or WordNet ids such as "
                "n01440764"
            )
    return images.with_classes(chosen)


def open_compatible(root: str, split: str = "val") -> Images:
    """The 1,000 ImageNet-compatible images of papers on transfer attacks; see
    `netkin.data.imagenet.compatible`. They are there to be attacked: there is no training split.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"root={root} is not a folder; expected one with images/")
    if split != "val":
        raise UserError(
            f"{root} holds the ImageNet-compatible images, none of which are for training; train "
            "with dataset=imagenet"
        )
    with _files_of(root):
        return imagenet.compatible(folder)


def _check_options(root: str, labels: str | None, columns: tuple[str | None, str | None]) -> None:
    """Refuse options that would have no effect on the files of a root."""
    if labels is not None and root.startswith(PREFIXES):
        raise UserError(f"labels={labels} does not go with {root}, which has labels of its own")
    if any(columns) and not root.startswith("hfds/"):
        raise UserError(f"image_column and label_column are of hfds/..., not of {root}")


@contextmanager
def _files_of(root: str) -> Iterator[None]:
    """Errors of the file system as UserErrors that name the dataset."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"root={root} cannot be read ({error.strerror}: {error.filename})"
        ) from None


def _imagenet_files(root: str, split: str, labels: str | None) -> Labelled:
    """Image files with labels that are WordNet ids of ImageNet-1k."""
    listing = _list(root, split)
    if labels is None and imagenet.is_flat(listing):
        top, folder = Path(root).expanduser(), Path(listing.root)
        file = imagenet.find_labels([folder, top, *folder.parents[:4]])
        if file is None:
            raise UserError(
                f"{folder} holds ImageNet's validation images without class folders; name their "
                f"labels with labels=PATH/{GROUND_TRUTH} (of the development kit), or put "
                f"{DEVKIT.parts[0]} beside them"
            )
        return imagenet.with_label_file(listing, file)
    if labels is not None:
        return imagenet.with_label_file(listing, Path(labels).expanduser(), split)
    images = by_folder(listing, ids_are="name")
    other = set(images.classes) - set(wnids())
    if other:
        raise UserError(
            f"{root} has {len(other)} class folders that are no WordNet ids of ImageNet-1k, such "
            f"as {min(other)!r}; expected names such as n01440764 (dataset=folder takes any)"
        )
    return images


def _named_by_id(root: str, read: Callable[[Sequence[str]], Labelled]) -> Labelled:
    """A dataset that names ImageNet's classes by id, or in words or numbers in the ids' order."""
    images = read(())
    classes = list(images.classes)
    if set(classes) <= set(wnids()):
        return images
    are_numbers = all(name.isdecimal() for name in classes) and len(classes) <= len(wnids())
    if not are_numbers and len(classes) != len(wnids()):
        raise UserError(
            f"{root} has {len(classes)} classes such as {classes[0]!r}; expected ImageNet-1k's "
            f"{len(wnids())}, or WordNet ids (dataset=folder takes any)"
        )
    return read(wnids())


def _list(root: str, split: str) -> Listing:
    """The files of a split."""
    path = Path(root).expanduser()
    archive = path / imagenet.ARCHIVES.get(split, "")
    extracted = any((path / name).is_dir() for name in ALL_SPLITS)
    if archive.is_file() and archive != path and not extracted:
        return _list_tar(archive, "" if split == "train" else split)
    if is_tar(root):
        return _list_tar(path, split)
    return walk(_split_folder(path, split))


def _list_tar(path: Path, split: str) -> Listing:
    if not path.exists():
        raise UserError(f"root={path} is not there; expected a tar file")
    return list_tar(path, split)


def _split_folder(root: Path, split: str) -> Path:
    if split not in SPLITS:
        raise UserError(f"split must be {' or '.join(SPLITS)} of a folder, got {split!r}")
    if not root.is_dir():
        raise UserError(f"root={root} is not a folder; expected {root}/{split}/<class>/...")
    root = imagenet.split_folder(root, split)
    folder = next((root / name for name in SPLITS[split] if (root / name).is_dir()), None)
    if folder is not None:
        return folder
    if split == "val" and not (root / "train").is_dir():
        return root
    raise UserError(
        f"{root} has no folder {' or '.join(SPLITS[split])}; "
        f"expected {root}/{split}/<class>/<image>"
    )


def _read(
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
            return huggingface.read_table(rest, split, *columns, ids_are, classes, class_order)
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
