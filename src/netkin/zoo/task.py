"""A dataset from the point of view of the zoo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A dataset as classifiers are built for it.

    Attributes:
        dataset: its name, under which trained weights are stored.
        num_classes: K.
        weights: "train" (members are trained on the dataset's own training images) or
            "pretrained" (published weights).
        input_size: pixels a side for trained members; None takes each pretrained model's own.
        fit: timm arguments that suit small images, tried in order; the first that an
            architecture's constructor takes is used.
        classes: their names; a pretrained ImageNet classifier can be compared on some of its
            classes when they are WordNet ids.
    """

    dataset: str
    num_classes: int
    weights: str = "train"
    input_size: int | None = None
    fit: tuple[Mapping[str, Any], ...] = ({},)
    classes: tuple[str, ...] = ()
