"""CIFAR-10 and CIFAR-100 as published: Python's pickles, or records of bytes."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from netkin.data import arrays
from netkin.data.files import folders_of, split_of
from netkin.data.labels import read_lines
from netkin.errors import UserError

SHAPE = (3, 32, 32)


class Layout(NamedTuple):
    """A published folder, its files of images by split, and that of the classes' names.

    Labels have a key in a pickle, or are the last of some bytes before the pixels of a record.
    """

    folder: str
    train: Sequence[str]
    test: str
    names: str
    labels: str | int


_TEN = [f"data_batch_{k}" for k in range(1, 6)]
_BIN = [f"{name}.bin" for name in _TEN]
LAYOUTS = (
    Layout("cifar-10-batches-py", _TEN, "test_batch", "batches.meta", "labels"),
    Layout("cifar-100-python", ["train"], "test", "meta", "fine_labels"),
    Layout("cifar-10-batches-bin", _BIN, "test_batch.bin", "batches.meta.txt", 1),
    Layout("cifar-100-binary", ["train.bin"], "test.bin", "fine_label_names.txt", 2),
)


def find(root: Path, split: str) -> list[tuple[Path, Layout]]:
    """The published folders that a folder is, or holds; none for a split that CIFAR lacks."""
    places = [(root, of) for of in LAYOUTS]
    if not any(map(split_of, folders_of(root))):  # folders of splits are what a root is for
        places += [(root / of.folder, of) for of in LAYOUTS]
    found = [p for p in places if any((p[0] / f).is_file() for f in (*p[1].train, p[1].test))]
    return found if split_of(split) else []


def read(root: Path, split: str, classes: Sequence[str] = ()) -> arrays.Arrays:
    """The images of a split, with ids "<file>/<position>" that pickles and records share.

    Args:
        root: as of `find`.
        split: "train"; or "val" or "test", which are the same images.
        classes: the published names in another order. Those of CIFAR-100 are its 100 fine ones.

    Raises UserError where there are several such folders, for files that are missing or damaged,
    and for other names of classes.
    """
    (folder, layout), *others = find(root, split)
    if others:
        both = " and ".join(str(at / of.test) for at, of in ((folder, layout), *others))
        raise UserError(f"{root} has {both}: name the folder of one as root, or remove the other")
    files = layout.train if split_of(split) == "train" else [layout.test]
    file, of = folder / layout.names, layout.labels
    names: list[str] = (
        read_lines(file)
        if isinstance(of, int)
        else _unpickled(file, f"{of.removesuffix('s')}_names")[0].tolist()
    )
    parts = [_images(folder / name, of) for name in files]
    ids = [
        f"{name.removesuffix('.bin')}/{i:05d}"
        for name, (_, labels) in zip(files, parts, strict=True)
        for i in range(len(labels))
    ]
    pixels, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    images = arrays.read(pixels, labels, ids).with_classes(names)
    if classes and sorted(classes) != sorted(names):
        raise UserError(
            f"classes must be the {len(names)} names in {file}, in any order: {', '.join(names)}"
        )
    chosen = list(classes) or names
    own = [chosen.index(name) for name in names] if classes else range(len(names))
    note = f"the images are those of {folder} in {', '.join(files)}"
    if layout.folder.startswith("cifar-100"):
        note += "; their classes are the fine ones"
    return replace(images, labels=[own[k] for k in images.labels], classes=chosen, notes=(note,))


class _Unpickler(pickle.Unpickler):
    """Makes numbers, text, lists, dicts and arrays; a pickle that calls anything else is refused.

    numpy 1, whose names the published files have, calls its inner module `core`.
    """

    ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype} | {
        (f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0]  # type: ignore
        for core in ("core", "_core")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return self.ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which is no part of an array")


def _unpickled(file: Path, *keys: str) -> list[NDArray[Any]]:
    """Arrays and lists of the dict in a file, where Python 2 wrote text and bytes alike.

    Raises UserError.
    """
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()
        return [np.asarray(content[key]) for key in keys]
    except Exception as error:  # pickles that are damaged raise many
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
        raise UserError(f"{file} cannot be read ({reason}); fetch it again") from None


def _images(file: Path, labels: str | int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """([N, 3, 32, 32], [N]) of a file. Raises UserError."""
    size = int(np.prod(SHAPE))
    if isinstance(labels, str):
        pixels, numbers = _unpickled(file, "data", labels)
        whole = pixels.dtype == np.uint8 and numbers.dtype.kind == "i"
        if not whole or numbers.ndim != 1 or pixels.shape != (len(numbers), size):
            raise UserError(
                f"{file} has data {pixels.dtype} {list(pixels.shape)} and {labels} {numbers.dtype} "
                f"{list(numbers.shape)}; expected uint8 [N, {size}] and whole numbers [N]"
            )
        return pixels.reshape(-1, *SHAPE), numbers
    content = np.frombuffer(file.read_bytes(), np.uint8)
    if len(content) % (labels + size) or not len(content):
        raise UserError(
            f"{file} has {len(content):,} bytes, expected records of {labels + size:,}; it is cut: "
            "fetch it again"
        )
    records = content.reshape(-1, labels + size)
    return records[:, labels:].reshape(-1, *SHAPE), records[:, labels - 1].astype(np.int64)
