"""Distillation from a teacher's predictions (Touvron et al. 2021, Sec. 4).

The teacher sees the very image that the student sees, augmented and mixed, at its own input size
and under its own normalisation. Its prediction is the label of the student's distillation head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax

from netkin.errors import UserError


@dataclass(frozen=True)
class Distillation:
    """How a student learns from a teacher.

    Attributes:
        kind: "hard" (the label that the teacher predicts) or "soft" (its softened probabilities;
            Hinton et al. 2015).
        alpha: the teacher's share of the loss, in (0, 1]; the true label has the rest.
        tau: temperature of soft distillation.
    """

    kind: str = "hard"
    alpha: float = 0.5
    tau: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in ("hard", "soft"):
            raise UserError(f"distillation.kind must be hard or soft, got {self.kind!r}")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha <= 1:
            raise UserError(f"distillation.alpha must be in (0, 1], got {self.alpha!r}")
        if not isinstance(self.tau, int | float) or not self.tau > 0:
            raise UserError(f"distillation.tau must be above 0, got {self.tau!r}")


@dataclass(frozen=True)
class Parts:
    """The two parts of a loss, already weighted: their sum is what is minimised."""

    label: Tensor
    teacher: Tensor

    @property
    def total(self) -> Tensor:
        return self.label + self.teacher


def distillation_loss(
    distillation: Distillation,
    class_logits: Tensor,
    distilled_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
) -> Parts:
    """(1 - alpha) CE(class head, label) + alpha x what the teacher says of the distillation head.

    Hard (Eq. 3 of Touvron et al.): cross-entropy to the teacher's label, which is not smoothed.
    Soft (Eq. 2): tau^2 KL(teacher / tau, student / tau), mean over the batch.

    Args:
        class_logits, distilled_logits, teacher_logits: [B, K]; a student without a distillation
            head has the same logits for both.
        target: the true labels, [B] int64, or [B, K] probabilities (mixed and smoothed).
        label_smoothing: of the true labels, where they are not probabilities yet.
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
    """A classifier of pixels that only predicts. No module: it is not the student's to train.

    Args:
        classifier: takes pixels [B, 3, size, size] in [0, 1] and normalises them itself.
        size: its input size, in pixels a side.
        distillation: how it teaches.
    """

    def __init__(self, classifier: nn.Module, size: int, distillation: Distillation):
        self.classifier = classifier.eval().requires_grad_(False)
        self.size, self.distillation = size, distillation

    def to(self, device: torch.device) -> None:
        self.classifier.to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits [B, K] on images [B, 3, H, W] of any size: resized whole, in eval mode."""
        if pixels.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            pixels = interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            return self.classifier(pixels)
