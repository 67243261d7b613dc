"""Images under attack for a page: their choice, and their figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from netkin.data.classes import class_words
from netkin.model import Model
from netkin.report.plots import images_figure
from netkin.report.sentences import text
from netkin.report.text import fraction_text
from netkin.results import Results


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
    results: Results, members: Sequence[Model], sources: int = 6, images: int = 2
) -> list[Example]:
    """Up to `images` of up to `sources` sources, from as many families as there are.

    Of each source they are the first of its images, so that most sources show the same ones.
    """
    subset, words = results.evaluation.subset, class_words(results.evaluation.images.classes)
    one_a_family = list({member.family: member for member in reversed(members)}.values())[::-1]
    rest = [member for member in members if member not in one_a_family]
    selected = []
    for source in (one_a_family + rest)[:sources]:
        stored, index = results.adversarial(source, 0)
        clean = results.pixels(source.view, 0)
        predicted = results.outcome_store.read(source.name, [source.name])
        for row, position in enumerate(index[:images].tolist()):
            image = subset.ids[position]
            (prediction,) = predicted.filter(image_id=image)["prediction"]
            shown = (_hwc(clean[position]), _hwc(stored[row]))
            label = words[subset.labels[position]]
            selected.append(Example(source.name, image, label, words[int(prediction)], *shown))
    return selected


def examples_figure(items: Sequence[Example], eps: float | None) -> Figure:
    """Clean image, adversarial image and their difference of each example, a row a source."""
    rows: dict[str, list[NDArray[np.uint8]]] = {}
    below: dict[str, list[str]] = {}
    for item in items:
        changed = difference(item.clean, item.adversarial, eps or 1.0)
        rows.setdefault(item.source, []).extend((item.clean, item.adversarial, changed))
        below.setdefault(item.source, []).extend((item.label, item.prediction, ""))
    across = max(map(len, rows.values()))
    titles = (["clean", "adversarial", "difference"] * across)[:across]
    return images_figure(list(rows.values()), titles, list(below.values()), names=list(rows))


def examples_table(items: Sequence[Example]) -> pl.DataFrame:
    """source, image, label and prediction, a row an example."""
    rows = [(e.source, e.image_id, e.label, e.prediction) for e in items]
    return pl.DataFrame(rows, ["source", "image", "label", "prediction"], orient="row")


def examples_note(eps: float | None) -> str:
    """How the differences are shown; `eps` is the attack's bound, None where it has none."""
    times = f"{0.5 / (eps or 1.0):.3g}"
    if eps is None:
        return text("examples.note", times=times)
    return text("examples.note_eps", eps=fraction_text(eps), times=times)


def difference(
    clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], eps: float
) -> NDArray[np.uint8]:
    """adversarial - clean around mid-grey, [H, W, 3] uint8: -eps is black and +eps is white."""
    delta = (adversarial.astype(float) - clean.astype(float)) / (255 * eps)
    return np.clip(np.round(127.5 + 127.5 * delta), 0, 255).astype(np.uint8)


def _hwc(image: Tensor) -> np.ndarray:
    """[3, H, W], uint8 or in [0, 1], as [H, W, 3] uint8."""
    if image.dtype != torch.uint8:
        image = (image * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()
