"""Images under attack for a page: their choice, and the section of the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from netkin.data.classes import class_words
from netkin.passes.setting import Setting
from netkin.passes.stored import adversarial, outcome_store
from netkin.report.study import Section, block
from netkin.report.text import fraction_text
from netkin.zoo.member import Member

TILE = 132
"""Pixels of an image of `contact_sheet`, with its margin."""


@dataclass(frozen=True)
class Example:
    """One image under attack.

    Attributes:
        source: the model that the adversarial image was crafted on.
        image_id: the image's id in the dataset.
        label: the true class, in words.
        prediction: the source's prediction for the adversarial image, in words.
        clean: [H, W, 3] uint8.
        adversarial: [H, W, 3] uint8, within eps of clean.
    """

    source: str
    image_id: str
    label: str
    prediction: str
    clean: NDArray[np.uint8]
    adversarial: NDArray[np.uint8]


def examples(
    setting: Setting, members: Sequence[Member], sources: int = 6, images: int = 2
) -> list[Example]:
    """Up to `images` of up to `sources` sources, from as many families as there are.

    Of each source they are the first of its images, so that most sources show the same ones.
    """
    words = class_words(setting.images.classes)
    one_a_family = list({member.family: member for member in reversed(members)}.values())[::-1]
    rest = [member for member in members if member not in one_a_family]
    selected = []
    for source in (one_a_family + rest)[:sources]:
        stored, index = adversarial(setting, source, 0)
        for row in range(min(images, len(index))):
            selected.append(_example(setting, source, stored[row], int(index[row]), words))
    return selected


def examples_section(items: Sequence[Example], eps: float | None) -> Section:
    """Clean image, adversarial image and their difference, for each example.

    `eps` is the attack's bound in pixels of [0, 1]; None where it has none.
    """
    bound = eps or 1.0
    rows = [
        {
            "example": item,
            "clean": _url(item.clean),
            "adversarial": _url(item.adversarial),
            "difference": _url(difference(item.clean, item.adversarial, bound)),
        }
        for item in items
    ]
    html = block(
        "examples.html.j2",
        "examples",
        items=rows,
        eps=fraction_text(eps) if eps else None,
        amplification=0.5 / bound,
    )
    return Section("Images under attack", blocks=[html])


def contact_sheet(items: Sequence[Example], eps: float | None) -> Image.Image:
    """Clean image, adversarial image and their difference of each example, a row a source."""
    rows: dict[str, list[NDArray[np.uint8]]] = {}
    for item in items:
        three = (item.clean, item.adversarial, difference(item.clean, item.adversarial, eps or 1.0))
        rows.setdefault(item.source, []).extend(three)
    across = max(len(row) for row in rows.values())
    sheet = Image.new("RGB", (TILE * across, TILE * len(rows)), "white")
    for y, row in enumerate(rows.values()):
        for x, pixels in enumerate(row):
            tile = Image.fromarray(pixels).resize((TILE - 4, TILE - 4), Image.Resampling.NEAREST)
            sheet.paste(tile, (TILE * x + 2, TILE * y + 2))
    return sheet


def difference(
    clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], eps: float
) -> NDArray[np.uint8]:
    """adversarial - clean around mid-grey, [H, W, 3] uint8: -eps is black and +eps is white."""
    delta = (adversarial.astype(float) - clean.astype(float)) / (255 * eps)
    return np.clip(np.round(127.5 + 127.5 * delta), 0, 255).astype(np.uint8)


def _example(
    setting: Setting, source: Member, stored: Tensor, position: int, words: Sequence[str]
) -> Example:
    image_id = setting.subset.ids[position]
    outcomes = outcome_store(setting).read(source.name, [source.name])
    (prediction,) = outcomes.filter(image_id=image_id)["prediction"]
    return Example(
        source=source.name,
        image_id=image_id,
        label=words[setting.subset.labels[position]],
        prediction=words[int(prediction)],
        clean=_hwc(setting.pixels(setting.view(source), 0)[position]),
        adversarial=_hwc(stored),
    )


def _hwc(image: Tensor) -> np.ndarray:
    """[3, H, W], uint8 or in [0, 1], as [H, W, 3] uint8."""
    if image.dtype != torch.uint8:
        image = (image * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()


def _url(image: NDArray[np.uint8]) -> str:
    """A data URL of [H, W, 3] uint8."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="WEBP", lossless=True, method=6)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
