"""From an image file of any kind to 8-bit RGB, or an error that names it."""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from netkin.errors import UserError

STAMPED = 16 * 1024
LONGEST = 100
"""Sides longer than this many times the other are refused: resized, they would fill the memory."""


class UnreadableImage(UserError):
    """An image that cannot be decoded; `dataset.on_error=skip` leaves it out."""

    def __init__(self, image_id: str, reason: str, within: str = ""):
        super().__init__(
            f"image {image_id}{f' in {within}' if within else ''} is unreadable ({reason}); mend "
            "or remove it, or leave such images out with dataset.on_error=skip"
        )
        self.image_id, self.reason, self.within = image_id, reason, within

    def __reduce__(self) -> tuple:
        return UnreadableImage, (self.image_id, self.reason, self.within)


def decode(image_id: str, source: Path | Callable[[], bytes], within: str = "") -> Image.Image:
    """An image as 8-bit RGB, from a file or from its bytes; `within` says where, for errors.

    Grey, palette, CMYK and alpha images are converted as PIL and timm do (alpha is dropped);
    16-bit grey is scaled to 8 bits, which PIL's own conversion would clip. Raises UnreadableImage.
    """
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source())) as image:
            image.load()
            converted = rgb(image)
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,  # what PIL raises for a broken PNG
        ValueError,
        RuntimeError,  # AVIF
        NotImplementedError,  # DDS
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(image_id, reason, within) from None
    width, height = converted.size
    if max(width, height) > LONGEST * min(width, height):
        reason = f"{width} x {height} pixels is too narrow to be resized"
        raise UnreadableImage(image_id, reason, within)
    return converted


def stamp(source: Path | bytes) -> str:
    """What tells an image file from another of its name: a hash of its size and first 16 KiB."""
    if isinstance(source, bytes):
        size, head = len(source), source[:STAMPED]
    else:
        with source.open("rb") as file:
            head = file.read(STAMPED)
            size = source.stat().st_size
    return hashlib.sha256(f"{size} ".encode() + head).hexdigest()[:20]


def rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB."""
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
