"""A plain ViT as a student: with DeiT's distillation token and head (Touvron et al. 2021)."""

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
    """The member's architecture with a distillation token; one that has it stays as it is.

    Raises UserError for what is no plain ViT with a class token.
    """
    net: nn.Module | None = None
    if member.timm:
        with torch.device("meta"):
            net = timm.create_model(member.timm, pretrained=False, **member.kwargs)
    if isinstance(net, VisionTransformerDistilled):
        return member
    # Subclasses and variants (pooling, registers, layer scale) would lose what makes them so.
    if not isinstance(net, VisionTransformer) or not _named(net) <= _named(_distilled(net)):
        raise UserError(
            f"student {member.name} ({member.architecture}) is no plain ViT with a class token, "
            "which is what takes a distillation token; use distillation.token=false, or "
            "student=vit_ti"
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
