"""ImageNet's validation set in the files that people have it in, and its labels."""

import tarfile
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from scipy.io import loadmat
from timm.data import ImageNetInfo

from netkin.data.files import Listing, walk
from netkin.data.images import Labelled
from netkin.data.labels import by_labels, read_lines, with_labels_in_order
from netkin.errors import UserError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data" / GROUND_TRUTH
KAGGLE_LABELS = "LOC_val_solution.csv"
KAGGLE_IMAGES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where Kaggle's archive has the folders train and val."""
ARCHIVES = {"val": "ILSVRC2012_img_val.tar", "train": "ILSVRC2012_img_train.tar"}
"""The official archives: flat images, and an archive a class."""
CLASSES = ("all", "own")


@cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's classes, in the order of models' outputs."""
    return tuple(ImageNetInfo().label_names())


def is_flat(listing: Listing) -> bool:
    """Whether these are ImageNet's validation images, without class folders."""
    names = [entry.path for entry in listing.images]
    return any(name.startswith("ILSVRC2012_val_") and "/" not in name for name in names)


def find_labels(places: Sequence[Path]) -> Path | None:
    """The first label file of the validation images that one of some folders has beside them."""
    kit = DEVKIT.parts[0]
    names = (str(DEVKIT), GROUND_TRUTH, f"{kit}.tar.gz", f"{kit}.tar", KAGGLE_LABELS)
    files = (place / name for place in places for name in names)
    return next((file for file in files if file.is_file()), None)


def with_label_file(listing: Listing, file: Path, split: str = "val") -> Labelled:
    """Images with the labels of the development kit (its archive, folder, or ground truth), or of
    any other label file (see `netkin.data.labels.by_labels`), with all 1,000 classes."""
    if file.is_dir():
        inside = (file / DEVKIT, file / "data" / GROUND_TRUTH, file / GROUND_TRUTH)
        file = next((path for path in inside if path.is_file()), file)
    if ".tar" in file.suffixes:
        lines, synsets = _from_archive(file)
        return _with_ground_truth(listing, file, lines, synsets)
    lines = read_lines(file)
    if not all(line.isdecimal() for line in lines):
        return by_labels(listing, file, wnids(), split=split)
    meta = file.with_name("meta.mat")
    try:
        with meta.open("rb") as stream:
            synsets = _synsets(stream, meta)
    except OSError as error:
        raise _meta_error(meta, error.strerror) from None
    return _with_ground_truth(listing, file, lines, synsets)


def _from_archive(archive: Path) -> tuple[list[str], dict[int, str]]:
    """(labels, WordNet ids by ILSVRC2012's numbers) of a development kit as it is downloaded."""
    try:
        with tarfile.open(archive) as tar:
            truth, meta = (
                tar.extractfile(str(path)) for path in (DEVKIT, DEVKIT.with_name("meta.mat"))
            )
            assert truth is not None and meta is not None
            content = meta.read()
            return truth.read().decode().split(), _synsets(BytesIO(content), archive)
    except (tarfile.TarError, OSError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{archive} cannot be read as ImageNet's development kit ({error})"
        ) from None


def _with_ground_truth(
    listing: Listing, file: Path, lines: Sequence[str], synsets: dict[int, str]
) -> Labelled:
    """ImageNet's own numbering of the classes, 1 to 1000, as WordNet ids."""
    for line in lines:
        if int(line) not in synsets:
            raise UserError(f"{file}: label {line} is out of range; expected 1 to {len(synsets)}")
    return with_labels_in_order(listing, file, [synsets[int(line)] for line in lines], wnids())


def _synsets(stream: BinaryIO | BytesIO, meta: Path) -> dict[int, str]:
    """ILSVRC2012_ID to WNID, of the synsets without children."""
    try:
        synsets: Any = loadmat(stream, squeeze_me=True)["synsets"]
        rows = [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), int(s["num_children"])) for s in synsets]
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise _meta_error(meta, error) from None
    return {number: wnid for number, wnid, children in rows if children == 0}


def _meta_error(meta: Path, problem: object) -> UserError:
    return UserError(
        f"{meta} cannot be read ({problem}); the ground truth numbers classes in ImageNet's own "
        "order, which the development kit's meta.mat beside it explains"
    )


def split_folder(root: Path, split: str) -> Path:
    """The folder in which Kaggle's archive has its splits, where `root` is one, else `root`."""
    inner = (root / place for place in KAGGLE_IMAGES)
    return next((place for place in inner if (place / split).is_dir()), root)


def choose_classes(images: Labelled, classes: str) -> Labelled:
    """The images among "all" 1,000 classes, or among their "own" only, with a note on which.

    All is the default: it is what the paper's models choose among, and its scores compare with
    others'. Twenty photographs of 19 classes and three published EfficientNets show how much it
    matters: the three pairs' scores are 3.38, 2.87 and 3.10 among all classes and 2.91, 0.97 and
    2.07 among 19, where a model is right, and stays right, as long as no other of the 19 is
    likelier.
    """
    present = {images.classes[label] for label in images.labels}
    number, total = len(present), len(wnids())
    if classes == "all":
        images = images.with_classes(wnids())
        among = f"all {total:,} (classes=all)"
    else:
        images = images.with_classes([name for name in wnids() if name in present])
        among = f"these {number} only (classes=own): scores are not those among all {total:,}"
    if number == total:
        return images
    return images.with_notes(
        f"the images are of {number} of ImageNet's {total:,} classes; models choose among {among}"
    )


def compatible(root: Path) -> Labelled:
    """The 1,000 ImageNet-compatible images: files in images/ (or in `root`), with labels.csv
    (filename, label from 0) or the NIPS 2017 competition's images.csv (ImageId, TrueLabel from 1).

    Raises UserError when neither table is there.
    """
    tables = [root / name for name in ("labels.csv", "images.csv")]
    table = next((file for file in tables if file.is_file()), None)
    if table is None:
        raise UserError(
            f"{root} holds neither labels.csv (filename,label) nor images.csv (ImageId, TrueLabel);"
            f" expected one of them, and the images in {root / 'images'}"
        )
    folder = root / "images"
    images = by_labels(walk(folder if folder.is_dir() else root), table, wnids())
    return choose_classes(images, "all")
