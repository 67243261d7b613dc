"""What every dataset is to netkin: ids, labels and a way to load one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from netkin.data.decode import Source


class Images(Protocol):
    """Labelled images, in a fixed order.

    An id names the image on any machine (a path within the dataset, a key), never its position.
    Labels are class indices in [0, len(classes)). Notes are sentences about how the dataset was
    read that its user should know: files that were left out, how labels were understood.
    """

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """An id an image."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """A class index an image."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about how the dataset was read."""
        ...

    def stamp(self, index: int) -> str:
        """Tells the image at a position from another of the same id; cheap."""
        ...

    def load(self, index: int) -> Image.Image:
        """The image at a position, as 8-bit RGB. Raises UnreadableImage."""
        ...


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of a listing: every layout of files, archives and tables is read into one of these.

    Attributes:
        ids, labels, sources: one an image, in the same order.
        classes: names; a label is an index of them.
        notes: see `Images`.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    sources: Sequence[Source]
    notes: tuple[str, ...] = ()

    def stamp(self, index: int) -> str:
        """Tells the image at a position from another of the same id, by its size and head."""
        return self.sources[index].stamp()

    def load(self, index: int) -> Image.Image:
        """The image at a position, as 8-bit RGB. Raises UnreadableImage."""
        return self.sources[index].load(self.ids[index])

    def with_classes(self, classes: Sequence[str]) -> "Labelled":
        """The same images with labels that index other classes, which hold each image's own."""
        place: Mapping[str, int] = {name: k for k, name in enumerate(classes)}
        labels = [place[self.classes[label]] for label in self.labels]
        return replace(self, labels=labels, classes=list(classes))

    def with_notes(self, *notes: str) -> "Labelled":
        """The same images with further notes."""
        return replace(self, notes=(*self.notes, *notes))


class Part:
    """Some images of a dataset, by their positions in it."""

    def __init__(self, images: Images, positions: Sequence[int]):
        self.images, self.positions = images, tuple(positions)
        self.classes, self.notes = images.classes, images.notes
        ids, labels = images.ids, images.labels
        self.ids = [ids[i] for i in self.positions]
        self.labels = [labels[i] for i in self.positions]

    def stamp(self, index: int) -> str:
        """See `Images`."""
        return self.images.stamp(self.positions[index])

    def load(self, index: int) -> Image.Image:
        """See `Images`."""
        return self.images.load(self.positions[index])
