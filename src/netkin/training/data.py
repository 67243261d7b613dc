"""Training images under augmentation; the seed, the epoch and the position in it fix each draw.

No draw depends on the process that makes it, on earlier draws or on the number of devices. So an
interrupted training continues as if it had not been interrupted, and several devices train on the
same images as one.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from netkin.data.images import Images
from netkin.errors import UserError
from netkin.runner import Loading
from netkin.training.recipe import Recipe

SELECTED = 256
"""With repeats, an epoch's length is rounded down to a multiple of this, as in DeiT's code."""


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, except that no bit to keep gives a black image: RandAugment's highest magnitude keeps
    none, which Pillow rejects from version 12 on."""
    return auto_augment.posterize(image, bits_to_keep) if bits_to_keep else image.point(lambda _: 0)


def training_transform(size: int, augmentation: Mapping[str, Any]) -> Callable[[Image.Image], Any]:
    """timm's training transform of a PIL image to uint8 [3, size, size], with `posterize` above.

    Args:
        size: pixels a side.
        augmentation: further arguments of `timm.data.create_transform`.
    """
    transform = cast(
        Any, create_transform(size, is_training=True, use_prefetcher=True, **augmentation)
    )
    for step in getattr(transform, "transforms", ()):
        policy = getattr(step, "policy", ())  # AutoAugment: sequences of operations
        for operation in [*getattr(step, "ops", ()), *itertools.chain(*policy)]:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return transform


def seeded(*key: int) -> int:
    """Seed Python's, numpy's and torch's (CPU) global generators by a key; returns the seed."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:7], "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed, which also seeds every GPU: a tenth of a millisecond an image.
    torch.default_generator.manual_seed(seed)
    return seed


class Draw(NamedTuple):
    """One image of an epoch: its index in the dataset, the epoch, its position in the epoch."""

    image: int
    epoch: int
    position: int


class Draws(Sampler[Draw]):
    """The images of an epoch for one rank, in an order that depends on the seed and the epoch.

    Ranks take turns, so that a step's images over all ranks do not depend on the number of ranks.

    Args:
        images: the training images.
        recipe: its seed, and repeats of an image in an epoch.
        rank, ranks: of this process, of how many.

    `epoch` is set before each epoch.
    """

    def __init__(self, images: Images, recipe: Recipe, rank: int = 0, ranks: int = 1):
        self.recipe, self.rank, self.ranks = recipe, rank, ranks
        self.epoch = 0
        self._order = RepeatAugSampler(
            cast(Dataset, range(len(images.ids))),
            num_replicas=ranks,
            rank=rank,
            num_repeats=recipe.repeats,
            selected_round=SELECTED if recipe.repeats > 1 else 0,
        )

    def __iter__(self) -> Iterator[Draw]:
        # timm's sampler uses its epoch as the seed of the order only.
        digest = hashlib.sha256(f"{self.recipe.seed} {self.epoch}".encode()).digest()
        self._order.set_epoch(int.from_bytes(digest[:7], "little"))
        for i, image in enumerate(self._order):
            yield Draw(int(image), self.epoch, self.rank + self.ranks * i)

    def __len__(self) -> int:
        return len(self._order)


class Augmented(Dataset):
    """Training images under random augmentation with their labels.

    An image is uint8 [3, size, size], or, with random erasing, float32 in [0, 1] outside the erased
    part, which is standard normal noise in units of the normalised image.

    Args:
        images: the training images.
        recipe: its seed, augmentation and erasing.
        size: pixels a side.
        mean, std: of the model's normalisation, [3, 1, 1].
    """

    def __init__(self, images: Images, recipe: Recipe, size: int, mean: Tensor, std: Tensor):
        self.images, self.recipe, self.labels = images, recipe, images.labels
        self.transform = training_transform(size, recipe.augmentation)
        self.erase = RandomErasing(recipe.erasing, mode="pixel", device="cpu")
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> tuple[Any, int]:
        seeded(self.recipe.seed, draw.epoch, draw.position)
        pixels = self.transform(self.images.load(draw.image))
        if self.recipe.erasing:
            normalised = (torch.from_numpy(np.asarray(pixels)) / 255 - self.mean) / self.std
            pixels = self.erase(normalised) * self.std + self.mean
        return pixels, self.labels[draw.image]


def batches(
    images: Augmented, draws: Draws, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """An epoch's batches ([B, 3, size, size], labels [B] int64) for one rank, without the last
    incomplete one; `workers` processes augment, with 0 this one.

    Raises UserError when an epoch does not fill one batch.
    """
    size = draws.recipe.batch_size
    if len(draws) < size:
        devices = f" on each of {draws.ranks} devices" if draws.ranks > 1 else ""
        raise UserError(
            f"the recipe's batch_size={size}{devices} is larger than the training set "
            f"({len(images)} images)"
        )
    return Loading(
        images,
        size,
        sampler=draws,
        drop_last=True,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def as_pixels(batch: Tensor) -> Tensor:
    """A batch of `Augmented` [B, 3, H, W] as float32 in [0, 1]."""
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch
