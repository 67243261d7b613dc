"""Attacks: from correctly classified pixels to adversarial ones.

An attack is any object with the one method of `Attack`; a config names its class by `_target_`.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from netkin.attacks.clean import Clean
from netkin.attacks.pgd import PGD

__all__ = ["PGD", "Attack", "Clean"]


class Attack(Protocol):
    """What netkin asks of an attack."""

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """Adversarial images for a batch.

        Args:
            model: pixels [B, 3, H, W] in [0, 1] to logits [B, K]; in eval mode, its parameters
                without gradients, for the time of the call.
            pixels: [B, 3, H, W] in [0, 1], all classified correctly.
            labels: [B] int64.
            keys: one text an image, the same in every run. Random numbers drawn from
                `netkin.attacks.noise.generator(seed, key)` do not depend on batch or device.

        Returns:
            [B, 3, H, W] in [0, 1], on the device of `pixels`.
        """
        ...
