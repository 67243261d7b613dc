"""Images from their bytes to 8-bit RGB, and through a model's view; the digits."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from netkin.data import images as module
from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.images import UnreadableImage, decode, rgb
from netkin.data.sources import open_folder
from netkin.data.subset import draw
from netkin.data.views import View
from netkin.errors import UserError
from tests.data.conftest import PIXELS, picture


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
    elif mode == "RGBA":
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
    with pytest.raises(UnreadableImage, match="image val/x is unreadable") as caught:
        decode("val/x", path.read_bytes)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.eps")

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    with pytest.raises(UnreadableImage, match="not an image of a raster format"):
        decode("a", (tmp_path / "a.eps").read_bytes)


def test_a_decompression_bomb_is_an_unreadable_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setattr(module.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match=r"960 pixels\) exceeds limit .* decompression bomb"):
        decode("a", (tmp_path / "a.png").read_bytes)


def test_digits_are_split_without_overlap_and_by_class() -> None:
    train, test = Digits("train"), Digits("test")
    assert (len(train.ids), len(test.ids)) == (1297, 500)
    assert not {*train.ids} & {*test.ids}
    a, b = (np.bincount(part.labels) / len(part.labels) for part in (train, test))
    np.testing.assert_allclose(a, b, atol=0.002)
    few = Digits("train", per_class=10)
    assert np.bincount(few.labels).tolist() == [10] * 10
    labels = dict(zip(train.ids, train.labels, strict=True))
    assert [labels[name] for name in few.ids] == few.labels
    assert Digits("train", per_class=1000).ids == train.ids
    with pytest.raises(UserError, match="1 or more"):
        Digits("train", per_class=0)


def test_an_id_of_the_digits_names_the_same_8_bit_scan_in_any_split() -> None:
    few, many = Digits(test_size=100, seed=1), Digits(test_size=500)
    shared = sorted({*few.ids} & {*many.ids})
    assert shared
    for image in shared[:5]:
        i, j = few.ids.index(image), many.ids.index(image)
        assert few.load(i).tobytes() == many.load(j).tobytes()
        assert few.labels[i] == many.labels[j]
    pixels = np.asarray(many.load(0))
    assert pixels.shape == (32, 32, 3) and pixels.max() > 200 and pixels.min() < 20
    assert (views.load(many, range(500), View(32))[0].permute(1, 2, 0).numpy() == pixels).all()


def test_pngs_in_folders_are_the_same_images(tmp_path: Path) -> None:
    digits, view = Digits(), View(48, crop_pct=0.875)
    for i in range(60):
        file = tmp_path / str(digits.labels[i]) / f"{digits.ids[i].split('/')[-1]}.png"
        file.parent.mkdir(exist_ok=True)
        digits.load(i).save(file)
    folder = open_folder(str(tmp_path))
    assert tuple(folder.classes) == digits.classes and len(folder.ids) == 60
    positions = draw(folder, "full").positions
    for row, position in zip(views.load(folder, positions, view), positions, strict=True):
        original = digits.ids.index(f"digits/{Path(folder.ids[position]).stem}")
        assert folder.labels[position] == digits.labels[original]
        assert (np.asarray(view.transform()(digits.load(original))) == row.numpy()).all()
