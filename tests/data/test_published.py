"""Datasets in the folders and files that their makers publish, with no setting but the root."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
