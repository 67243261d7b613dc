"""An image's bytes, and the way from these to 8-bit RGB, or to an error that names the image."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from netkin.errors import Unreadable

STAMPED = 16 * 1024
LONGEST = 100
"""Sides longer than this many times the other are refused: resized, they would fill the memory."""
RASTER = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded, whatever a file is called. Others that PIL knows run an external
program (PostScript starts Ghostscript) or are no photographs."""
UNREADABLE = "unreadable"
"""The stamp of a file that cannot be opened: decoding reports the error, as of all such images."""


class UnreadableImage(Unreadable):
    """An image that cannot be decoded.

    Attributes:
        image_id: of the dataset.
        reason: why.
        within: the archive, table or folder that it is in, if any.
    """

    def __init__(self, image_id: str, reason: str, within: str = ""):
        super().__init__(
            f"image {image_id}{f' in {within}' if within else ''} is unreadable ({reason}); repair "
            "or remove it, or leave out images that cannot be read"
        )
        self.image_id, self.reason, self.within = image_id, reason, within

    def __reduce__(self) -> tuple:
        return UnreadableImage, (self.image_id, self.reason, self.within)


class Source:
    """The place of one encoded image, which may be sent to another process."""

    __slots__ = ()

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        """(its size in bytes, its first `most` bytes, or all). Raises OSError."""
        raise NotImplementedError

    @property
    def within(self) -> str:
        """The archive, table or folder, for errors."""
        return ""

    def load(self, image_id: str) -> Image.Image:
        """The image as 8-bit RGB. Raises UnreadableImage under the id."""
        return decode(image_id, lambda: self.read()[1], self.within)

    def stamp(self) -> str:
        """See `stamp`; `UNREADABLE` where it cannot be opened."""
        try:
            return stamp(*self.read(STAMPED))
        except OSError:
            return UNREADABLE


@dataclass(frozen=True, slots=True)
class File(Source):
    """A file of its own, below the folder `root`."""

    root: str
    path: str

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        with Path(self.root, self.path).open("rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(most)

    @property
    def within(self) -> str:
        return self.root


@dataclass(frozen=True, slots=True)
class Slice(Source):
    """Some bytes of a tar file, from `offset` on."""

    archive: str
    offset: int
    size: int

    def read(self, most: int | None = None) -> tuple[int, bytes]:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return self.size, file.read(self.size if most is None else min(self.size, most))

    @property
    def within(self) -> str:
        return self.archive


def decode(image_id: str, read: Callable[[], bytes], within: str = "") -> Image.Image:
    """An image as 8-bit RGB, from its encoded bytes; errors name `within`.

    Grey, palette, CMYK and alpha images are converted as PIL and timm do (alpha is dropped);
    16-bit grey is scaled to 8 bits, which PIL's own conversion would clip. Raises UnreadableImage
    for a file that is missing, that is no raster image (see `RASTER`), that is damaged, or that
    has more pixels than PIL's limit against decompression bombs.
    """
    try:
        with Image.open(BytesIO(read()), formats=_formats()) as image:
            image.load()
            converted = rgb(image)
    except MemoryError:
        raise  # of the machine, not of the image
    except Exception as error:  # each of PIL's formats has its own
        raise UnreadableImage(image_id, _reason(error), within) from None
    width, height = converted.size
    if max(width, height) > LONGEST * min(width, height):
        reason = f"{width} x {height} pixels is too narrow to be resized"
        raise UnreadableImage(image_id, reason, within)
    return converted


@cache
def _formats() -> tuple[str, ...]:
    """Those of the raster formats that this build of PIL reads."""
    Image.init()
    return tuple(name for name in RASTER if name in Image.OPEN)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a raster format, such as JPEG, PNG, TIFF or WebP"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def stamp(size: int, head: bytes) -> str:
    """The stamp of an image file, which differs between files of one name: a hash of its size in
    bytes and its first 16 KiB (`head` may be longer)."""
    return hashlib.sha256(f"{size} ".encode() + head[:STAMPED]).hexdigest()[:20]


def rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB. Raises ValueError for pixels of unknown range."""
    if image.mode.startswith("I"):  # 16-bit grey, whatever its byte order
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values of {values.min()} to {values.max()} fit no 16-bit image")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
