"""Patch-Fool (Fu et al. 2022): one patch of a vision transformer is changed to draw attention.

The patch is the one with the most attention. Its content is optimised to raise both the
cross-entropy and the attention that other tokens pay to it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks.base import Passes, Stepwise, generator, uniform
from netkin.attacks.units import fraction, non_negative, whole_number
from netkin.errors import UserError

TINY = torch.finfo(torch.float32).tiny


class PatchFool(Stepwise):
    """Optimises the content of the patches that one layer of a ViT attends to most.

    Fits sources that are plain timm ViTs with a class token: vit, deit, deit3, also distilled.

    Args:
        eps: None for the vanilla attack, whose patches may take any pixels; else the radius of the
            L-infinity ball, in pixels of [0, 1], that they stay in (the paper's "mild" attack).
        patches: how many patches an image.
        choice: "attention" takes the patches that the attention of `layer` is on, in the mean over
            heads and queries; "random" draws them per image.
        layer: index of that layer. None takes 4, as published for depth 12, and in shallower ViTs
            the layer at a third of the depth.
        attention_layers: indices of the layers whose attention is raised, towards the first patch,
            as in the authors' code. None takes 1 to depth/2 - 1, as published, and at least 1.
        attention_weight: of each such layer's gradient beside the cross-entropy's.
        surgery: how an attention gradient that opposes the cross-entropy's is changed:
            "orthogonal" takes away its part along that one; "published" divides this part by the
            norm where the projection has the norm's square, as the authors' code does.
        lr, decay, decay_every: Adam's rate, in units of the model's normalised input, which is
            multiplied by `decay` every so many steps.
        steps: how many; 0 leaves the random initial content.
        seed: of that content, and of a random choice; drawn per image.

    Raises UserError for an argument outside its range.
    """

    looks_inside = True  # hooks, which torch.compile does not support
    selective = True

    def __init__(
        self,
        eps: float | str | None = None,
        patches: int = 1,
        choice: str = "attention",
        layer: int | None = None,
        attention_layers: Sequence[int] | None = None,
        attention_weight: float = 0.002,
        surgery: str = "orthogonal",
        lr: float = 0.22,
        decay: float = 0.95,
        decay_every: int = 10,
        steps: int = 250,
        seed: int = 0,
    ):
        self.eps = None if eps is None else fraction(eps, "eps")
        for name, value in (("choice", choice), ("surgery", surgery)):
            if value not in CHOICES[name]:
                raise UserError(f"{name} must be {' or '.join(CHOICES[name])}, got {value!r}")
        self.patches, self.choice, self.layer = whole_number(patches, "patches"), choice, layer
        self.attention_layers = None if attention_layers is None else tuple(attention_layers)
        self.attention_weight = non_negative(attention_weight, "attention_weight")
        self.surgery = surgery
        self.lr, self.decay = non_negative(lr, "lr"), non_negative(decay, "decay")
        self.decay_every = whole_number(decay_every, "decay_every")
        self.steps = whole_number(steps, "steps", least=0)
        self.seed = whole_number(seed, "seed", least=0)

    def unfit(self, model: nn.Module) -> str | None:
        from timm.layers import PatchEmbed
        from timm.layers.attention import Attention
        from timm.models.vision_transformer import VisionTransformer

        net = getattr(model, "net", model)
        if not isinstance(net, VisionTransformer):
            return "is no timm VisionTransformer"
        if net.cls_token is None:
            return "has no class token"
        embed = net.patch_embed
        if type(embed) is not PatchEmbed or embed.proj.kernel_size != embed.proj.stride:
            return "has tokens that are no patches of pixels"
        if not all(isinstance(getattr(block, "attn", None), Attention) for block in net.blocks):
            return "has blocks without plain attention"
        depth = len(net.blocks)
        for layer in (self._layer(depth), *self._attention_layers(depth)):
            if not 0 <= layer < depth:
                return f"has no layer {layer}, only 0 to {depth - 1}"
        patches = embed.num_patches
        if patches is not None and patches < self.patches:
            return f"has {patches} patches, not {self.patches}"
        return None

    def passes(self, model: nn.Module, classes: int) -> Passes:
        """One pass to choose patches; a step is one of each and one back from each raised layer."""
        vit: Any = getattr(model, "net", model)
        depth = len(vit.blocks)
        back = 1 + sum((layer + 1) / depth for layer in self._attention_layers(depth))
        return Passes(forward=1 + self.steps, backward=self.steps * back)

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """See `netkin.attacks.Attack`. Losses are summed: images do not affect each other."""
        problem = self.unfit(model)
        if problem:
            name = getattr(model, "name", type(model).__name__)
            raise UserError(f"Patch-Fool fits plain timm ViTs with a class token; {name} {problem}")
        vit: Any = getattr(model, "net", model)
        mean, std = (getattr(model, name, default) for name, default in (("mean", 0), ("std", 1)))
        layers = self._attention_layers(len(vit.blocks))
        with attention_maps(vit) as maps:
            chosen = self._choose(model, vit, maps, pixels, keys)
            mask = patch_mask(chosen, vit.patch_embed.patch_size, pixels)
            low, high = self._bounds(pixels)
            z = ((self._content(pixels, keys) - mean) / std).requires_grad_()
            optimizer = torch.optim.Adam([z], lr=self.lr, maximize=True)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.decay_every, self.decay)
            tokens = chosen[:, 0] + vit.num_prefix_tokens
            for _ in range(self.steps):
                maps.clear()
                with torch.enable_grad():
                    logits = model(torch.where(mask, z * std + mean, pixels))
                    loss = cross_entropy(logits, labels, reduction="sum")
                    z.grad = self._direction(loss, [maps[i] for i in layers], tokens, z)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    z.copy_(((z * std + mean).clamp(low, high) - mean) / std)
            return torch.where(mask, (z.detach() * std + mean).clamp(low, high), pixels)

    def _layer(self, depth: int) -> int:
        return min(4, depth // 3) if self.layer is None else self.layer

    def _attention_layers(self, depth: int) -> tuple[int, ...]:
        if self.attention_layers is None:
            return tuple(range(1, max(2, depth // 2)))
        return self.attention_layers

    def _choose(
        self, model: nn.Module, vit: Any, maps: list[Tensor], pixels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """The attacked patches, [B, patches], counted row by row."""
        with torch.no_grad():
            model(pixels)
        attention = maps[self._layer(len(vit.blocks))].mean(dim=(1, 2))[:, vit.num_prefix_tokens :]
        if self.choice == "attention":
            return attention.topk(self.patches).indices
        draws = [
            generator(self.seed, f"{key}\npatches").choice(
                attention.shape[1], self.patches, replace=False
            )
            for key in keys
        ]
        return torch.from_numpy(np.stack(draws)).to(pixels.device)

    def _content(self, pixels: Tensor, keys: Sequence[str]) -> Tensor:
        """The initial content of the patches, [B, 3, H, W]: any pixels, or a point of the ball."""
        low, high = self._bounds(pixels)
        if self.eps is None:
            return uniform(pixels.shape[1:], 0.5, self.seed, keys).to(pixels) + 0.5
        noise = uniform(pixels.shape[1:], self.eps, self.seed, keys).to(pixels)
        return (pixels + noise).clamp(low, high)

    def _bounds(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        radius = 1.0 if self.eps is None else self.eps
        return (pixels - radius).clamp_min(0), (pixels + radius).clamp_max(1)

    def _direction(self, loss: Tensor, maps: Sequence[Tensor], tokens: Tensor, z: Tensor) -> Tensor:
        """The gradient that Adam climbs, [B, 3, H, W]."""
        (ascent,) = torch.autograd.grad(loss, z, retain_graph=True)
        total = ascent.clone()
        for attention in maps:
            attended = attention_loss(attention, tokens).sum()
            (gradient,) = torch.autograd.grad(attended, z, retain_graph=True)
            total += self.attention_weight * without_conflict(gradient, ascent, self.surgery)
        return total


CHOICES = {"choice": ("attention", "random"), "surgery": ("orthogonal", "published")}


@contextmanager
def attention_maps(vit: Any) -> Iterator[list[Tensor]]:
    """A list to which each forward pass adds every block's attention, [B, heads, N, N].

    Fused attention, which does not compute these, is off until the end of the block.
    """
    maps: list[Tensor] = []
    attentions = [block.attn for block in vit.blocks]
    fused = [attention.fused_attn for attention in attentions]
    hooks = [
        attention.attn_drop.register_forward_hook(lambda _module, _input, out: maps.append(out))
        for attention in attentions
    ]
    try:
        for attention in attentions:
            attention.fused_attn = False
        yield maps
    finally:
        for attention, was in zip(attentions, fused, strict=True):
            attention.fused_attn = was
        for hook in hooks:
            hook.remove()


def attention_loss(attention: Tensor, tokens: Tensor) -> Tensor:
    """The attention that one layer pays to a token (Fu et al. 2022, as in their code).

    Args:
        attention: [B, heads, N, N], rows (queries) sum to 1.
        tokens: [B], indices of the attended tokens among the N.

    Returns:
        [B]: the logarithm of the mean over heads, in the mean over queries.
    """
    mean = attention.mean(dim=1)  # [B, N, N]
    paid = mean[torch.arange(len(mean), device=mean.device), :, tokens]  # [B, N]
    return paid.clamp_min(TINY).log().mean(dim=1)


def without_conflict(gradient: Tensor, other: Tensor, surgery: str = "orthogonal") -> Tensor:
    """A gradient without its part against another one, image by image (Yu et al. 2020).

    Args:
        gradient, other: [B, ...].
        surgery: "orthogonal", or "published": see `PatchFool`.

    Returns:
        As `gradient`, which stays as it is where the two do not oppose each other.
    """
    g, o = gradient.flatten(1), other.flatten(1)
    dot = (g * o).sum(dim=1, keepdim=True)
    norm = o.norm(dim=1, keepdim=True)
    divisor = norm if surgery == "published" else norm.square()
    part = dot.clamp_max(0) / divisor.clamp_min(TINY) * o
    return (g - part).view_as(gradient)


def patch_mask(patches: Tensor, size: tuple[int, int], pixels: Tensor) -> Tensor:
    """Which pixels belong to some patches: [B, 1, H, W] bool, from indices [B, n], row by row."""
    (height, width), (rows, columns) = size, pixels.shape[-2:]
    across = -(-columns // width)
    y = torch.arange(rows, device=pixels.device).view(-1, 1) // height
    x = torch.arange(columns, device=pixels.device) // width
    belongs = (y * across + x) == patches[:, :, None, None]  # [B, n, H, W]
    return belongs.any(dim=1, keepdim=True)
