"""Labelled images in memory: arrays, tensors, or the batches of a DataLoader."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from netkin.data.images import stamp
from netkin.errors import UserError

SLACK = 1e-4
"""How far interpolation may leave [0, 1] before pixels are taken to be normalised."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images of one size in memory; see `netkin.data.images.Images`.

    Attributes:
        pixels: [N, C, H, W] uint8, C = 3, or 1 for gray.
        labels: [N], in [0, len(classes)).
        ids: [N].
        classes, notes: see `Images`.
    """

    pixels: NDArray[np.uint8]
    labels: Sequence[int]
    ids: Sequence[str]
    classes: Sequence[str] = ()
    notes: Sequence[str] = ()

    def with_classes(self, classes: Sequence[str]) -> "Arrays":
        """The same images with names of classes. Raises UserError where a label has none."""
        low, high, k = min(self.labels), max(self.labels), len(classes)
        if low < 0 or high >= k:
            from_one = "; they seem to be counted from 1" if low > 0 and high == k else ""
            raise UserError(
                f"labels must be in 0 to {k - 1} for {k} classes, got {low} to {high}{from_one}"
            )
        return replace(self, classes=list(classes))

    def stamp(self, index: int) -> str:
        """Tells the image at a position from another of the same id, by all of its pixels."""
        pixels = np.ascontiguousarray(self.pixels[index]).tobytes()
        return stamp(len(pixels), hashlib.sha256(pixels).digest())

    def load(self, index: int) -> Image.Image:
        """The image at a position, as 8-bit RGB."""
        pixels = self.pixels[index]
        if len(pixels) == 1:
            return Image.fromarray(pixels[0]).convert("RGB")
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def read(images: Any, labels: Any, ids: Sequence[str] | None = None) -> Arrays:
    """Images in memory, without names of classes.

    Args:
        images: [N, C, H, W] with C = 3, or 1 for gray: floating in [0, 1], which is rounded to the
            8-bit grid, or uint8; or, without labels, batches (images, labels).
        labels: [N] whole numbers; None where images are batches.
        ids: a text an image, unique; its number, unless given.

    Raises UserError where shapes, types or ranges are wrong.
    """
    if labels is None:
        pixels, numbers = _batches(images)
    elif isinstance(images, Iterable | Dataset) and not (
        isinstance(images, Sequence) or hasattr(images, "__array__")
    ):
        raise UserError(
            f"images are a {type(images).__name__}, whose batches have labels of their own: leave "
            "`labels` out, or give one array [N, 3, H, W] of images"
        )
    else:
        pixels, numbers = _pixels(images), _labels(labels)
    n = len(pixels)
    if len(numbers) != n:
        raise UserError(f"labels must be one an image: {n} images, {len(numbers)} labels")
    if n == 0:
        raise UserError("images must be one or more, got none")
    names = [f"{i:0{len(str(n - 1))}d}" for i in range(n)] if ids is None else list(map(str, ids))
    (name, times), *_ = Counter(names).most_common(1) or [("", 0)]
    if len(names) != n or times > 1:
        problem = f"{name!r} twice" if times > 1 else f"{len(names)} for {n} images"
        raise UserError(f"ids must be unique, and one an image, got {problem}")
    return Arrays(pixels, numbers.tolist(), names)


def _pixels(images: Any) -> NDArray[np.uint8]:
    """[N, C, H, W] uint8 of images as `read` takes them. Raises UserError."""
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = images.float().numpy() if images.is_floating_point() else images.numpy()
    try:
        array = np.asarray(images)
    except ValueError:  # arrays of several sizes
        raise UserError("images must be of one size, an array [N, 3, H, W]") from None
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        last = array.ndim == 4 and array.shape[-1] in (1, 3)
        raise UserError(
            f"images must be an array or tensor [N, 3, H, W] (or [N, 1, H, W] of gray ones), got "
            f"shape {list(array.shape)}"
            + ("; the channels are last: use images.transpose(0, 3, 1, 2)" if last else "")
        )
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8, copy=False)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"images must be floating in [0, 1], or uint8, got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise UserError("images must be finite, got NaN or infinite pixels")
    if low < -SLACK or high > 1 + SLACK:
        hint = (
            "divide them by 255, or give them as uint8"
            if low >= 0 and 2 < high <= 255
            else "give them without normalisation, and mean and std to netkin.Model(net, mean=..., "
            "std=...)"
        )
        raise UserError(f"images must be in [0, 1], got {low:.4g} to {high:.4g}; {hint}")
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)


def _labels(labels: Any) -> NDArray[np.int64]:
    """[N] class indices. Raises UserError."""
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise UserError(
            f"labels must be class indices, whole numbers of shape [N], got {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    return array.astype(np.int64)


def _batches(batches: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images and labels of a DataLoader, or of any iterable of pairs."""
    if isinstance(batches, torch.Tensor | np.ndarray) or not isinstance(batches, Iterable):
        raise UserError(
            "labels must be given with an array of images; without labels, images must be batches "
            f"(images, labels), such as a DataLoader, got a {type(batches).__name__}"
        )
    pixels, labels = [], []
    for batch in batches:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            length = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
            raise UserError(
                "images must be batches (images, labels), a tuple or list of two, got a "
                f"{type(batch).__name__}{length}"
            )
        pixels.append(_pixels(batch[0]))
        labels.append(_labels(batch[1]))
    if not pixels:
        raise UserError("images must be one or more, got no batch")
    if len(shapes := {array.shape[1:] for array in pixels}) > 1:
        raise UserError(f"images must be of one size, got {sorted(map(list, shapes))[:3]}")
    return np.concatenate(pixels), np.concatenate(labels)
