"""The 8-bit grid: the images that are stored are those that targets are evaluated on."""

import math

import torch
from torch import Tensor

from netkin.errors import UserError


def levels(eps: float) -> int:
    """Grey levels (of 255) by which an 8-bit pixel may differ within the ball of radius eps.

    Raises UserError where that is none.
    """
    bound = math.floor(eps * 255 + 1e-6)
    if bound < 1:
        raise UserError(
            f"eps={eps:.6g} is below 1/255, so 8-bit adversarial images would equal the clean "
            "ones; use a larger eps, or dtype=float32"
        )
    return bound


def to_grid(adversarial: Tensor, clean: Tensor, eps: float | None) -> Tensor:
    """Adversarial pixels in [0, 1] rounded to the 8-bit grid within eps of the clean image.

    Args:
        adversarial: [B, 3, H, W] float in [0, 1].
        clean: [B, 3, H, W] uint8.
        eps: radius of the ball in pixels of [0, 1]; None for an attack without one.

    Returns:
        [B, 3, H, W] uint8.
    """
    rounded = (adversarial * 255).round().to(torch.int16)
    if eps is not None:
        difference = rounded - clean.to(torch.int16)
        bound = levels(eps)
        rounded = clean.to(torch.int16) + difference.clamp_(-bound, bound)
    return rounded.clamp_(0, 255).to(torch.uint8)
