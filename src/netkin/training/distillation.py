"""Distillation from a teacher's predictions (Touvron et al. 2021, Sec. 4).

Teacher and student have the same augmented and mixed image as input, the teacher at its own input
size and with its own normalisation. Its prediction is the target of the student's distillation
head, which a plain ViT gets with DeiT's distillation token.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from netkin.errors import UserError
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Distillation:
    """The loss of a student with a teacher; see `distillation_loss`.

    Attributes:
        kind: "hard" (the label that the teacher predicts) or "soft" (its softened probabilities;
            Hinton et al. 2015).
        alpha: the teacher's share of the loss, in (0, 1]; the true label has the rest.
        tau: temperature of soft distillation, above 0.

    Raises UserError, which names the argument, for other values.
    """

    kind: str = "hard"
    alpha: float = 0.5
    tau: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in ("hard", "soft"):
            raise UserError(f"kind must be hard or soft, got {self.kind!r}")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha <= 1:
            raise UserError(f"alpha must be in (0, 1], got {self.alpha!r}")
        if not isinstance(self.tau, int | float) or not self.tau > 0:
            raise UserError(f"tau must be above 0, got {self.tau!r}")


class Parts(NamedTuple):
    """The two parts of a loss, weighted: training minimises their sum. In nats, scalars."""

    label: Tensor
    teacher: Tensor


def distillation_loss(
    distillation: Distillation,
    class_logits: Tensor,
    distilled_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
) -> Parts:
    """(1 - alpha) CE(class head, label) + alpha x loss(distillation head, teacher).

    The loss of the second term, for hard distillation (Eq. 3 of Touvron et al.): cross-entropy to
    the teacher's label, which is not smoothed. For soft (Eq. 2): tau^2 KL(teacher / tau,
    student / tau), mean over the batch.

    Args:
        distillation: alpha, tau and the kind.
        class_logits, distilled_logits, teacher_logits: [B, K]; a student without a distillation
            head has the same logits for both.
        target: the true labels, [B] int64, or [B, K] probabilities (mixed and smoothed).
        label_smoothing: of the true labels, where these are int64.
    """
    label = cross_entropy(class_logits, target, label_smoothing=label_smoothing)
    if distillation.kind == "hard":
        teacher = cross_entropy(distilled_logits, teacher_logits.argmax(dim=1))
    else:
        tau = distillation.tau
        student = log_softmax(distilled_logits / tau, dim=1)
        softened = log_softmax(teacher_logits / tau, dim=1)
        teacher = tau**2 * kl_div(student, softened, reduction="batchmean", log_target=True)
    return Parts((1 - distillation.alpha) * label, distillation.alpha * teacher)


class Teacher:
    """A classifier that only predicts. It is no nn.Module, so that it is not trained.

    Args:
        classifier: of pixels [B, 3, size, size] in [0, 1], which it normalises.
        size: its input size, in pixels a side.
        distillation: the student's loss.
    """

    def __init__(self, classifier: nn.Module, size: int, distillation: Distillation):
        self.classifier = classifier.eval().requires_grad_(False)
        self.size, self.distillation = (size, size), distillation

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits [B, K] on pixels [B, 3, H, W] in [0, 1] of any size, which are resized; without
        gradients, in eval mode."""
        if pixels.shape[-2:] != self.size:
            pixels = interpolate(pixels, self.size, mode="bilinear", antialias=True)
        return self.classifier(pixels)


TOKEN = "deit_tiny_distilled_patch16_224"
"""timm's distilled ViT, which takes any width and depth; its preprocessing is DeiT's."""


def with_token(member: Member) -> Member:
    """The member's architecture with a distillation token, if it has none yet.

    Raises UserError for an architecture that is not a plain ViT with a class token.
    """
    import timm
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    net: nn.Module | None = None
    if member.timm:
        with torch.device("meta"):
            net = timm.create_model(member.timm, pretrained=False, **member.kwargs)
    if isinstance(net, VisionTransformerDistilled):
        return member
    shape: dict[str, int] = {}
    if plain := type(net) is VisionTransformer:
        shape = {
            "embed_dim": int(net.embed_dim),
            "depth": len(net.blocks),
            "num_heads": int(net.blocks[0].attn.num_heads),  # type: ignore[union-attr]
        }
        if (patch := int(net.patch_embed.patch_size[0])) != 16:
            shape["patch_size"] = patch
        with torch.device("meta"):
            student = timm.create_model(TOKEN, pretrained=False, **shape)  # type: ignore[arg-type]
        # Variants would lose what makes them different: pooling, registers, layer scale.
        names, kept = (dict(module.named_parameters()).keys() for module in (net, student))
        plain = names <= kept
    if not plain:
        raise UserError(
            f"student {member.name} ({member.architecture}) is not a plain ViT with a class token, "
            "so it cannot have a distillation token; train it without one, or choose a plain ViT"
        )
    return replace(member, timm=TOKEN, kwargs={**member.kwargs, **shape})
