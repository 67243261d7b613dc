"""What every dataset is to netkin: ids, labels and a way to load one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from PIL import Image


class Images(Protocol):
    """Labelled images, in a fixed order.

    An id names the image on any machine (a path within the dataset, a key), never its position.
    Labels are class indices in [0, len(classes)).
    """

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    def stamp(self, index: int) -> str:
        """Tells the image at a position from another of the same id; cheap."""
        ...

    def load(self, index: int) -> Image.Image:
        """The image at a position, as 8-bit RGB."""
        ...


@dataclass(frozen=True)
class Part:
    """Some images of a dataset, by their positions in it."""

    whole: Images
    positions: tuple[int, ...]

    @property
    def classes(self) -> Sequence[str]:
        return self.whole.classes

    @cached_property
    def _ids(self) -> list[str]:
        ids = self.whole.ids
        return [ids[i] for i in self.positions]

    @cached_property
    def _labels(self) -> list[int]:
        labels = self.whole.labels
        return [labels[i] for i in self.positions]

    @property
    def ids(self) -> list[str]:
        return self._ids

    @property
    def labels(self) -> list[int]:
        return self._labels

    def stamp(self, index: int) -> str:
        return self.whole.stamp(self.positions[index])

    def load(self, index: int) -> Image.Image:
        return self.whole.load(self.positions[index])
