"""A batch of a member's images for checks that attack them outside the pipeline."""

from dataclasses import dataclass

import torch
from torch import Tensor

from netkin.data import views
from netkin.errors import UserError
from netkin.passes.setting import Setting
from netkin.passes.stored import correct
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Batch:
    """A member, and the first images of the subset that it classifies correctly.

    Attributes:
        classifier: in evaluation mode, on its device, without gradients of parameters.
        clean: [n, 3, H, W] uint8, contiguous.
        labels: [n].
        keys: [n], what random numbers are drawn from.
    """

    classifier: Classifier
    clean: Tensor
    labels: Tensor
    keys: list[str]

    @property
    def pixels(self) -> Tensor:
        """[n, 3, H, W] float in [0, 1]."""
        return self.clean.float() / 255


def correct_batch(setting: Setting, member: Member, most: int, device: torch.device) -> Batch:
    """At most `most` images; the store must hold the member's clean predictions.

    Raises UserError where the member classifies no image correctly.
    """
    chosen = correct(setting, member).nonzero().flatten()[:most].tolist()
    if not chosen:
        raise UserError(f"{member.name} classifies none of the images correctly")
    positions = [setting.subset.positions[i] for i in chosen]
    clean = views.load(setting.images, positions, setting.view(member)).contiguous()
    return Batch(
        setting.build(member).eval().requires_grad_(False).to(device),
        clean.to(device),
        setting.labels[chosen].to(device),
        setting.keys(member, chosen),
    )
