"""A batch of a member's images for checks that attack them outside the pipeline."""

from dataclasses import dataclass

import torch
from torch import Tensor

from netkin.data import views
from netkin.errors import UserError
from netkin.model import Model
from netkin.results import Results
from netkin.zoo.build import Classifier


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


def correct_batch(results: Results, model: Model, most: int, device: torch.device) -> Batch:
    """At most `most` images; the store must hold the model's clean predictions.

    Raises UserError where the model classifies no image correctly.
    """
    chosen = results.correct(model).nonzero().flatten()[:most].tolist()
    if not chosen:
        raise UserError(f"{model.name} classifies none of the images correctly")
    evaluation = results.evaluation
    positions = [evaluation.subset.positions[i] for i in chosen]
    clean = views.load(evaluation.images, positions, model.view).contiguous()
    return Batch(
        model.build().eval().requires_grad_(False).to(device),
        clean.to(device),
        evaluation.labels[chosen].to(device),
        evaluation.keys(model.name, chosen),
    )
