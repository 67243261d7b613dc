"""Digits, class folders, subsets and views."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.images import Images, Part
from netkin.data.sources import open_folder
from netkin.data.subset import draw
from netkin.data.views import View
from netkin.errors import UserError


def write_folder(root: Path, images: Images, positions: range) -> None:
    """A dataset's images as PNG class folders."""
    for i in positions:
        folder = root / images.classes[images.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        images.load(i).save(folder / f"{images.ids[i].split('/')[-1]}.png")


def test_digits_are_split_without_overlap_and_by_class() -> None:
    train, test = Digits("train"), Digits("test")
    assert (len(train.ids), len(test.ids)) == (1297, 500)
    assert not {*train.ids} & {*test.ids}
    a, b = (np.bincount(part.labels) / len(part.labels) for part in (train, test))
    np.testing.assert_allclose(a, b, atol=0.002)


def test_digits_ids_name_the_same_scan_in_any_split() -> None:
    few, many = Digits(test_size=100, seed=1), Digits(test_size=500)
    shared = sorted({*few.ids} & {*many.ids})
    assert shared
    for image in shared[:5]:
        a, b = few.load(few.ids.index(image)), many.load(many.ids.index(image))
        assert a.tobytes() == b.tobytes()
        assert few.labels[few.ids.index(image)] == many.labels[many.ids.index(image)]


def test_digits_are_8_bit_rgb() -> None:
    image = Digits().load(0)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    pixels = np.asarray(image)
    assert pixels.max() > 200 and pixels.min() < 20
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_a_view_of_its_own_size_changes_nothing() -> None:
    digits = Digits()
    pixels = views.load(digits, draw(digits, "full").positions, View(32))
    assert pixels.shape == (500, 3, 32, 32)
    first = np.asarray(digits.load(draw(digits, "full").positions[0]))
    assert (pixels[0].permute(1, 2, 0).numpy() == first).all()


def test_pngs_in_folders_are_the_same_images(tmp_path: Path) -> None:
    digits = Digits()
    write_folder(tmp_path, digits, range(60))
    folder = open_folder(str(tmp_path))
    assert folder.classes == digits.classes
    view = View(48, crop_pct=0.875)
    ours = views.load(folder, draw(folder, "full").positions, view)
    by_id = dict(zip(folder.ids, folder.labels, strict=True))
    assert len(by_id) == 60
    for row, position in enumerate(draw(folder, "full").positions):
        name = Path(folder.ids[position]).stem
        original = digits.ids.index(f"digits/{name}")
        assert by_id[folder.ids[position]] == digits.labels[original]
        assert (np.asarray(view.transform()(digits.load(original))) == ours[row].numpy()).all()


@pytest.mark.slow
@given(st.integers(1, 20), st.integers(0, 5))
def test_a_draw_is_stratified_and_fixed_by_its_seed(per_class: int, seed: int) -> None:
    digits = Digits()
    subset = draw(digits, "some", per_class, seed)
    assert np.bincount(subset.labels).tolist() == [per_class] * 10
    assert subset == draw(digits, "some", per_class, seed)
    assert subset.labels == tuple(digits.labels[i] for i in subset.positions)
    assert subset.ids == tuple(digits.ids[i] for i in subset.positions)


def test_a_quick_look_at_many_classes_is_small() -> None:
    """10 a class, and of 1,000 images in all at most: 1 a class of ImageNet's."""
    images = Digits("test")
    assert len(draw(images, "quick", per_class=10, at_most=1000)) == 100
    assert len(draw(images, "quick", per_class=10, at_most=45)) == 40
    assert len(draw(images, "quick", per_class=10, at_most=3)) == 10
    with pytest.raises(UserError, match="at_most must be 1 or more, got 0"):
        draw(images, "quick", per_class=10, at_most=0)


def test_seeds_draw_differently_and_digests_tell() -> None:
    digits = Digits()
    a, b = draw(digits, "a", 5, seed=0), draw(digits, "a", 5, seed=1)
    assert a.ids != b.ids and a.digest != b.digest


def test_a_draw_does_not_depend_on_the_listing() -> None:
    digits = Digits()

    reverse = Part(digits, tuple(range(500))[::-1])
    a, b = draw(digits, "a", 5), draw(reverse, "a", 5)
    assert a.digest == b.digest
    view = View(32)
    ours, theirs = views.load(digits, a.positions, view), views.load(reverse, b.positions, view)
    assert (ours == theirs).all()


def test_too_large_a_draw_names_the_class() -> None:
    with pytest.raises(UserError, match=r"per_class=51 takes more .* class '0' has \(50\)"):
        draw(Digits(), "many", 51)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        _ = open_folder(str(tmp_path / "nowhere")).classes
    with pytest.raises(UserError, match="holds 0 class folders"):
        _ = open_folder(str(tmp_path)).classes
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="cat holds no image"):
        _ = open_folder(str(tmp_path)).ids


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, Digits(), range(40))
    victim = next(tmp_path.glob("3/*.png"))
    victim.write_bytes(victim.read_bytes()[:100])
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match=rf"{victim.name} in .* is unreadable"):
        views.load(folder, draw(folder, "full").positions, View(32))


def test_few_digits_of_each_class() -> None:
    few, everything = Digits("train", per_class=10), Digits("train")
    assert np.bincount(few.labels).tolist() == [10] * 10
    assert set(few.ids) < set(everything.ids)
    labels = dict(zip(everything.ids, everything.labels, strict=True))
    assert [labels[name] for name in few.ids] == few.labels
    assert Digits("train", per_class=1000).ids == everything.ids
    with pytest.raises(UserError, match="1 or more"):
        Digits("train", per_class=0)
