"""Controls that use no gradient: noise of the ball's full radius, and no change at all."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from netkin.attacks.base import Attack, Passes, generator
from netkin.attacks.units import fraction, whole_number


class SignNoise(Attack):
    """Changes each channel of each pixel by eps up or down, by the toss of a coin.

    The perturbation is as large in L-infinity as that of any attack of this eps, and independent of
    the model. Similarity under it is due to how brittle two models are, not to their gradients.

    Args:
        eps: size of the change, in pixels of [0, 1]; a number or a string such as "8/255".
        seed: of the coins, which are tossed per image from `seed` and the image's key.

    Raises UserError for an eps outside (0, 1].
    """

    eps: float

    def __init__(self, eps: float | str = "8/255", seed: int = 0):
        self.eps = fraction(eps, "eps")
        self.seed = whole_number(seed, "seed", least=0)

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        shape = pixels.shape[1:]
        coins = np.stack([generator(self.seed, key).integers(2, size=shape) for key in keys])
        signs = torch.from_numpy(2 * coins - 1).to(pixels)
        return (pixels + self.eps * signs).clamp_(0, 1)

    def passes(self, model: nn.Module, classes: int) -> Passes:
        return Passes(forward=0, backward=0)


class Clean(Attack):
    """Returns the images unchanged.

    Between models of one view it fools no target. Between others it shows how often a target errs
    on the source's view of the image, because of crop and resize alone.
    """

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        return pixels

    def passes(self, model: nn.Module, classes: int) -> Passes:
        return Passes(forward=0, backward=0)
