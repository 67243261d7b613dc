"""Noise that is nobody's: the control for an attack without gradient."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from netkin.attacks.noise import generator
from netkin.attacks.units import fraction


class SignNoise:
    """Moves each channel of each pixel by eps up or down, by the toss of a coin.

    As long in L-infinity as any attack's perturbation can be, and drawn without looking at the
    model: what similarity remains under it is not of gradients, but of how brittle two models are.

    Args:
        eps: length of the step, in pixels of [0, 1]; a number or a text such as "8/255".
        seed: of the coins, which are tossed per image from `seed` and the image's key.
    """

    def __init__(self, eps: float | str = "8/255", seed: int = 0):
        self.eps = fraction(eps, "attack.eps")
        self.seed = seed

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """See `netkin.attacks.Attack`."""
        shape = pixels.shape[1:]
        coins = np.stack([generator(self.seed, key).integers(2, size=shape) for key in keys])
        signs = torch.from_numpy(2 * coins - 1).to(pixels)
        return (pixels + self.eps * signs).clamp_(0, 1)
