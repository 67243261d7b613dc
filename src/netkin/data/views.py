"""What a model sees of an image: timm's own resize and crop, as 8-bit pixels."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from netkin.data.images import Images


@dataclass(frozen=True)
class View:
    """How a model's images are cut: models with equal views see the same pixels.

    input_size is the height and width in pixels; the other three are timm's.
    """

    input_size: int
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bicubic"

    def transform(self) -> Callable:
        """PIL image -> uint8 array [3, H, W]."""
        from timm.data import create_transform

        return cast(Callable, create_transform(use_prefetcher=True, **asdict(self)))


def load(images: Images, positions: Sequence[int], view: View) -> Tensor:
    """Images at some positions of a dataset through a view, uint8 [n, 3, H, W]."""
    transform = view.transform()
    pixels = [np.asarray(transform(images.load(i))) for i in positions]
    return torch.from_numpy(np.stack(pixels))
