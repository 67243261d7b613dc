"""The order of training images and their augmentation depend on nothing but their keys."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import auto_augment

from netkin.data.digits import Digits
from netkin.data.images import Images
from netkin.training.data import Augmented, Draw, Draws, posterize, seeded, training_transform
from netkin.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=8, lr=1e-3)


def order(n: int, recipe: Recipe, epoch: int, rank: int = 0, ranks: int = 1) -> list[Draw]:
    draws = Draws(cast(Images, SimpleNamespace(ids=range(n))), recipe, rank, ranks)
    draws.epoch = epoch
    listed = list(draws)
    assert len(listed) == len(draws)
    return listed


@given(
    n=st.integers(8, 300),
    ranks=st.integers(1, 4),
    repeats=st.sampled_from([1, 3]),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_all_ranks_together_draw_what_one_draws(
    n: int, ranks: int, repeats: int, seed: int, epoch: int
) -> None:
    recipe = replace(RECIPE, repeats=repeats, seed=seed)
    single = order(n, recipe, epoch)
    parts = [order(n, recipe, epoch, rank, ranks) for rank in range(ranks)]
    dealt = [draw for step in zip(*parts, strict=True) for draw in step]
    same = min(len(single), len(dealt))
    assert dealt[:same] == single[:same]
    assert abs(len(single) - len(dealt)) < ranks
    if repeats == 1:
        assert sorted(draw.image for draw in single) == list(range(n))


def test_repeated_augmentation_as_in_deit() -> None:
    """Three copies of an image one after another, so many images that an epoch keeps its length,
    and no copy like another."""
    epoch_draws = order(1000, replace(RECIPE, repeats=3), epoch=2)
    assert len(epoch_draws) == 1000 // 256 * 256
    images = np.array([draw.image for draw in epoch_draws])
    assert (images[: 255 * 3].reshape(-1, 3) == images[: 255 * 3 : 3, None]).all()
    assert len(set(images)) == len(epoch_draws) // 3
    assert len({draw.position for draw in epoch_draws}) == len(epoch_draws)


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(draw.image for draw in order(50, replace(RECIPE, seed=seed), epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.fixture(scope="module")
def augmented() -> Augmented:
    half = torch.full((3, 1, 1), 0.5)
    augmentation = {"auto_augment": "rand-m9-mstd0.5-inc1", "hflip": 0.5}
    recipe = replace(RECIPE, augmentation=augmentation)
    return Augmented(Digits("train"), recipe, 32, half, half)


def test_a_draw_is_the_same_whatever_was_drawn_before(augmented: Augmented) -> None:
    draw = Draw(image=7, epoch=3, position=11)
    first, label = augmented[draw]
    seeded(5)
    assert (augmented[Draw(8, 0, 0)][0] != first).any()
    again, _ = augmented[draw]
    assert (first == again).all() and label == augmented.labels[7]
    others = [augmented[draw._replace(epoch=e, position=p)][0] for e, p in ((3, 12), (4, 11))]
    assert all((first != other).any() for other in others)


def test_augmentation_of_the_highest_magnitude() -> None:
    """timm calls Pillow with no bit to keep, which it rejects from version 12 on."""
    half = torch.full((3, 1, 1), 0.5)
    recipe = replace(RECIPE, augmentation={"auto_augment": "rand-m10-n6-inc1"})
    images = Augmented(Digits("train"), recipe, 32, half, half)
    assert any((images[Draw(i, 0, i)][0] == 0).all() for i in range(60))


def test_timm_stays_as_it_is() -> None:
    """The black image is of our transform alone, under each of timm's kinds of policy."""
    for policy in ("rand-m10-inc1", "augmix-m10", "original", "v0"):
        transform: Any = training_transform(32, {"auto_augment": policy})
        (step,) = (s for s in transform.transforms if hasattr(s, "ops") or hasattr(s, "policy"))
        operations = getattr(step, "ops", None) or [op for ops in step.policy for op in ops]
        functions = {op.aug_fn for op in operations if "Posterize" in op.name}
        assert functions == {posterize}, policy
    named = {fn for name, fn in auto_augment.NAME_TO_OP.items() if "Posterize" in name}
    assert named == {auto_augment.posterize}


def test_erasing_is_normal_noise_of_the_normalised_image() -> None:
    mean, std = torch.full((3, 1, 1), 0.3), torch.full((3, 1, 1), 0.2)
    recipe = replace(RECIPE, erasing=1.0, augmentation={"no_aug": True})
    images = Augmented(Digits("train"), recipe, 32, mean, std)
    clean = Augmented(Digits("train"), replace(recipe, erasing=0.0), 32, mean, std)
    noise = []
    for place in range(60):
        draw = Draw(place, 0, place)
        erased, original = images[draw][0], torch.from_numpy(np.asarray(clean[draw][0])) / 255
        changed = (erased - original).abs() > 1e-6
        share = changed.any(dim=0).float().mean().item()
        assert 0.005 < share < 0.4  # 2% to a third of the image
        noise.append(((erased - mean) / std)[changed])
    values = torch.cat(noise)
    assert values.mean().abs() < 0.05 and (values.std() - 1).abs() < 0.05


def test_seeding_covers_all_generators() -> None:
    numbers = []
    for key in ((1, 2), (1, 2), (2, 1)):
        seeded(*key)
        numbers.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert numbers[0] == numbers[1]
    assert all(a != b for a, b in zip(numbers[0], numbers[2], strict=True))
