"""A plain ViT with DeiT's distillation token and head (Touvron et al. 2021), as a student."""

from dataclasses import replace

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from netkin.errors import UserError
from netkin.zoo.member import Member

TOKEN = "deit_tiny_distilled_patch16_224"
"""timm's distilled ViT, which takes any width and depth; its preprocessing is DeiT's."""


def with_token(member: Member) -> Member:
    """The member's architecture with a distillation token, if it has none yet.

    Raises UserError for an architecture that is not a plain ViT with a class token.
    """
    net: nn.Module | None = None
    if member.timm:
        with torch.device("meta"):
            net = timm.create_model(member.timm, pretrained=False, **member.kwargs)
    if isinstance(net, VisionTransformerDistilled):
        return member
    # Subclasses and variants would lose what makes them different: pooling, registers, layer scale.
    if not isinstance(net, VisionTransformer) or not _named(net) <= _named(_distilled(net)):
        raise UserError(
            f"student {member.name} ({member.architecture}) is not a plain ViT with a class token, "
            "so it cannot have a distillation token; train it without one, or choose a plain ViT"
        )
    return replace(member, timm=TOKEN, kwargs={**member.kwargs, **_shape(net)})


def _shape(net: VisionTransformer) -> dict[str, int]:
    """The arguments of a ViT's shape, where they are not those of `TOKEN`."""
    patch = int(net.patch_embed.patch_size[0])
    shape = {
        "embed_dim": int(net.embed_dim),
        "depth": len(net.blocks),
        "num_heads": int(net.blocks[0].attn.num_heads),  # type: ignore[union-attr]
    }
    return shape if patch == 16 else {**shape, "patch_size": patch}


def _named(net: VisionTransformer) -> set[str]:
    return {name for name, _ in net.named_parameters()}


def _distilled(net: VisionTransformer) -> VisionTransformerDistilled:
    with torch.device("meta"):
        return timm.create_model(TOKEN, pretrained=False, **_shape(net))  # type: ignore
