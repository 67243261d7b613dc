"""The passes over models: decode, predict (clean, under noise, through views), craft, transfer."""

from dataclasses import dataclass, replace
from typing import Any

from netkin.model import Model


@dataclass(frozen=True)
class Item:
    """What a pass has still to do for one model, or for a shard of images.

    Attributes:
        name: what the display calls it.
        model: of the item; None where images are decoded.
        todo: what is left: shards that are crafted, sources whose images a target is evaluated on,
            changes of the images that a model predicts on, views of a decoded shard.
        images: evaluate on the subset's first images alone; None for all.
        shard: the shard that is decoded.
    """

    name: str
    model: Model | None = None
    todo: tuple[Any, ...] = ()
    images: int | None = None
    shard: int = 0

    def split(self, parts: int) -> "list[Item]":
        """What is left, dealt to at most `parts` processes."""
        dealt = [self.todo[i::parts] for i in range(min(parts, len(self.todo)))]
        if len(dealt) == 1:
            return [self]
        return [
            replace(self, todo=todo, name=f"{self.name}, part {i} of {len(dealt)}")
            for i, todo in enumerate(dealt, start=1)
        ]

    def of_model(self) -> Model:
        """The model of an item that has one."""
        assert self.model is not None
        return self.model

    def left(self, todo: tuple[Any, ...]) -> "Item | None":
        """The item reduced to what another process has taken; None where that is nothing."""
        return replace(self, todo=todo) if todo else None
