"""Attacks: from correctly classified pixels to adversarial ones.

An attack is any object with the method `perturb` of `Attack`, which lists what else it may state
about itself; a config names its class by `_target_`. One of your own, in my_module.py:

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

from netkin.attacks.autoattack import AutoAttack
from netkin.attacks.base import Attack, Passes, as_attack
from netkin.attacks.foreign import Foolbox, Foreign, Torchattacks
from netkin.attacks.patchfool import PatchFool
from netkin.attacks.pgd import PGD
from netkin.attacks.sign_noise import Clean, SignNoise

__all__ = [
    "PGD",
    "Attack",
    "AutoAttack",
    "Clean",
    "Foolbox",
    "Foreign",
    "Passes",
    "PatchFool",
    "SignNoise",
    "Torchattacks",
    "as_attack",
]
