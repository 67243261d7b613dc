"""MNIST's files and those of its likes: images and labels in the IDX format, as published."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from netkin.data.arrays import Arrays
from netkin.data.classes import numbered
from netkin.data.files import split_of
from netkin.errors import UserError, reading

NAMES = {"train": "train", "val": "t10k", "test": "t10k"}
"""The start of the files' names, by split."""


def find(folder: Path, split: str) -> dict[str, Path]:
    """The files of a split, "images" and "labels", compressed or not; empty where one lacks."""
    start, found = NAMES.get(split_of(split) or "", ""), dict[str, Path]()
    for kind, ndim in (("images", 3), ("labels", 1)):
        for joint, end in ((j, e) for j in "-." for e in ("", ".gz")):
            file = folder / f"{start}-{kind}{joint}idx{ndim}-ubyte{end}"
            if start and kind not in found and file.is_file():
                found[kind] = file
    return found if len(found) == 2 else {}


def read(folder: Path, split: str, classes: Sequence[str] = ()) -> Arrays:
    """The gray images of a split. Classes are numbers from 0, of all splits together.

    Raises UserError for files that are damaged, and where classes are not counted from 0.
    """
    files = find(folder, split)
    pixels, labels = (_array(files[kind], ndim) for kind, ndim in (("images", 3), ("labels", 1)))
    if len(pixels) != len(labels):
        raise UserError(f"{files['images']} has {len(pixels)} images for {len(labels)} labels")
    all_of = [_array(of["labels"], 1) for s in ("train", "test") if (of := find(folder, s))]
    low, high = min(int(a.min()) for a in all_of), max(int(a.max()) for a in all_of)
    if low and not classes:
        raise UserError(
            f"no label in {folder} is 0, but {low} to {high}: name all classes from 0 on, in the "
            "order of models' outputs, with classes=FILE"
        )
    start = NAMES[split_of(split) or ""]
    ids = [f"{start}/{i:0{len(str(len(labels)))}d}" for i in range(len(labels))]
    note = f"the images are those of {files['images']}"
    images = Arrays(pixels[:, None], labels.tolist(), ids, notes=(note,))
    return images.with_classes(list(classes) or numbered(high, str(folder)))


def _array(file: Path, ndim: int) -> NDArray[np.uint8]:
    """The bytes of a file in the shape that it names."""
    with reading(file, "fetch it again", OSError, EOFError, zlib.error):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    start = 4 * (1 + ndim)
    shape = tuple(map(int, np.frombuffer(content[4:start], ">u4")))
    size = int(np.prod(shape)) if len(shape) == ndim else -1
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) != start + size or not size:
        raise UserError(
            f"{file} is no IDX file of {ndim} dimensions of bytes, or is cut; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
