"""scikit-learn's digits: 1,797 real scans of handwritten digits, shipped with the package."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from netkin.data.images import stamp
from netkin.errors import UserError

SIDE = 32
"""Pixels a side, up from 8: four pixels for each of the scan's."""


@dataclass(frozen=True)
class Digits:
    """The train or test part of the digits as 32 x 32 8-bit RGB images.

    The split is stratified by class and fixed by `seed`. An id is the image's number in
    scikit-learn's own order, such as ``digits/0042``.

    Attributes:
        split: train or test.
        test_size: images of the test part, of 1,797.
        seed: of the split.
        per_class: images of each class at most, drawn by `seed`; None is all. With few of them the
            training part is a harder task.
    """

    split: str = "test"
    test_size: int = 500
    seed: int = 0
    per_class: int | None = None
    classes = tuple("0123456789")
    notes = ()

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise UserError(f"the digits have the splits train and test, not {self.split!r}")
        if not 10 <= self.test_size <= 1787:
            raise UserError(f"test_size of the digits must be in 10..1787, got {self.test_size}")
        if self.per_class is not None and self.per_class < 1:
            raise UserError(f"per_class of the digits must be 1 or more, got {self.per_class}")

    @property
    def ids(self) -> list[str]:
        """Such as digits/0042."""
        return [f"digits/{number:04d}" for number in _numbers(self)]

    @property
    def labels(self) -> list[int]:
        return [int(_scans()[1][number]) for number in _numbers(self)]

    def stamp(self, index: int) -> str:
        """Tells the scan at a position from another of the same id."""
        pixels = self.load(index).tobytes()
        return stamp(len(pixels), pixels)

    def load(self, index: int) -> Image.Image:
        """The scan at a position, 32 x 32 8-bit RGB."""
        return _scans()[0][_numbers(self)[index]].copy()


@cache
def _scans() -> tuple[list[Image.Image], np.ndarray]:
    """(1,797 images, 32 x 32 RGB; labels, [1797])."""
    digits: Any = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8] in 0..255
    scans = [Image.fromarray(scan) for scan in grey]
    size = (SIDE, SIDE)
    return [s.resize(size, Image.Resampling.BICUBIC).convert("RGB") for s in scans], digits.target


@cache
def _numbers(part: Digits) -> list[int]:
    """The images of a part by their numbers, in order."""
    labels, test_size, seed = _scans()[1], part.test_size, part.seed
    train, test = train_test_split(
        np.arange(len(labels)), test_size=test_size, stratify=labels, random_state=seed
    )
    numbers = sorted(map(int, test if part.split == "test" else train))
    if part.per_class is None:
        return numbers
    drawn = np.random.default_rng(seed).permutation(numbers)
    few = [drawn[labels[drawn] == digit][: part.per_class] for digit in range(10)]
    return sorted(map(int, np.concatenate(few)))
