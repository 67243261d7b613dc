"""Squeeze-and-excitation, and activations, with a gradient that costs no more than it must.

The gradient of a mean over pixels is one number a channel, spread over all pixels. torch spreads it
before it divides, into another memory order than the features' own, and adding the two then takes
ten times as long as adding what is not spread. The numbers are the same, to the bit. Likewise, an
activation in place whose gradient needs its input makes a copy of that first.
"""

from typing import Any

import torch
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

LAYERS: dict[type, tuple[str, ...]] = {
    SEModule: ("fc1", "bn", "act", "fc2", "gate"),
    EffectiveSEModule: ("fc", "gate"),
    SqueezeExcite: ("conv_reduce", "act1", "conv_expand", "gate"),
}
"""timm's modules x * gate(... (mean of x)), and what stands between mean and product."""
COPYING = (nn.SiLU, nn.Hardswish, nn.Mish)
"""Activations that copy their input when they overwrite it."""


class Squeeze(torch.autograd.Function):
    """x [B, C, H, W] to (x, its mean over pixels [B, C, 1, 1])."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.pixels = x.shape[2] * x.shape[3]
        return x.view_as(x), x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_mean: Tensor) -> Tensor:  # type: ignore[override]
        return gradient + of_mean / ctx.pixels


class Excite(nn.Module):
    """One of timm's modules in LAYERS, as Squeeze computes it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.gate = nn.Sequential(*(module.get_submodule(name) for name in LAYERS[type(module)]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        x, squeezed = Squeeze.apply(x)
        return x * self.gate(squeezed)


def cheap_gradients(model: nn.Module) -> int:
    """Have a model's squeeze-and-excitation and activations so, in place; returns how many."""
    found = 0
    for name, module in list(model.named_modules()):
        if type(module) in LAYERS and not getattr(module, "add_maxpool", False) and name:
            model.set_submodule(name, Excite(module))
            found += 1
        elif isinstance(module, COPYING) and module.inplace:
            module.inplace = False
            found += 1
    return found
