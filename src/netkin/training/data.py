"""Training images under augmentation, each draw fixed by the seed, the epoch and its place in it.

No draw depends on the process that makes it, on what was drawn before or on the number of devices:
training that is interrupted goes on as if it had not been, and several devices see what one sees.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
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
from netkin.training.recipe import Recipe

SELECTED = 256
"""With repeats, an epoch's length is rounded down to a multiple of it, as by DeiT's authors."""


_posterize = auto_augment.posterize


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, but with no bit to keep, as RandAugment asks for at its highest magnitude, a black
    image: Pillow refuses that from version 12 on."""
    return _posterize(image, bits_to_keep) if bits_to_keep else image.point(lambda _: 0)


for _name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
    auto_augment.NAME_TO_OP[_name] = posterize


def seeded(*key: int) -> int:
    """Set Python's, numpy's and torch's (CPU) global generators by a key; returns its seed."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:7], "little")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed, which also turns to every GPU: a tenth of a millisecond an image.
    torch.default_generator.manual_seed(seed)
    return seed


class Draw(NamedTuple):
    """One image of an epoch: its position in the data set, and in the epoch."""

    image: int
    epoch: int
    place: int


class Draws(Sampler[Draw]):
    """The images of an epoch that fall to one rank, in an order of the seed and the epoch.

    Ranks take turns, so that a step's images over all ranks are the same for any number of them.
    The epoch is set by `epoch`.
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
        # Its epoch is but the seed of the order.
        digest = hashlib.sha256(f"{self.recipe.seed} {self.epoch}".encode()).digest()
        self._order.set_epoch(int.from_bytes(digest[:7], "little"))
        for i, image in enumerate(self._order):
            yield Draw(int(image), self.epoch, self.rank + self.ranks * i)

    def __len__(self) -> int:
        return len(self._order)


class Augmented(Dataset):
    """Training images under random augmentation with their labels.

    An image is uint8 [3, size, size], or, with random erasing, float32 in pixels of [0, 1], of
    which the erased part is noise: standard normal, in units of the normalised image, whose mean
    and std are [3, 1, 1].
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        size: int,
        mean: Tensor,
        std: Tensor,
    ):
        self.images, self.recipe, self.labels = images, recipe, images.labels
        self.transform = cast(
            Callable,
            create_transform(size, is_training=True, use_prefetcher=True, **recipe.augmentation),
        )
        self.erase = None
        if recipe.erasing:
            self.erase = RandomErasing(recipe.erasing, mode="pixel", device="cpu")
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> tuple[Any, int]:
        seeded(self.recipe.seed, draw.epoch, draw.place)
        pixels = self.transform(self.images.load(draw.image))
        if self.erase is not None:
            normalised = (torch.from_numpy(np.asarray(pixels)) / 255 - self.mean) / self.std
            pixels = self.erase(normalised) * self.std + self.mean
        return pixels, self.labels[draw.image]


def batches(
    images: Augmented, draws: Draws, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """An epoch's batches for one rank, the last incomplete one dropped.

    Raises UserError when an epoch does not fill one batch.
    """
    size = draws.recipe.batch_size
    if len(draws) < size:
        over = f" over {draws.ranks} devices" if draws.ranks > 1 else ""
        raise UserError(
            f"recipe.batch_size={size}{over} is larger than the training set ({len(images)} images)"
        )
    return DataLoader(
        images,
        size,
        sampler=draws,
        drop_last=True,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def as_pixels(batch: Tensor) -> Tensor:
    """A batch of `Augmented` as float32 in pixels of [0, 1]."""
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch
