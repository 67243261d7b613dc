"""What every dataset is to netkin: ids, labels, and images from their bytes to 8-bit RGB."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from netkin.errors import Unreadable, UserError

# PIL warns of images from 89 million pixels on, which are merely large (half a GB), with a path of
# its own code; it refuses those of twice as many, which `decode` reports.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

STAMPED = 16 * 1024
LONGEST = 100
"""Sides longer than this many times the other are refused: resized, they would fill the memory."""
RASTER = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded, whatever a file is called. Others that PIL knows run an external
program (PostScript starts Ghostscript) or are no photographs."""
WHITE = 65535
"""The value of white in 16-bit images, unless a dataset has another."""
UNREADABLE = "unreadable"
"""The stamp of a file that cannot be opened: decoding reports the error, as of all such images."""


class Images(Protocol):
    """Labelled images, in a fixed order.

    An id names the image on any machine (a path within the dataset, a key), never its position.
    Labels are class indices in [0, len(classes)). Notes are sentences about how the dataset was
    read that its user should know: files that were left out, how labels were understood.
    """

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def stamp(self, index: int) -> str:
        """Tells the image at a position from another of the same id; cheap."""
        ...

    def load(self, index: int) -> Image.Image:
        """The image at a position, as 8-bit RGB. Raises UnreadableImage."""
        ...


class UnreadableImage(Unreadable):
    """An image that cannot be decoded: its id, why, and the archive, table or folder it is in."""

    def __init__(self, image_id: str, reason: str, within: str = ""):
        super().__init__(image_id, reason, within)
        self.image_id, self.reason, self.within = image_id, reason, within

    def __str__(self) -> str:
        place = f" in {self.within}" if self.within else ""
        return (
            f"image {self.image_id}{place} is unreadable ({self.reason}); repair or remove it, or "
            "leave out images that cannot be read"
        )


@dataclass(frozen=True, slots=True)
class File:
    """A file below a folder, or `size` bytes of an archive from `offset` on."""

    within: str
    path: str = ""
    offset: int = 0
    size: int | None = None

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        """(its size in bytes, its first `most` bytes, or all). Raises OSError."""
        with open(os.path.join(self.within, self.path) if self.path else self.within, "rb") as file:
            size = os.fstat(file.fileno()).st_size if self.size is None else self.size
            file.seek(self.offset)
            return size, file.read(size if most is None else min(size, most))


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a table of `datasets`: its column holds encoded bytes, or the path of a file."""

    table: Any
    column: str
    index: int
    within: str = ""

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        cell = self.table[self.index][self.column]
        content = cell["bytes"] or Path(cell["path"]).read_bytes()
        return len(content), content[:most]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of a listing: every layout of files, archives and tables is read into one of these.

    Attributes:
        ids, labels, sources: one an image, in the same order.
        classes: names; a label is an index of them.
        notes: see `Images`.
        white: the value of white in 16-bit grey images.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]
    sources: Sequence[File | Row]
    notes: tuple[str, ...] = ()
    white: int = WHITE

    def stamp(self, index: int) -> str:
        """Of the file's size and head, and how it is read; `UNREADABLE` where it cannot be."""
        try:
            of_file = stamp(*self.sources[index].read(STAMPED))
        except OSError:
            return UNREADABLE
        return of_file if self.white == WHITE else f"{of_file}/{self.white}"

    def load(self, index: int) -> Image.Image:
        source = self.sources[index]
        return decode(self.ids[index], lambda: source.read()[1], source.within, self.white)

    def of_range(self, white_level: int | None) -> "Labelled":
        """The same images with another value of white, and a note where they are nearly black: no
        pixel of the 20 that are looked at is above a sixteenth of the range, such as of 12-bit
        values in 16-bit files. Raises UserError for a level that no 16-bit image has."""
        white = WHITE if white_level is None else white_level
        if not isinstance(white, int) or not 1 <= white <= WHITE:
            raise UserError(f"white_level must be a whole number of 1 to {WHITE}, got {white!r}")
        images, looked = replace(self, white=white), 0
        for i in range(0, len(self.ids), -(-len(self.ids) // 20)):
            with suppress(UnreadableImage):
                if np.asarray(images.load(i)).max() > 16:
                    return images
                looked += 1
        note = (
            f"the images are nearly black: of {looked} that were looked at, no pixel is above a "
            "sixteenth of white; if they are 16-bit grey images of fewer bits, set white_level, "
            "such as 4095 for 12 bits"
        )
        return replace(images, notes=(*self.notes, note)) if looked else images

    def with_classes(self, classes: Sequence[str]) -> "Labelled":
        """The same images with labels that index other classes, which hold each image's own."""
        index = {name: k for k, name in enumerate(classes)}
        labels = [index[self.classes[label]] for label in self.labels]
        return replace(self, labels=labels, classes=list(classes))


class Part:
    """Some images of a dataset, by their positions in it."""

    def __init__(self, images: Images, positions: Sequence[int]):
        self.images, self.positions = images, tuple(positions)
        self.classes, self.notes = images.classes, images.notes
        ids, labels = images.ids, images.labels
        self.ids = [ids[i] for i in self.positions]
        self.labels = [labels[i] for i in self.positions]

    def stamp(self, index: int) -> str:
        return self.images.stamp(self.positions[index])

    def load(self, index: int) -> Image.Image:
        return self.images.load(self.positions[index])


def stamp(size: int, head: bytes) -> str:
    """The stamp of an image file, which differs between files of one name: a hash of its size in
    bytes and its first 16 KiB (`head` may be longer)."""
    return hashlib.sha256(f"{size} ".encode() + head[:STAMPED]).hexdigest()[:20]


def decode(
    image_id: str, read: Callable[[], bytes], within: str = "", white: int = WHITE
) -> Image.Image:
    """An image as 8-bit RGB, from its encoded bytes; errors name `within`.

    Grey, palette, CMYK and alpha images are converted as PIL and timm do (alpha is dropped);
    16-bit grey is scaled from 0 to `white`, which PIL's own conversion would clip. Raises
    UnreadableImage for a file that is missing, that is no raster image (see `RASTER`), that is
    damaged, that has values above `white`, or more pixels than PIL's limit against bombs.
    """
    try:
        with Image.open(BytesIO(read()), formats=_formats()) as image:
            image.load()
            converted = rgb(image, white)
        width, height = converted.size
        if max(width, height) > LONGEST * min(width, height):
            raise ValueError(f"{width} x {height} pixels is too narrow to be resized")
        return converted
    except MemoryError:
        raise  # of the machine, not of the image
    except Image.UnidentifiedImageError:
        reason = "not an image of a raster format, such as JPEG, PNG, TIFF or WebP"
    except Exception as error:  # each of PIL's formats has its own
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        reason = text or type(error).__name__
    raise UnreadableImage(image_id, reason, within)


@cache
def _formats() -> tuple[str, ...]:
    """Those of the raster formats that this build of PIL reads."""
    Image.init()
    return tuple(name for name in RASTER if name in Image.OPEN)


def rgb(image: Image.Image, white: int = WHITE) -> Image.Image:
    """Any PIL image as 8-bit RGB. Raises ValueError for pixels of unknown range."""
    if image.mode.startswith("I"):  # 16-bit grey, whatever its byte order
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > white:
            raise ValueError(f"values of {values.min()} to {values.max()}, expected 0 to {white}")
        image = Image.fromarray(np.rint(values / (white / 255)).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
