"""Datasets in the folders and files that their makers publish, with no setting but the root."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from netkin.data.imagenet import open_imagenet
from netkin.data.images import Images
from netkin.data.sources import open_folder
from netkin.errors import UserError
from tests.data.conftest import picture

TINY = ["n01443537", "n01629819", "n01641577"]


def tiny_imagenet(root: Path) -> dict[str, str]:
    """The classes of its val images, of which one class has none."""
    for k, wnid in enumerate(TINY):
        picture(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", k)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    of = {f"val_{i}.JPEG": TINY[-1 - i % 2] for i in range(4)}
    for i, name in enumerate(of):
        picture(root / "val" / "images" / name, 10 + i)
    rows = [f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in of.items()]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    picture(root / "test" / "images" / "test_0.JPEG", 20)
    (root / "wnids.txt").write_text("\n".join(reversed(TINY)) + "\n")
    return of


@pytest.mark.parametrize("read", [open_folder, open_imagenet])
def test_tiny_imagenet(read: Callable[..., Images], tmp_path: Path) -> None:
    """Labels of val are those of train, also where val lacks a class."""
    of = tiny_imagenet(tmp_path)
    train, val = read(str(tmp_path), "train"), read(str(tmp_path), "val")
    assert list(train.classes) == list(val.classes)
    labels = {Path(i).name: val.classes[k] for i, k in zip(val.ids, val.labels, strict=True)}
    assert labels == of
    (tmp_path / "wnids.txt").unlink()
    if read is open_folder:
        with pytest.raises(UserError, match=r"wnids.txt is not there, .* classes=FILE"):
            read(str(tmp_path), "val")


def idx(file: Path, array: NDArray[np.uint8]) -> None:
    """As Debian installs Fashion-MNIST."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(head + array.tobytes()))


def test_mnist_and_its_likes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = {"train": [9, 0, 3, 2, 1], "t10k": [4, 1, 2, 3, 1]}
    for start, of in labels.items():
        idx(tmp_path / f"{start}-images-idx3-ubyte.gz", pixels)
        idx(tmp_path / f"{start}-labels-idx1-ubyte.gz", np.array(of, np.uint8))
    train, val = open_folder(str(tmp_path), "train"), open_folder(str(tmp_path), "val")
    assert list(train.classes) == list(val.classes) == list("0123456789")
    assert (train.labels, val.labels) == (labels["train"], labels["t10k"])
    assert np.array_equal(np.asarray(val.load(3))[..., 1], pixels[3])
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    idx(file, np.array([1, 2, 3], np.uint8))
    with pytest.raises(UserError, match="has 5 images for 3 labels"):
        open_folder(str(tmp_path), "val")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="fetch it again"):
        open_folder(str(tmp_path), "val")
    for start in labels:
        idx(tmp_path / f"{start}-labels-idx1-ubyte.gz", np.arange(1, 6, dtype=np.uint8))
    with pytest.raises(UserError, match=r"no label in .* is 0, but 1 to 5"):
        open_folder(str(tmp_path), "val")
