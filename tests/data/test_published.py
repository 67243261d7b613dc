"""Datasets in the folders and files of docs/data.md's table, with its settings and no others."""

import gzip
import io
import pickle
import re
import shlex
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from netkin.data.imagenet import open_imagenet
from netkin.data.images import Images
from netkin.data.sources import open_folder
from netkin.errors import UserError
from tests.conftest import ROOT
from tests.data.conftest import PIXELS, WNIDS, picture, saved, val_name

_, PAGE = (ROOT / "docs" / "data.md").read_text().split("## Datasets as published\n")
ROWS = re.findall(r"^\| ([^|]+?) \|[^|]+\| `([^|]+)` \|", PAGE.split("\n## ")[0], re.MULTILINE)
Answer = dict[str, str]
"""Names of classes of the images that are compared on, by id."""
TINY = ["n01443537", "n01629819", "n01641577"]
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"fine {k:02d}" for k in range(100)]
NUMBERS = {"train": [9, 0, 3, 2, 1], "test": [4, 1, 2, 3, 1]}
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)


def opened(settings: str, root: Path, images: str = "images") -> Images:
    """The images of a dataset by its config and some settings."""
    pairs = [word.replace("ROOT", str(root)).split("=", 1) for word in shlex.split(settings)]
    group, *others = pairs
    config = OmegaConf.create(
        {"dataset": OmegaConf.load(ROOT / "conf" / "dataset" / f"{group[1]}.yaml")}
    )
    for key, value in others:
        OmegaConf.update(config, key, value)
    return instantiate(config.dataset[images], _convert_="all")


def classes_of(images: Images) -> Answer:
    of = zip(images.ids, images.labels, strict=True)
    return {i.removeprefix("images/"): images.classes[k] for i, k in of}


def folders(root: Path, imagenet: Path) -> Answer:
    for k, path in enumerate(("train/dog/a", "train/cat/b", "val/cat/c", "val/dog/d")):
        picture(root / f"{path}.png", k)
    return {"cat/c.png": "cat", "dog/d.png": "dog"}


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 does: as one type."""

    def save_text(self, value: str | bytes) -> None:
        encoded = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(encoded)) + encoded)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch = pickle._Pickler.dispatch | {str: save_text, bytes: save_text}  # type: ignore


def python2(file: Path, content: Any, core: bytes = b"numpy.core") -> None:
    stream = io.BytesIO()
    Python2(stream, 2).dump(content)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(stream.getvalue().replace(b"numpy._core", core))


def cifar(root: Path, form: str, core: bytes = b"numpy.core") -> Answer:
    """Five images a file, in the layout of a folder's name."""
    folder, ten = root / form, "-10-" in form
    trains, names = ([f"data_batch_{k}" for k in range(1, 6)], TEN) if ten else (["train"], FINE)
    tests = ["test_batch" if ten else "test"]
    folder.mkdir(parents=True)
    for split, files in (("train", trains), ("test", tests)):
        for k, name in enumerate(files):
            labels, pixels = NUMBERS[split], COLOURS + np.uint8(k + 10 * (split == "test"))
            coarse = [19 - label for label in labels]
            key, other = ("labels", {}) if ten else ("fine_labels", {"coarse_labels": coarse})
            batch = {"batch_label": "one", key: labels, "data": pixels} | other
            if form.endswith(("py", "python")):
                python2(folder / name, batch, core)
            else:
                columns = [labels] if ten else [coarse, labels]
                rows = np.concatenate([np.array(columns, np.uint8).T, pixels], 1)
                (folder / f"{name}.bin").write_bytes(rows.tobytes())
    if form.endswith(("py", "python")):
        key = "label_names" if ten else "fine_label_names"
        coarse = {} if ten else {"coarse_label_names": list("abcdefghijklmnopqrst")}
        python2(folder / ("batches.meta" if ten else "meta"), {key: names, **coarse}, core)
    else:
        file = folder / ("batches.meta.txt" if ten else "fine_label_names.txt")
        file.write_text("\n".join([*names, "", ""]))
    return {f"{tests[0]}/{i:05d}": names[label] for i, label in enumerate(NUMBERS["test"])}


def idx(file: Path, array: NDArray[np.uint8]) -> None:
    """As Debian installs Fashion-MNIST."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    file.write_bytes(gzip.compress(head + array.tobytes()))


def mnist(root: Path, imagenet: Path) -> Answer:
    for start, of in (("train", "train"), ("t10k", "test")):
        idx(root / f"{start}-images-idx3-ubyte.gz", COLOURS[:, :784].reshape(5, 28, 28))
        idx(root / f"{start}-labels-idx1-ubyte.gz", np.array(NUMBERS[of], np.uint8))
    return {f"t10k/{i}": str(label) for i, label in enumerate(NUMBERS["test"])}


def tiny_imagenet(root: Path, imagenet: Path) -> Answer:
    """One class has no image in val."""
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


ORDER = [3, 42, 700]
VAL = {val_name(n): WNIDS[ORDER[k]] for n, k in enumerate((0, 2, 1, 1, 2, 0), start=1)}
"""Of tests.data.conftest.imagenet."""


def classes_in(names: list[str]) -> Callable[[Path, Path], Answer]:
    """A folder a class, in the order of the classes, with a page beside them."""
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "jpeg")

    def make(root: Path, imagenet: Path) -> Answer:
        answer = {}
        for name in names:
            last = name.rpartition("/")[2]
            of = WNIDS[int(last)] if last.isdecimal() else last
            (root / name).mkdir(parents=True)
            (root / name / f"of_{of}.jpeg").write_bytes(content.getvalue())
            answer[f"of_{of}.jpeg"] = of
        (root / names[0]).with_name("README.txt").write_text("for research")
        return answer

    return make


def imagenet_as(layout: str) -> Callable[[Path, Path], Answer]:
    def make(root: Path, imagenet: Path) -> Answer:
        if layout != "kaggle":
            shutil.copytree(imagenet / layout, root, dirs_exist_ok=True)
            return VAL
        shutil.copytree(imagenet / "flat" / "val", root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
        rows = [f"{name.split('.')[0]},{wnid} 1 1 2 2" for name, wnid in VAL.items()]
        solution = "\n".join(["ImageId,PredictionString", *rows])
        (root / "LOC_val_solution.csv").write_text(solution)
        return VAL

    return make


def compatible(root: Path, imagenet: Path) -> Answer:
    for i in range(2):
        picture(root / "images" / f"{i}a.png", i)
    (root / "images.csv").write_text("ImageId,TrueLabel,TargetClass\n0a,1,7\n1a,1000,7\n")
    return {"0a.png": WNIDS[0], "1a.png": WNIDS[999]}


def hugging_face(root: Path, imagenet: Path) -> Answer:
    kind = pytest.importorskip("datasets").ClassLabel(names=["b", "a"])
    saved(root, {"label": [1, 0]}, ["x.png", "y.png"], {"label": kind})
    for file in (root / "saved").iterdir():
        file.rename(root / file.name)
    return {"x.png": "a", "y.png": "b"}


def webdataset(root: Path, imagenet: Path) -> Answer:
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "jpeg")
    for shard in range(2):
        with tarfile.open(root / f"NAME-val-{shard:02d}.tar", "w") as tar:
            for suffix, value in (("jpg", content.getvalue()), ("cls", str(shard).encode())):
                entry = tarfile.TarInfo(f"scan.{suffix}")
                entry.size = len(value)
                tar.addfile(entry, io.BytesIO(value))
    return {"NAME-val-00/scan": "0", "NAME-val-01/scan": "1"}


SOME = [WNIDS[k] for k in ORDER]
MAKERS: dict[str, list[Callable[[Path, Path], Answer]]] = {
    "folders": [folders],
    "CIFAR-10": [
        lambda root, _, form=form: cifar(root, form)
        for form in ("cifar-10-batches-py", "cifar-10-batches-bin")
    ],
    "CIFAR-100": [
        lambda root, _, form=form: cifar(root, form)
        for form in ("cifar-100-python", "cifar-100-binary")
    ],
    "MNIST, Fashion-MNIST": [mnist],
    "Tiny ImageNet": [tiny_imagenet],
    "Tiny ImageNet among 1,000 classes": [tiny_imagenet],
    "ImageNet": [imagenet_as("folders"), imagenet_as("bare")],
    "ImageNet, official archives": [imagenet_as("flat")],
    "ImageNet, Kaggle": [imagenet_as("kaggle")],
    "ImageNet-V2": [classes_in([f"imagenetv2-top-images-format-val/{k}" for k in range(1000)])],
    "ImageNet-R, ImageNet-A": [classes_in(SOME), classes_in([f"imagenet-r/{k}" for k in SOME])],
    "ImageNet-Sketch": [classes_in([f"sketch/{k}" for k in SOME])],
    "ImageNet-compatible": [compatible],
    "Hugging Face": [hugging_face],
    "WebDataset": [webdataset],
}


def test_every_row_is_made() -> None:
    assert [name for name, _ in ROWS] == list(MAKERS)


@pytest.mark.parametrize(
    ("name", "settings", "make"), [(*row, make) for row in ROWS for make in MAKERS[row[0]]]
)
def test_as_published(
    name: str, settings: str, make: Callable[[Path, Path], Answer], imagenet: Path, tmp_path: Path
) -> None:
    root = tmp_path / "published"
    root.mkdir()
    answer = make(root, imagenet)
    val = opened(settings, root)
    assert classes_of(val) == answer
    assert val.load(len(answer) - 1).mode == "RGB"
    if settings.startswith("dataset=folder") and (root / "wnids.txt").exists():
        assert list(val.classes) == TINY
    elif not settings.startswith("dataset=folder"):
        assert list(val.classes) == WNIDS
    if name.startswith(("folders", "CIFAR", "MNIST", "Tiny")):
        train = opened(settings, root, "train_images")
        assert list(train.classes) == list(val.classes)
        assert len(train.ids) >= 2 and not {*train.ids} & {*val.ids}


def test_folders_of_some_numbers_are_no_certain_classes_of_imagenet(tmp_path: Path) -> None:
    root, labels = tmp_path / "ten", tmp_path / "labels.txt"
    for k in range(10):
        picture(root / str(k) / f"{k}.png", k)
    with pytest.raises(UserError, match=r"10 class folders .* such as '0'.* labels=FILE"):
        open_imagenet(str(root))
    labels.write_text("".join(f"{k}/{k}.png {WNIDS[990 + k]}\n" for k in range(10)))
    assert open_imagenet(str(root), labels=str(labels)).labels == list(range(990, 1000))


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("ten", [True, False])
def test_cifar_is_as_torchvision_has_it(
    core: bytes, ten: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = ("cifar-10-batches-py", "cifar-10-batches-bin")
    pickles, records = forms if ten else ("cifar-100-python", "cifar-100-binary")
    cifar(tmp_path / "a", pickles, core)
    cifar(tmp_path / "b", records)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    theirs_of = torchvision.datasets.CIFAR10 if ten else torchvision.datasets.CIFAR100
    for split in ("train", "test"):
        theirs = theirs_of(tmp_path / "a", train=split == "train")
        for root in (tmp_path / "a" / pickles, tmp_path / "b"):
            images = open_folder(str(root), split)
            assert list(images.classes) == theirs.classes
            assert images.labels == theirs.targets
            loaded = [np.asarray(images.load(i)) for i in range(len(images.ids))]
            assert np.array_equal(loaded, theirs.data)
        first, second = (open_folder(str(tmp_path / place), split) for place in "ab")
        assert first.ids == second.ids and first.stamp(3) == second.stamp(3)
    names = open_folder(str(tmp_path / "a")).classes
    other = open_folder(str(tmp_path / "a"), classes=list(reversed(names)))
    assert classes_of(other) == classes_of(open_folder(str(tmp_path / "b")))
    assert list(other.classes) == list(reversed(names))
    folders(tmp_path / "b", tmp_path)  # beside folders of splits, the folder has to be named
    assert list(open_folder(str(tmp_path / "b")).classes) == ["cat", "dog"]
    with pytest.raises(UserError, match=r"in any order: "):
        open_folder(str(tmp_path / "a"), classes=["x", *names[1:]])


class Code:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("ran",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: python2(f, {"data": Code()}), r"calls (__builtin__|builtins)\.print, which is"),
        (lambda f: python2(f, {"data": COLOURS}), r"it lacks 'labels'"),
        (lambda f: python2(f, [COLOURS]), r"test_batch cannot be read"),
        (lambda f: python2(f, {"data": COLOURS, "labels": [1]}), r"uint8 \[5, 3072\] .* \[1\]"),
        (lambda f: python2(f, {"data": COLOURS, "labels": [10] * 5}), "0 to 9 for 10 classes"),
        (lambda f: f.write_bytes(f.read_bytes()[:-30]), "fetch it again"),
        (lambda f: f.write_bytes(b""), "fetch it again"),
        (Path.unlink, "No such file"),
        (lambda f: cifar(f.parent.parent, "cifar-100-python"), "name the folder of one as root"),
    ],
)
def test_cifar_that_is_none(
    change: Callable[[Path], object], message: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    cifar(tmp_path, "cifar-10-batches-py")
    change(tmp_path / "cifar-10-batches-py" / "test_batch")
    with pytest.raises(UserError, match=message):
        open_folder(str(tmp_path))
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("form", "size"), [("cifar-10-batches-bin", 3073), ("cifar-100-binary", 3074)]
)
def test_records_that_are_cut(form: str, size: int, tmp_path: Path) -> None:
    cifar(tmp_path, form)
    (file,) = (tmp_path / form).glob("test*.bin")
    assert file.stat().st_size == 5 * size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{5 * size - 1:,} bytes, expected records of {size:,}"):
        open_folder(str(tmp_path))


def test_archives_that_are_downloaded(tmp_path: Path) -> None:
    """ImageNet-R's is a tar file without compression, CIFAR's has it."""
    answer = classes_in([f"imagenet-r/{k}" for k in SOME])(tmp_path / "r", tmp_path)
    with tarfile.open(tmp_path / "imagenet-r.tar", "w") as tar:
        tar.add(tmp_path / "r" / "imagenet-r", "imagenet-r")
    assert classes_of(open_imagenet(str(tmp_path / "imagenet-r.tar"))) == answer
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(UserError, match="unpack it"):
        open_folder(str(tmp_path / "cifar-10-python.tar.gz"))


def test_tiny_imagenet_without_its_list_of_classes(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path, tmp_path)
    (tmp_path / "wnids.txt").unlink()
    with pytest.raises(UserError, match=r"wnids.txt is not there, .* classes=FILE"):
        open_folder(str(tmp_path), "val")


def test_idx_files_that_are_damaged(tmp_path: Path) -> None:
    mnist(tmp_path, tmp_path)
    val = open_folder(str(tmp_path), "val")
    assert np.array_equal(np.asarray(val.load(3))[..., 1].ravel(), COLOURS[3, :784])
    assert list(val.classes) == list("0123456789")  # of both splits
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    idx(file, np.array([1, 2, 3], np.uint8))
    with pytest.raises(UserError, match="has 5 images for 3 labels"):
        open_folder(str(tmp_path), "val")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="fetch it again"):
        open_folder(str(tmp_path), "val")
    for start in ("train", "t10k"):
        idx(tmp_path / f"{start}-labels-idx1-ubyte.gz", np.arange(1, 6, dtype=np.uint8))
    with pytest.raises(UserError, match=r"no label in .* is 0, but 1 to 5"):
        open_folder(str(tmp_path), "val")
