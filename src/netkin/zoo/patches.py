"""Patch embeddings as matrix products, which a CPU computes several times faster.

A convolution whose stride is its kernel uses each pixel once: patches are cut out and multiplied
with its weights. torch's convolution is general, and its gradient to the input slow here: of three
channels (a ViT's 16 x 16 patches, ConvNeXt's 4 x 4) the product takes 0.3 to 0.6 of its time, with
one thread or two; of many channels (ConvNeXt's 2 x 2) up to twice as long, so those stay.
"""

from torch import Tensor, nn
from torch.nn.functional import linear

MOST_CHANNELS = 4


class PatchProduct(nn.Conv2d):
    """A convolution with kernel = stride and no padding, computed as a linear map of patches."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] to [B, K, H // p, W // q]; pixels that do not fill a patch are left out."""
        (p, q), (high, wide) = self.kernel_size, input.shape[-2:]
        rows, columns = high // p, wide // q
        filled = input[..., : rows * p, : columns * q]
        patches = filled.reshape(len(input), self.in_channels, rows, p, columns, q)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(len(input), rows, columns, -1)
        return linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def patches_by_product(model: nn.Module) -> int:
    """Compute a model's patch embeddings as products, in place; returns how many."""
    changed = 0
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_patchwise(module):
            module.__class__ = PatchProduct
            changed += 1
    return changed


def _is_patchwise(layer: nn.Conv2d) -> bool:
    plain = layer.padding in ((0, 0), "valid") and tuple(layer.dilation) == (1, 1)
    return (
        plain
        and layer.in_channels <= MOST_CHANNELS
        and layer.groups == 1
        and layer.kernel_size == layer.stride
        and layer.kernel_size != (1, 1)
    )
