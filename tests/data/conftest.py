"""Pictures, and six of them as an ImageNet in every layout."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

from netkin.data.images import Images

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
WNIDS = ImageNetInfo().label_names()


def picture(path: Path, shift: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS + np.uint8(shift)).save(path)


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def by_id(images: Images) -> dict[str, tuple[str, bytes]]:
    """Class and pixels of each image, by its file's name."""
    return {
        Path(image).name: (images.classes[label], images.load(i).tobytes())
        for i, (image, label) in enumerate(zip(images.ids, images.labels, strict=True))
    }


def saved(
    root: Path,
    labels: dict[str, list],
    paths: Sequence[str | None],
    kinds: dict[str, Any],
    image: str = "image",
    splits: bool = True,
) -> str:
    """A dataset as Hugging Face's library writes it, of one picture under some names; None is none.

    The path that reads it; columns of labels, and their kinds, are by name.
    """
    datasets = pytest.importorskip("datasets")
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    cells = [None if path is None else {"bytes": file.getvalue(), "path": path} for path in paths]
    features = datasets.Features({image: datasets.Image(), **kinds})
    table = datasets.Dataset.from_dict({image: cells, **labels}, features=features)
    (datasets.DatasetDict(validation=table) if splits else table).save_to_disk(str(root / "saved"))
    return f"hfds/{root / 'saved'}"


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Six images of three classes, in every layout of ImageNet's validation set."""
    classes = [WNIDS[k] for k in (700, 3, 42)]
    order = [2, 1, 3, 3, 1, 2]  # ImageNet's own numbers of the classes: 1 is WNIDS[700], ...
    for number, of in enumerate(order, start=1):
        picture(tmp_path / "flat" / "val" / val_name(number), number)
        for layout in ("folders/val", "bare"):
            picture(tmp_path / layout / classes[of - 1] / val_name(number), number)
    kit = tmp_path / "flat" / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    truth = "".join(f"{of}\n" for of in order)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = [(k, wnid, "a thing", 0) for k, wnid in enumerate(classes, start=1)]
    rows = np.array([*synsets, (4, "n00001740", "entity", 3)], dtype=fields)
    savemat(kit / "meta.mat", {"synsets": rows})
    lines = [f"{val_name(n)} {classes[of - 1]}" for n, of in enumerate(order, start=1)]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "bare", "val")
    return tmp_path
