"""Attacks: from correctly classified pixels to adversarial ones.

An attack is any object with the one method of `Attack`; a config names its class by `_target_`.
One of your own, in my_module.py:

    import torch

    class OneStep:
        def __init__(self, eps):
            self.eps = eps  # the ball that the 8-bit image is kept in; without it, there is none

        def perturb(self, model, pixels, labels, keys):
            x = pixels.clone().requires_grad_()
            with torch.enable_grad():
                loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
            return (pixels + self.eps * gradient.sign()).clamp(0, 1)

and, in my_conf/attack/mine.yaml, `_target_: my_module.OneStep` with `eps: 0.1`:

    python evaluate.py --config-dir my_conf attack=mine
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from netkin.attacks.autoattack import AutoAttack
from netkin.attacks.clean import Clean
from netkin.attacks.patchfool import PatchFool
from netkin.attacks.pgd import PGD
from netkin.attacks.sign_noise import SignNoise

__all__ = ["PGD", "Attack", "AutoAttack", "Clean", "PatchFool", "Selective", "SignNoise"]


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


@runtime_checkable
class Selective(Protocol):
    """An attack that fits some models only; one without this method fits all."""

    def unfit(self, model: nn.Module) -> str | None:
        """Why a model (a `netkin.zoo.build.Classifier`) cannot be a source, as in "is no ViT".

        None if it can. Asked before any work starts, of a model that may have no weights yet.
        """
        ...
