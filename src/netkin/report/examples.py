"""Which adversarial images a report shows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from netkin.report.page import Example
from netkin.store.layout import OutcomeStore
from netkin.transfer.setting import Setting
from netkin.transfer.stored import adversarial, outcome_store
from netkin.zoo.member import Member


def examples(
    setting: Setting, members: Sequence[Member], sources: int = 6, images: int = 2
) -> list[Example]:
    """Up to `images` of up to `sources` sources, of as many families as there are.

    All sources show the same images where they can: the first ones that every one of them attacks.
    """
    one_a_family = list({member.family: member for member in reversed(members)}.values())[::-1]
    rest = [member for member in members if member not in one_a_family]
    chosen = (one_a_family + rest)[:sources]
    shown = []
    for source in chosen:
        stored, index = adversarial(setting, source, 0)
        for row in range(min(images, len(index))):
            shown.append(_example(setting, source, stored[row], int(index[row])))
    return shown


def _example(setting: Setting, source: Member, stored: Tensor, position: int) -> Example:
    table: OutcomeStore = outcome_store(setting)
    image_id = setting.subset.ids[position]
    (prediction,) = table.read([source.name]).filter(image_id=image_id)["prediction"]
    classes = setting.images.classes
    return Example(
        source=source.name,
        image_id=image_id,
        label=classes[setting.subset.labels[position]],
        prediction=classes[int(prediction)],
        clean=_hwc(setting.pixels(setting.view(source), 0)[position]),
        adversarial=_hwc(stored),
    )


def _hwc(image: Tensor) -> np.ndarray:
    """[3, H, W], uint8 or in [0, 1], as [H, W, 3] uint8."""
    if image.dtype != torch.uint8:
        image = (image * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()
