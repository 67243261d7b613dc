"""Runs that stop when scores are certain enough: `score.half_width`.

Images are attacked in steps of 1, 2, 3, 4, 6, 8, 11, 16, ... shards, 2^(i/2) of them, until the
plain 95% intervals of enough pairs are as narrow as asked. Intervals of a run that stops so cover
slightly less than 95%: 94.4 to 98.2% in simulations over rates of transfer and widths.
"""

import math
from dataclasses import dataclass

import numpy as np

from netkin import similarity
from netkin.errors import UserError
from netkin.similarity import EPS_S, Outcomes


@dataclass(frozen=True)
class Rule:
    """When a run stops: where a share of the pairs has scores that are certain enough.

    Attributes:
        half_width: half of (high - low) that is asked for, in nats.
        share: of the pairs that must have it, in (0, 1].
        eps_s: the floor of 100 p.

    Raises UserError for other values.
    """

    half_width: float
    share: float = 0.95
    eps_s: float = EPS_S

    def __post_init__(self) -> None:
        if not self.half_width > 0:
            raise UserError(f"half_width must be above 0 (nats), got {self.half_width!r}")
        if not 0 < self.share <= 1:
            raise UserError(f"share must be in (0, 1], got {self.share!r}")


@dataclass(frozen=True)
class Certainty:
    """How certain scores are after some of a run's images (of a total): the share of the pairs that
    are certain enough, and the half-width of the pair at the rule's share, in nats; infinite where
    a pair has no image."""

    images: int
    total: int
    share: float
    half_width: float
    rule: Rule

    @property
    def reached(self) -> bool:
        """Whether the run may stop."""
        return self.half_width <= self.rule.half_width

    @property
    def numbers(self) -> dict[str, float]:
        """A point of curves over `sequential/images`."""
        numbers = {"sequential/images": self.images, "sequential/share": self.share}
        if math.isfinite(self.half_width):
            numbers["sequential/half_width"] = self.half_width
        return numbers

    @property
    def needed(self) -> float:
        """About how many images the rule needs."""
        return images_needed(self.images, self.half_width, self.rule.half_width)


def images_needed(images: int, half_width: float, wanted: float) -> float:
    """n = n0 (h0 / h)^2, of n0 images that gave a half-width h0; infinite where h0 is."""
    return images * (half_width / wanted) ** 2


def stops(images: int, shard_size: int) -> list[int]:
    """The numbers of images after which a run may stop, ascending; the last is all."""
    shards = sorted({round(2 ** (i / 2)) for i in range(64)})
    return [*(k * shard_size for k in shards if k * shard_size < images), images]


def certainty(outcomes: Outcomes, total: int, rule: Rule) -> Certainty:
    """How certain the scores of outcomes on the first images of `total` are."""
    images = len(outcomes.image_ids)
    try:
        pairs = similarity.pairs(outcomes, rule.eps_s)
    except UserError:  # two models have no image in common yet
        return Certainty(images, total, 0.0, math.inf, rule)
    widths = np.sort((pairs["high"] - pairs["low"]).to_numpy() / 2)
    at_share = float(widths[math.ceil(rule.share * len(widths) - 1e-9) - 1])
    return Certainty(images, total, float((widths <= rule.half_width).mean()), at_share, rule)
