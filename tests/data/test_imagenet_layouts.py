"""ImageNet as people have it, and the ImageNet-compatible images."""

import shutil
import tarfile
from pathlib import Path

import pytest

from netkin.data.imagenet import open_compatible, open_imagenet
from netkin.data.sources import open_folder
from netkin.errors import UserError
from tests.data.conftest import WNIDS, by_id, picture, val_name


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
        assert by_id(images) == first and list(images.classes) == WNIDS
    for images in layouts[1:5]:  # ids, too, so that a manifest of one names images of the other
        assert sorted(images.ids) == sorted(layouts[0].ids)


def test_a_ground_truth_needs_its_classes_and_as_many_images(imagenet: Path) -> None:
    root, kit = str(imagenet / "flat"), imagenet / "flat" / "ILSVRC2012_devkit_t12" / "data"
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    content = truth.read_text()
    with pytest.raises(UserError, match="dataset=imagenet"):
        open_folder(root, "val", str(truth))
    truth.write_text(content + "1\n")
    with pytest.raises(UserError, match=r"7 labels, .* has 6 images"):
        open_imagenet(root)
    truth.write_text("9" + content[1:])
    with pytest.raises(UserError, match="label 9 is out of range; expected 1 to 3"):
        open_imagenet(root)
    (kit / "meta.mat").unlink()
    with pytest.raises(UserError, match=r"meta\.mat cannot be read"):
        open_imagenet(root)
    shutil.rmtree(kit.parent)
    with pytest.raises(UserError, match=r"labels=PATH/ILSVRC2012_validation_ground"):
        open_imagenet(root)


def test_archives_beside_folders_and_hidden_files_are_left_alone(imagenet: Path) -> None:
    before = by_id(open_imagenet(str(imagenet / "folders")))
    shutil.copy(imagenet / "val.tar", imagenet / "folders" / "ILSVRC2012_img_val.tar")
    (imagenet / "folders" / "val" / ".ipynb_checkpoints").mkdir()
    (imagenet / "folders" / "val" / WNIDS[3] / "._a.JPEG").write_bytes(b"")
    assert by_id(open_imagenet(str(imagenet / "folders"))) == before


def test_classes_that_are_no_wordnet_ids(imagenet: Path) -> None:
    (imagenet / "bare" / WNIDS[3]).rename(imagenet / "bare" / "goldfish")
    with pytest.raises(UserError, match=r"1 class folders that are no WordNet ids .* 'goldfish'"):
        open_imagenet(str(imagenet / "bare"))


def flat_tar(file: Path, folder: Path) -> None:
    with tarfile.open(file, "w") as tar:
        for path in sorted(folder.glob("*.JPEG")):
            tar.add(path, path.name)


@pytest.mark.parametrize("kit", ["folder", "tar.gz", "labels"])
def test_the_official_archive_of_validation_images(imagenet: Path, kit: str) -> None:
    root = imagenet / "official"
    root.mkdir()
    flat_tar(root / "ILSVRC2012_img_val.tar", imagenet / "flat" / "val")
    devkit, labels = imagenet / "flat" / "ILSVRC2012_devkit_t12", None
    if kit == "folder":
        shutil.copytree(devkit, root / devkit.name)
    elif kit == "tar.gz":
        with tarfile.open(root / f"{devkit.name}.tar.gz", "w:gz") as tar:
            tar.add(devkit, devkit.name)
    else:
        labels = str(imagenet / "labels.txt")
    folders = open_imagenet(str(imagenet / "folders"))
    for place in (root, root / "ILSVRC2012_img_val.tar"):
        images = open_imagenet(str(place), labels=labels)
        assert by_id(images) == by_id(folders) and list(images.classes) == WNIDS
        stamps = {i: images.stamp(k) for k, i in enumerate(images.ids)}
        assert stamps == {i: folders.stamp(k) for k, i in enumerate(folders.ids)}


def test_the_official_archive_of_training_images(imagenet: Path) -> None:
    root = imagenet / "official"
    (root / "tars").mkdir(parents=True)
    for folder in (imagenet / "bare").iterdir():
        flat_tar(root / "tars" / f"{folder.name}.tar", folder)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as tar:
        for file in (root / "tars").iterdir():
            tar.add(file, file.name)
    shutil.rmtree(root / "tars")
    flat_tar(root / "ILSVRC2012_img_val.tar", imagenet / "flat" / "val")
    images = open_imagenet(str(root), "train")
    assert by_id(images) == by_id(open_imagenet(str(imagenet / "folders")))


@pytest.mark.parametrize("root", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_the_layout_of_kaggle(imagenet: Path, root: str) -> None:
    kaggle = imagenet / "kaggle"
    shutil.copytree(imagenet / "flat" / "val", kaggle / "ILSVRC/Data/CLS-LOC/val")
    shutil.copytree(imagenet / "bare", kaggle / "ILSVRC/Data/CLS-LOC/train")
    picture(kaggle / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG")
    lines = [line.split() for line in (imagenet / "labels.txt").read_text().splitlines()]
    rows = [f"{name.split('.')[0]},{wnid} 10 10 20 20 {wnid} 1 1 5 5 " for name, wnid in lines]
    (kaggle / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    (kaggle / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    images = open_imagenet(str(kaggle / root))
    assert by_id(images) == by_id(open_imagenet(str(imagenet / "folders")))
    train = open_imagenet(str(kaggle / root), "train")
    assert train.classes == images.classes and len(train.ids) == 6


@pytest.mark.parametrize("kind", ["tabs", "header", "val/", "from 0", "wnids in order"])
def test_label_files_of_imagenet(imagenet: Path, kind: str) -> None:
    pairs = [line.split() for line in (imagenet / "labels.txt").read_text().splitlines()]
    lines = {
        "tabs": [f"{name}\t{wnid}" for name, wnid in pairs],
        "header": ["filename,wnid", *(f"{name},{wnid}" for name, wnid in pairs)],
        "val/": [f"val/{name} {wnid}" for name, wnid in pairs],
        "from 0": [f"{name} {WNIDS.index(wnid)}" for name, wnid in pairs],
        "wnids in order": [wnid for _, wnid in pairs],
    }[kind]
    (imagenet / "mine.txt").write_text("\r\n".join(lines))
    images = open_imagenet(str(imagenet / "flat"), labels=str(imagenet / "mine.txt"))
    assert by_id(images) == by_id(open_imagenet(str(imagenet / "folders")))


def test_all_classes_or_the_images_own(imagenet: Path) -> None:
    own_classes = sorted(WNIDS[k] for k in (700, 3, 42))
    for layout in ("folders", "flat", "val.tar"):
        among_all = open_imagenet(str(imagenet / layout))
        own = open_imagenet(str(imagenet / layout), classes="own")
        listed = open_imagenet(str(imagenet / layout), classes=[*own_classes, WNIDS[0]])
        assert list(among_all.classes) == WNIDS and {*among_all.labels} == {700, 3, 42}
        assert list(own.classes) == own_classes and {*own.labels} == {0, 1, 2}
        assert len(listed.classes) == 4
        assert by_id(among_all) == by_id(own) == by_id(listed)
        assert "3 of ImageNet's 1,000 classes; models choose among all 1,000" in among_all.notes[-1]
        assert "models choose among these 3 only" in own.notes[-1]
    for classes, problem in (
        ([WNIDS[0]], "3 are classes of images, but not among them"),
        (["cat"], "1 are no WordNet ids, such as 'cat'"),
        ("nowhere.txt", "cannot be read"),
    ):
        with pytest.raises(UserError, match=problem):
            open_imagenet(str(imagenet / "folders"), classes=classes)


def write_compatible(root: Path, name: str, lines: list[str]) -> str:
    for i in range(3):
        picture(root / "images" / f"{i}a.png", i)
    (root / name).write_text("\n".join(lines) + "\n")
    return str(root)


@pytest.mark.parametrize("kind", ["labels.csv", "labels.csv with targets", "images.csv"])
def test_imagenet_compatible_images(tmp_path: Path, kind: str) -> None:
    lines = {
        "labels.csv": ["filename,label", "0a.png,5", "1a.png,999", "2a.png,0"],
        "labels.csv with targets": [
            "filename,label,targeted_label",
            "0a.png,5,1",
            "1a.png,999,2",
            "2a.png,0,3",
        ],
        "images.csv": [
            "ImageId,URL,x1,TrueLabel,TargetClass,Author",
            '0a,https://a/b.jpg,0.1,6,7,"Smith, J."',
            "1a,https://a/b.jpg,0.1,1000,7,x",
            "2a,https://a/b.jpg,0.1,1,7,x",
        ],
    }[kind]
    images = open_compatible(write_compatible(tmp_path, kind.split()[0], lines))
    assert (images.ids, images.labels) == (["0a.png", "1a.png", "2a.png"], [5, 999, 0])
    assert list(images.classes) == WNIDS
    assert any("3 of ImageNet's 1,000 classes" in note for note in images.notes)


def test_imagenet_compatible_images_that_are_not(tmp_path: Path) -> None:
    root = write_compatible(tmp_path, "other.csv", ["filename,label", "0a.png,5"])
    with pytest.raises(UserError, match=r"holds neither labels\.csv .* nor images\.csv"):
        open_compatible(root)
    write_compatible(tmp_path, "images.csv", ["ImageId,TrueLabel", "0a,0", "1a,1", "2a,2"])
    with pytest.raises(UserError, match=r"label 0 of 0a\.png is out of range; .* or 1 to 1000"):
        open_compatible(root)
    with pytest.raises(UserError, match="none of which are for training"):
        open_compatible(root, "train")
