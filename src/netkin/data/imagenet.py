"""ImageNet-1k in the layouts that people have, and the 1,000 ImageNet-compatible images."""

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from netkin.data.classes import read_classes
from netkin.data.files import Listing, by_folder, walk
from netkin.data.images import Images, Labelled
from netkin.data.labels import by_annotations, by_labels, is_annotated, read_lines
from netkin.data.sources import GROUND_TRUTH, PREFIXES, Columns, list_files, of_reader, read
from netkin.errors import UserError, reading

DEVKIT = Path("ILSVRC2012_devkit_t12") / "data" / GROUND_TRUTH
META = "meta.mat"
KAGGLE_LABELS = "LOC_val_solution.csv"


@cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's classes, in the order of models' outputs."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


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
        root: as of `netkin.data.sources.open_folder`, with class folders named by WordNet id, or
            all of 0 to 999; or flat ILSVRC2012_val_*.JPEG files in a folder or a tar file, or
            Kaggle's archive, extracted. Ids are file names where these differ, so that every
            layout of the same files has the same ids.
        split: as of `open_folder`.
        labels: of flat files: the development kit (its archive, folder, or ground truth file),
            Kaggle's LOC_val_solution.csv, or lines of "image wnid" or "image index". Found where
            they lie beside the images.
        classes: "all": models choose among ImageNet's 1,000 classes; "own": among those that the
            images are of; or WordNet ids, or a file of them, to choose among.
        image_column, label_column: of hfds, where they cannot be told.

    Raises UserError for what cannot be read, and classes that are not ImageNet's.
    """
    columns = image_column, label_column
    with of_reader(root, labels, *columns):
        if root.startswith(PREFIXES):
            images = _table(root, split, columns)
        else:
            images = _files(root, split, labels)
    names = [image.rpartition("/")[2] for image in images.ids]
    if len(set(names)) == len(names) and not root.startswith("wds/"):
        images = replace(images, ids=names)
    if isinstance(classes, str) and classes in ("all", "own"):
        return _among(images, classes)
    chosen = read_classes(classes)
    unknown = set(chosen) - set(wnids())
    if wrong := unknown or {images.classes[label] for label in images.labels} - set(chosen):
        problem = "no WordNet ids" if unknown else "classes of images, but not among them"
        raise UserError(
            f"classes={classes if isinstance(classes, str) else chosen[:3]}: {len(wrong)} are "
            f"{problem}, such as {min(wrong)!r}; expected all, own, or WordNet ids of ImageNet-1k"
        )
    return images.with_classes(chosen)


def open_compatible(root: str, split: str = "val") -> Images:
    """The 1,000 ImageNet-compatible images of papers on transfer attacks.

    Files in images/ (or in `root`), with labels.csv (filename, label from 0) or the NIPS 2017
    competition's images.csv (ImageId, TrueLabel from 1). They are there to be attacked: there is no
    training split. Raises UserError when neither table is there.
    """
    folder = Path(root).expanduser()
    if split != "val":
        raise UserError(
            f"{root} holds the ImageNet-compatible images, none of which are for training; train "
            "with dataset=imagenet"
        )
    with of_reader(root):
        tables = [folder / name for name in ("labels.csv", "images.csv")]
        table = next((file for file in tables if file.is_file()), None)
        if table is None:
            raise UserError(
                f"{folder} holds neither labels.csv (filename,label) nor images.csv (ImageId, "
                f"TrueLabel); expected one of them, and the images in {folder / 'images'}"
            )
        inside = folder / "images"
        return _among(by_labels(walk(inside if inside.is_dir() else folder), table, wnids()), "all")


def _among(images: Labelled, classes: str) -> Labelled:
    """The images among "all" 1,000 classes, or among their "own" only, with a note on which.

    All is the default: it is what the paper's models choose among, and its scores compare with
    others'. It matters: three EfficientNets on photographs of 19 classes score 3.38, 2.87 and 3.10
    among all classes, and 2.91, 0.97 and 2.07 among the 19.
    """
    present = {images.classes[label] for label in images.labels}
    number, total = len(present), len(wnids())
    images = images.with_classes([k for k in wnids() if classes == "all" or k in present])
    if number == total:
        return images
    among = f"all {total:,} (classes=all)"
    if classes == "own":
        among = f"these {number} only (classes=own): scores are not those among all {total:,}"
    note = f"the images are of {number} of ImageNet's {total:,} classes; models choose among"
    return replace(images, notes=(*images.notes, f"{note} {among}"))


def _table(root: str, split: str, columns: Columns) -> Labelled:
    """A dataset that names ImageNet's classes by id or number, or in words in the ids' order."""
    images = read(root, split, columns)
    classes, total = list(images.classes), len(wnids())
    if set(classes) <= set(wnids()):
        return images
    if set(classes) == set(map(str, range(total))):
        return replace(images, classes=[wnids()[int(name)] for name in classes])
    first = int(classes[0]) if classes[0].isdecimal() else 0
    counted = classes == [str(first + k) for k in range(len(classes))] and len(classes) <= total
    if not counted and (len(classes) != total or classes == sorted(classes)):
        raise UserError(
            f"{root} has {len(classes)} classes such as {classes[0]!r}; expected ImageNet-1k's "
            f"{total} in its order, or WordNet ids (dataset=folder takes any)"
        )
    return read(root, split, columns, wnids())


def _files(root: str, split: str, labels: str | None) -> Labelled:
    """Image files with labels that are WordNet ids of ImageNet-1k."""
    listing = list_files(root, split)
    if labels is not None:
        return _with_label_file(listing, Path(labels).expanduser(), split)
    if any(path.startswith("ILSVRC2012_val_") and "/" not in path for path in listing.images):
        folder, kit = Path(listing.root), DEVKIT.parts[0]
        beside = [folder, Path(root).expanduser(), *folder.parents[:4]]
        kinds = (str(DEVKIT), GROUND_TRUTH, f"{kit}.tar.gz", f"{kit}.tar", KAGGLE_LABELS)
        file = next((f for at in beside for kind in kinds if (f := at / kind).is_file()), None)
        if file is None:
            raise UserError(
                f"{folder} holds ImageNet's validation images without class folders; name their "
                f"labels with labels=PATH/{GROUND_TRUTH} (of the development kit), or put {kit} "
                "beside them"
            )
        return _with_label_file(listing, file, split)
    if is_annotated(listing):
        return by_annotations(listing, wnids())
    numbers = sorted(filter(str.isdecimal, listing.folders), key=int)
    if list(map(int, numbers)) == list(range(len(wnids()))):  # as text, 10 is before 2
        images = replace(by_folder(listing, numbers), classes=list(wnids()))
    else:
        images = by_folder(listing)
    if other := set(images.classes) - set(wnids()):
        raise UserError(
            f"{root} has {len(other)} class folders that are no WordNet ids of ImageNet-1k, such "
            f"as {min(other)!r}; expected names such as n01440764, or all of 0 to 999. Name the "
            "class of each image with labels=FILE, of lines 'folder/image wnid' (dataset=folder "
            "takes any classes)"
        )
    return images


def _with_label_file(listing: Listing, file: Path, split: str) -> Labelled:
    """Images with the labels of the development kit (its archive, folder, or ground truth), or of
    any other label file (see `netkin.data.labels.by_labels`), with all 1,000 classes."""
    if file.is_dir():
        file = next(file.rglob(GROUND_TRUTH), file)
    meta = file if ".tar" in file.suffixes else file.with_name(META)
    expected = (
        "the ground truth numbers classes in ImageNet's own order, which the development kit's "
        "meta.mat explains"
    )
    with reading(meta, expected, Exception):  # scipy and tarfile have many
        if meta == file:
            with tarfile.open(file) as tar:
                kit = [
                    tar.extractfile(str(DEVKIT.with_name(name))) for name in (GROUND_TRUTH, META)
                ]
                truth, content = (stream.read() for stream in kit if stream)
            lines = truth.decode().split()
        else:
            lines = read_lines(file)
            if not all(line.isdecimal() for line in lines):
                return by_labels(listing, file, wnids(), split=split)
            content = meta.read_bytes()
        synsets: Any = loadmat(BytesIO(content), squeeze_me=True)["synsets"]
        rows = [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), int(s["num_children"])) for s in synsets]
    by_number = {str(number): wnid for number, wnid, children in rows if children == 0}
    if wrong := [line for line in lines if line not in by_number]:
        raise UserError(f"{file}: label {wrong[0]} is out of range; expected 1 to {len(by_number)}")
    return by_labels(listing, file, wnids(), lines=[by_number[line] for line in lines])
