"""The layouts that images come in, subsets as files, and images that are not as they should be."""

import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

from netkin.data.digits import Digits
from netkin.data.imagenet import open_imagenet
from netkin.data.images import Images, Part, UnreadableImage, decode, rgb
from netkin.data.sources import open_folder
from netkin.data.subset import draw, fingerprint, from_manifest
from netkin.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
WNIDS = ImageNetInfo().label_names()


def picture(path: Path, shift: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS + np.uint8(shift)).save(path)


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


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


def by_id(images: Images) -> dict[str, tuple[str, bytes]]:
    return {
        Path(image).name: (images.classes[label], images.load(i).tobytes())
        for i, (image, label) in enumerate(zip(images.ids, images.labels, strict=True))
    }


def test_every_layout_of_imagenet_is_the_same_images(imagenet: Path) -> None:
    layouts = [
        open_imagenet(str(imagenet / "folders")),
        open_imagenet(str(imagenet / "bare")),
        open_imagenet(str(imagenet / "flat")),
        open_imagenet(str(imagenet / "flat" / "val")),
        open_imagenet(str(imagenet / "flat"), labels=str(imagenet / "labels.txt")),
        open_imagenet(str(imagenet / "val.tar")),
    ]
    first = by_id(layouts[0])
    assert len(first) == 6 and first[val_name(1)][0] == WNIDS[3]
    for images in layouts[1:]:
        assert by_id(images) == first
    flat = layouts[2]
    assert list(flat.classes) == WNIDS
    assert [WNIDS[k] for k in flat.labels] == [first[name][0] for name in flat.ids]
    for images in layouts[1:5]:  # ids, too, so that a manifest of one names images of the other
        assert sorted(images.ids) == sorted(layouts[0].ids)


def test_flat_images_without_labels(imagenet: Path) -> None:
    shutil.rmtree(imagenet / "flat" / "ILSVRC2012_devkit_t12")
    with pytest.raises(UserError, match=r"labels=PATH/ILSVRC2012_validation_ground"):
        open_imagenet(str(imagenet / "flat"))


def test_a_ground_truth_needs_its_classes_and_as_many_images(imagenet: Path) -> None:
    kit = imagenet / "flat" / "ILSVRC2012_devkit_t12" / "data"
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    content = truth.read_text()
    truth.write_text(content + "1\n")
    with pytest.raises(UserError, match=r"7 labels, .* has 6 images"):
        _ = open_imagenet(str(imagenet / "flat")).labels
    truth.write_text("9" + content[1:])
    with pytest.raises(UserError, match="label 9 is out of range; expected 1 to 3"):
        _ = open_imagenet(str(imagenet / "flat")).labels
    (kit / "meta.mat").unlink()
    with pytest.raises(UserError, match=r"meta\.mat cannot be read"):
        _ = open_imagenet(str(imagenet / "flat")).labels


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.png 0\nb.png 2\n", r"label 2 of b\.png is out of range; expected one of 2 class names"),
        ("a.png 0\nb.png -1\n", r"label -1 of b\.png is out of range"),
        ("a.png 0\nc.png 1\n", r"lists 1 images that are not in .*, such as c\.png"),
        ("a.png\n", r"line 1: expected 'image label', got 'a\.png'"),
        ("", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_label_file(tmp_path: Path, lines: str | None, message: str) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "val" / name)
    labels = tmp_path / "labels.txt"
    if lines is not None:
        labels.write_text(lines)
    with pytest.raises(UserError, match=message):
        _ = open_folder(str(tmp_path), "val", str(labels), ["cat", "dog"]).labels


def test_labels_by_name_or_index_with_spaces_or_commas(tmp_path: Path) -> None:
    for name in ("a b.png", "c.png"):
        picture(tmp_path / "val" / name)
    for text in ("a b.png dog\nc.png cat\n", "a b.png,1\nc.png, 0\n"):
        (tmp_path / "labels").write_text(text)
        images = open_folder(str(tmp_path), "val", str(tmp_path / "labels"), ["cat", "dog"])
        assert (images.ids, images.labels) == (["a b.png", "c.png"], [1, 0])
    (tmp_path / "labels").write_text("a b.png dog\nc.png cat\n")
    assert open_folder(str(tmp_path), "val", str(tmp_path / "labels")).classes == ["cat", "dog"]


def test_hugging_face_datasets(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(imagenet / "cache"))
    images = open_imagenet(f"hfds/{imagenet / 'folders'}", "validation")
    folders = open_imagenet(str(imagenet / "folders"))
    assert by_id(images) == by_id(folders)
    with pytest.raises(UserError, match="cannot be read"):
        open_imagenet(f"hfds/{imagenet / 'folders'}", "nosuch")


def test_webdataset_shards(tmp_path: Path) -> None:
    digits = Digits()
    shards = tmp_path / "digits"
    shards.mkdir()
    for shard in range(2):
        with tarfile.open(shards / f"digits-val-{shard:02d}.tar", "w") as tar:
            for i in range(shard * 5, shard * 5 + 5):
                file = io.BytesIO()
                digits.load(i).save(file, "png")
                for kind, content in (
                    ("png", file.getvalue()),
                    ("cls", str(digits.labels[i]).encode()),
                ):
                    entry = tarfile.TarInfo(f"scan{i}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    images = open_folder(f"wds/{shards}", "digits-val-{00..01}.tar")
    assert images.ids[6] == "digits-val-01/scan6"
    assert images.labels == digits.labels[:10]
    for i in range(10):
        assert images.load(i).tobytes() == digits.load(i).tobytes()


@pytest.mark.parametrize("root", ["hfds/no/such", "wds/nowhere", "nowhere.tar", "nowhere"])
def test_a_missing_root(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=re.escape(root.split("/")[-1])):
        _ = open_folder(root).labels


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(PIXELS).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    image.save(path)
    image = decode("an image", path.read_bytes)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    if mode in ("L", "LA", "I;16"):
        assert (np.asarray(image) == np.asarray(grey)[..., None]).all()
    elif mode in ("RGBA",):
        assert (np.asarray(image) == PIXELS).all()


@given(st.integers(0, 65535))
def test_16_bit_grey_keeps_its_order_and_range(value: int) -> None:
    image = rgb(Image.fromarray(np.full((2, 2), value, np.uint16)))
    assert np.asarray(image).flat[0] == round(value / 257)


def test_one_pixel_and_a_hair(tmp_path: Path) -> None:
    for size in ((1, 1), (1, 1000)):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{size[1]}.png")
    assert decode("dot", (tmp_path / "1.png").read_bytes).size == (1, 1)
    with pytest.raises(UnreadableImage, match="1000 x 1 pixels is too narrow"):
        decode("hair", (tmp_path / "1000.png").read_bytes)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tif", "webp"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_broken_image_is_named(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"image.{kind}"
    picture(path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(UnreadableImage, match="image val/x is unreadable"):
        decode("val/x", path.read_bytes)


def test_a_manifest_gives_the_same_images(imagenet: Path) -> None:
    folders, flat = (open_imagenet(str(imagenet / name)) for name in ("folders", "flat"))
    file = imagenet / "manifest.json"
    drawn = draw(flat, "tenth", fraction=0.5)
    file.write_text(json.dumps({"dataset": "imagenet", **drawn.manifest()}))
    again = from_manifest(flat, file, "imagenet")
    assert (again.name, again.digest, again.positions) == (
        drawn.name,
        drawn.digest,
        drawn.positions,
    )
    assert from_manifest(folders, file, "imagenet").digest == drawn.digest
    # Among the folders' own three classes labels are others.
    own = open_imagenet(str(imagenet / "folders"), classes="own")
    with pytest.raises(UserError, match=r"has classes \['n01440764', .*\(1000 in all\), the data"):
        from_manifest(own, file, "imagenet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "birds"}, "is a manifest of dataset 'birds', not 'imagenet'"),
        ({"labels": [1, 2, 3]}, "does not fit its own hash"),
        ({"ids": None}, "cannot be read as a manifest"),
        ({"skipped": None}, "cannot be read as a manifest"),
        ({"skipped": [{"id": "x"}]}, "cannot be read as a manifest"),
        (None, "cannot be read as a manifest"),
    ],
)
def test_a_wrong_manifest(imagenet: Path, change: dict | None, message: str) -> None:
    images = open_imagenet(str(imagenet / "folders"))
    file = imagenet / "manifest.json"
    good = {"dataset": "imagenet", **draw(images, "few", per_class=1).manifest()}
    file.write_text("{" if change is None else json.dumps({**good, **change}))
    with pytest.raises(UserError, match=message):
        from_manifest(images, file, "imagenet")


def test_a_manifest_with_images_that_are_not_there(imagenet: Path) -> None:
    images = open_imagenet(str(imagenet / "folders"))
    file = imagenet / "manifest.json"
    file.write_text(json.dumps(draw(images, "full").manifest()))
    next((imagenet / "folders").rglob("*_00000004.JPEG")).unlink()
    images = open_imagenet(str(imagenet / "folders"))
    with pytest.raises(UserError, match="names 1 images that are not in the dataset, such as IL"):
        from_manifest(images, file, "imagenet")


@given(st.floats(0.01, 1), st.integers(0, 3))
def test_a_fraction_of_each_class(fraction: float, seed: int) -> None:
    digits = Digits()
    drawn = draw(digits, "some", fraction=fraction, seed=seed)
    ours, all_ = np.bincount(drawn.labels, minlength=10), np.bincount(digits.labels)
    assert (ours == np.maximum(1, [round(fraction * n) for n in all_])).all()
    assert len(set(drawn.ids)) == len(drawn.ids)


def test_a_tenth_of_imagenet_is_five_a_class() -> None:
    class Validation:
        classes = WNIDS
        notes = ()
        ids = tuple(val_name(i) for i in range(50_000))
        labels = tuple(i % 1000 for i in range(50_000))

        def stamp(self, index: int) -> str:
            return str(index)

        def load(self, index: int) -> Image.Image:
            raise AssertionError

    drawn = draw(Validation(), "tenth", fraction=0.1)
    assert (np.bincount(drawn.labels) == 5).all()


def test_another_image_of_the_same_name_is_another_subset(imagenet: Path) -> None:
    images = open_imagenet(str(imagenet / "folders"))
    file = imagenet / "manifest.json"
    before = draw(images, "full")
    file.write_text(json.dumps(before.manifest()))
    picture(next((imagenet / "folders").rglob("*_00000004.JPEG")), 99)
    assert draw(images, "full").digest != before.digest
    assert fingerprint(images) != fingerprint(open_imagenet(str(imagenet / "bare")))
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000004\.JPEG is another image"):
        from_manifest(images, file, "imagenet")


def test_further_classes_make_another_subset(imagenet: Path) -> None:
    few = draw(open_imagenet(str(imagenet / "bare"), classes="own"), "full")
    picture(imagenet / "bare" / WNIDS[999] / val_name(7))
    (imagenet / "bare" / WNIDS[999] / val_name(7)).rename(imagenet / "seventh.JPEG")
    with pytest.raises(UserError, match="holds no image"):
        _ = draw(open_imagenet(str(imagenet / "bare"), classes="own"), "full")
    (imagenet / "seventh.JPEG").rename(imagenet / "bare" / WNIDS[999] / val_name(7))
    more = open_imagenet(str(imagenet / "bare"), classes="own")
    chosen = draw(Part(more, tuple(range(6))), "full")
    assert chosen.ids == few.ids and chosen.labels == few.labels
    assert chosen.digest != few.digest


def test_archives_beside_folders_and_hidden_files_are_left_alone(imagenet: Path) -> None:
    plain = open_imagenet(str(imagenet / "folders"))
    before = by_id(plain)
    shutil.copy(imagenet / "val.tar", imagenet / "folders" / "ILSVRC2012_img_val.tar")
    (imagenet / "folders" / "val" / ".ipynb_checkpoints").mkdir()
    (imagenet / "folders" / "val" / WNIDS[3] / "._a.JPEG").write_bytes(b"")
    assert by_id(open_imagenet(str(imagenet / "folders"))) == before


def test_a_tar_of_splits_keeps_them_apart(imagenet: Path) -> None:
    picture(imagenet / "train" / WNIDS[3] / "train_1.JPEG", 50)
    picture(imagenet / "train" / WNIDS[42] / "train_2.JPEG", 51)
    with tarfile.open(imagenet / "both.tar", "w") as tar:
        tar.add(imagenet / "bare", "data/val")
        tar.add(imagenet / "train", "data/train")
    assert len(open_imagenet(str(imagenet / "both.tar")).ids) == 6
    train = open_folder(str(imagenet / "both.tar"), "train", ids_are="name")
    assert train.ids == ["train_1.JPEG", "train_2.JPEG"]
    with pytest.raises(UserError, match=r"has no train/ beside val/|holds no folder train"):
        open_folder(str(imagenet / "val.tar"), "train")


def test_classes_that_are_no_wordnet_ids(imagenet: Path) -> None:
    (imagenet / "bare" / WNIDS[3]).rename(imagenet / "bare" / "goldfish")
    with pytest.raises(UserError, match=r"1 class folders that are no WordNet ids .* 'goldfish'"):
        open_imagenet(str(imagenet / "bare"))


def test_equal_images_without_names(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import datasets

    files = [io.BytesIO() for _ in range(3)]
    for file, shift in zip(files, (0, 0, 1), strict=True):
        Image.fromarray(PIXELS + np.uint8(shift)).save(file, "png")
    columns = {
        "image": [{"bytes": file.getvalue(), "path": None} for file in files],
        "label": [0, 1, 1],
    }
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    images = open_folder(f"hfds/{tmp_path / 'saved'}", "validation")
    ids = images.ids
    assert ids[1] == f"{ids[0]}-2" and len(set(ids)) == 3
    assert (images.labels, images.classes) == ([0, 1, 1], ["a", "b"])


def test_a_label_file_from_a_spreadsheet_and_numbers_as_names(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "val" / name)
    (tmp_path / "labels").write_text("a.png,2\nb.png,0\n", encoding="utf-8-sig")
    names: list = [2, 0, 1]  # as YAML reads them
    images = open_folder(str(tmp_path), "val", str(tmp_path / "labels"), names)
    assert (images.labels, images.classes) == ([0, 1], ["2", "0", "1"])
    (tmp_path / "labels").write_text("a.png \u00b2\nb.png 0\n")
    with pytest.raises(UserError, match="out of range"):
        _ = open_folder(str(tmp_path), "val", str(tmp_path / "labels"), names).labels


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "val" / name / "1.png")
    (tmp_path / "val" / "a" / "1.png").rename(tmp_path / "val" / "a" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"a/caf.*\.png is not UTF-8; rename the file"):
        draw(open_folder(str(tmp_path)), "full")


def test_too_many_a_class_says_how_many_there_are(imagenet: Path) -> None:
    images = open_imagenet(str(imagenet / "flat"))  # 997 of its classes have no image
    assert len(draw(images, "two", per_class=2).ids) == 6
    with pytest.raises(UserError, match=r"take per_class=2, or all images"):
        draw(images, "three", per_class=3)
