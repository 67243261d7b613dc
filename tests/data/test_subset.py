"""Which images are drawn, and manifests that name them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.imagenet import open_imagenet
from netkin.data.images import Part
from netkin.data.subset import draw, fingerprint, from_manifest
from netkin.data.views import View
from netkin.errors import UserError
from tests.data.conftest import WNIDS, picture, val_name


def test_the_same_images_have_the_same_hashes_as_ever() -> None:
    """Stores and trained weights are found by these."""
    quick = draw(Digits(), "quick", per_class=10)
    some = draw(Digits(), "some", fraction=0.1, seed=1, shuffled=True)
    assert (quick.digest[:16], some.digest[:16]) == ("79233681cd4f0029", "78176cedab6f39d6")
    assert fingerprint(Digits("train"))[:16] == "9af54ac754a5e105"


@given(st.floats(0.01, 1) | st.integers(1, 20), st.integers(0, 3))
def test_a_draw_is_stratified_and_fixed_by_its_seed(size: float, seed: int) -> None:
    digits, how = Digits(), "per_class" if isinstance(size, int) else "fraction"
    sized: dict[str, Any] = {how: size}
    subset = draw(digits, "some", seed=seed, **sized)
    ours, all_ = np.bincount(subset.labels, minlength=10), np.bincount(digits.labels)
    share = size if how == "fraction" else 0
    assert ours.tolist() == [max(1, round(share * n)) if share else size for n in all_]
    assert len(set(subset.ids)) == len(subset)
    assert subset == draw(digits, "some", seed=seed, **sized)
    labels = dict(zip(digits.ids, digits.labels, strict=True))
    assert [labels[image] for image in subset.ids] == list(subset.labels)
    other = draw(digits, "some", seed=seed + 1, **sized)
    assert share > 0.98 or (other.ids != subset.ids and other.digest != subset.digest)


def test_draws_of_many_classes() -> None:
    """A tenth of ImageNet is five a class; a quick draw has 1,000 images in all at most."""
    ids, labels = [val_name(i) for i in range(50_000)], [i % 1000 for i in range(50_000)]
    images: Any = SimpleNamespace(classes=WNIDS, notes=(), ids=ids, labels=labels, stamp=str)
    ways: list[tuple[dict[str, Any], int]] = [
        ({"fraction": 0.1}, 5),
        ({"per_class": 10, "at_most": 1000}, 1),
    ]
    for how, each in ways:
        assert (np.bincount(draw(images, "some", **how).labels) == each).all()
    for at_most, drawn in ((1000, 100), (45, 40), (3, 10)):
        assert len(draw(Digits(), "quick", per_class=10, at_most=at_most)) == drawn
    with pytest.raises(UserError, match="at_most must be 1 or more, got 0"):
        draw(Digits(), "quick", per_class=10, at_most=0)


def test_a_draw_does_not_depend_on_the_listing() -> None:
    digits = Digits()
    reverse = Part(digits, tuple(range(500))[::-1])
    a, b = draw(digits, "a", 5), draw(reverse, "a", 5)
    assert a.digest == b.digest
    ours, theirs = (
        views.load(digits, a.positions, View(32)),
        views.load(reverse, b.positions, View(32)),
    )
    assert (ours == theirs).all()


def test_too_large_a_draw_names_the_class(imagenet: Path) -> None:
    with pytest.raises(UserError, match=r"per_class=51 takes more .* class '0' has \(50\)"):
        draw(Digits(), "many", 51)
    images = open_imagenet(str(imagenet / "flat"))  # 997 of its classes have no image
    assert len(draw(images, "two", per_class=2).ids) == 6
    with pytest.raises(UserError, match=r"take per_class=2, or all images"):
        draw(images, "three", per_class=3)


def test_a_manifest_gives_the_same_images(imagenet: Path) -> None:
    folders, flat = (open_imagenet(str(imagenet / name)) for name in ("folders", "flat"))
    file = imagenet / "manifest.json"
    drawn = draw(flat, "tenth", fraction=0.5)
    file.write_text(json.dumps({"dataset": "imagenet", **drawn.manifest()}))
    assert from_manifest(flat, file, "imagenet") == drawn
    assert from_manifest(folders, file, "imagenet").digest == drawn.digest
    # Among the folders' own three classes labels are others.
    own = open_imagenet(str(imagenet / "folders"), classes="own")
    with pytest.raises(UserError, match=r"has 1000 classes \['n01440764', .*, the dataset 3 "):
        from_manifest(own, file, "imagenet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "birds"}, "is a manifest of dataset 'birds', not 'imagenet'"),
        ({"labels": [1, 2, 3]}, "does not fit its own hash"),
        ({"ids": None}, "cannot be read .*; expected a manifest"),
        ({"skipped": [{"id": "x"}]}, "cannot be read .*; expected a manifest"),
        (None, "cannot be read .*; expected a manifest"),
    ],
)
def test_a_wrong_manifest(imagenet: Path, change: dict | None, message: str) -> None:
    images = open_imagenet(str(imagenet / "folders"))
    file = imagenet / "manifest.json"
    good = {"dataset": "imagenet", **draw(images, "few", per_class=1).manifest()}
    file.write_text("{" if change is None else json.dumps({**good, **change}))
    with pytest.raises(UserError, match=message):
        from_manifest(images, file, "imagenet")


def test_images_that_are_gone_or_others_than_the_manifest_names(imagenet: Path) -> None:
    root, file = str(imagenet / "folders"), imagenet / "manifest.json"
    images = open_imagenet(root)
    before = draw(images, "full")
    file.write_text(json.dumps(before.manifest()))
    fourth = next((imagenet / "folders").rglob("*_00000004.JPEG"))
    picture(fourth, 99)
    assert draw(images, "full").digest != before.digest
    assert fingerprint(images) != fingerprint(open_imagenet(str(imagenet / "bare")))
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000004\.JPEG is another image"):
        from_manifest(images, file, "imagenet")
    fourth.unlink()
    with pytest.raises(UserError, match="names 1 images that are not in the dataset, such as IL"):
        from_manifest(open_imagenet(root), file, "imagenet")


def test_further_classes_make_another_subset(imagenet: Path) -> None:
    root = str(imagenet / "bare")
    few = draw(open_imagenet(root, classes="own"), "full")
    picture(imagenet / "bare" / WNIDS[999] / val_name(7))
    more = open_imagenet(root, classes="own")
    chosen = draw(Part(more, tuple(range(6))), "full")
    assert chosen.ids == few.ids and chosen.labels == few.labels
    assert chosen.digest != few.digest
