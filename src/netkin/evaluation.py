"""What is measured: images, the models' task, and the attack. Nothing here knows a store."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from netkin.attacks import Attack, SignNoise
from netkin.data.images import Images
from netkin.data.subset import Subset
from netkin.errors import and_more
from netkin.zoo.execution import DEFAULT_PRECISION
from netkin.zoo.member import Task


@dataclass(frozen=True)
class Evaluation:
    """Everything that outcomes depend on, apart from the models.

    Attributes:
        images, subset: the dataset, and the images of it that are evaluated.
        task: what models are built for.
        attack: how adversarial images are crafted.
        shard_size: images in a unit of work; a shard is stored whole or not at all.
        dtype: of stored adversarial images, "uint8" or "float32".
        interpolation: for a target of another input size, "bilinear" or "bicubic" (antialiased).
        craft_precision: in which sources compute while they are attacked.
        target_precision: one of TARGET_PRECISIONS, in which targets are evaluated on adversarial
            images. Predictions on clean images and under noise are in float32 whatever it is:
            which images are compared does not depend on it.
    """

    images: Images
    subset: Subset
    task: Task
    attack: Attack
    shard_size: int = 100
    dtype: str = "uint8"
    interpolation: str = "bilinear"
    craft_precision: str = DEFAULT_PRECISION
    target_precision: str = DEFAULT_PRECISION

    @cached_property
    def shards(self) -> list[range]:
        """Positions in the subset, shard by shard."""
        n, size = len(self.subset), self.shard_size
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def shards_of(self, images: int) -> list[range]:
        """The shards that hold the subset's first images."""
        return [shard for shard in self.shards if shard.start < images]

    @cached_property
    def labels(self) -> Tensor:
        return torch.tensor(self.subset.labels)

    def keys(self, source: str, positions: Sequence[int]) -> list[str]:
        """What the random numbers of a source's images are drawn from, beside the attack's seed.

        One key an image, by its position in the subset.
        """
        return [f"{source}\n{self.subset.ids[i]}" for i in positions]

    def image_names(self, positions: Sequence[int]) -> str:
        """The ids of the images at some positions of the subset, for a message; at most five."""
        return and_more([self.subset.ids[i] for i in positions])

    @property
    def has_noise(self) -> bool:
        """Whether there is a control by noise: for attacks that have an eps and are no noise."""
        return self.attack.eps is not None and not isinstance(self.attack, SignNoise)

    def identity(self) -> dict[str, Any]:
        """What results on these images depend on, as JSON."""
        return {"dataset": self.task.dataset, "subset_sha256": self.subset.digest}

    def attack_identity(self) -> dict[str, Any]:
        """What adversarial images depend on besides, as JSON."""
        identity = {**self.attack.identity, "dtype": self.dtype}
        if self.craft_precision != DEFAULT_PRECISION:
            identity["precision"] = self.craft_precision
        return identity

    def transfer_identity(self) -> dict[str, Any]:
        """What outcomes depend on besides, as JSON."""
        identity = {"interpolation": self.interpolation}
        if self.target_precision != DEFAULT_PRECISION:
            identity["precision"] = self.target_precision
        return identity
