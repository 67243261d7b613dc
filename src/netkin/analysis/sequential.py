"""Runs that stop when scores are certain enough, with intervals that stay valid whenever one stops.

A run is looked at after 1, 2, 3, 4, 6, 8, 11, 16, ... shards, 2^(i/2) of them, and after all. At
look k a pair has netkin's own interval (`netkin.similarity.with_interval`) at a level alpha_k
instead of 5 %. All looks of a run together miss a pair's score with a probability of 5 %: these are
repeated confidence intervals (Jennison and Turnbull 1989), which hold for any rule of stopping,
also for going on because a result is not clear yet.

By look k a part of the 5 % is spent (Lan and DeMets 1983) that depends on t, the share of the
subset's images that were used, alone: 5 % times the square root of t (Kim and DeMets 1987). A run
that goes on later therefore needs no other levels. The root spends more at small t than the usual
functions, since a run of many images is meant to stop early. The critical values follow by the
recursion of Armitage, McPherson and Rowe (1969) for a Brownian motion that is looked at at t_k.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from netkin import similarity
from netkin.errors import UserError
from netkin.similarity import ALPHA, EPS_S, Outcomes

NODES = 200
"""Of the quadrature; twice as many change no critical value by 1e-6."""
LAST = 0.9
"""The last look but one is at most at this share of all images: a later one gains nothing."""


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
        if not _is_number(self.half_width) or not self.half_width > 0:
            raise UserError(f"half_width must be above 0 (nats), got {self.half_width!r}")
        if not _is_number(self.share) or not 0 < self.share <= 1:
            raise UserError(f"share must be in (0, 1], got {self.share!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Look:
    """How certain scores are after some of a run's images.

    Attributes:
        images, total: that were used, and that the run has.
        alpha: level of the pairs' intervals at this look.
        share: of the pairs that are certain enough.
        half_width: of the pair at the rule's share, in nats; infinite where a pair has no image.
        rule: that the run stops by.
    """

    images: int
    total: int
    alpha: float
    share: float
    half_width: float
    rule: Rule

    @property
    def reached(self) -> bool:
        """Whether the run may stop."""
        return self.half_width <= self.rule.half_width

    @property
    def numbers(self) -> dict[str, float]:
        """The look as a point of curves over `sequential/images`."""
        numbers = {"sequential/images": self.images, "sequential/share": self.share}
        if math.isfinite(self.half_width):
            numbers["sequential/half_width"] = self.half_width
        return numbers

    @property
    def needed(self) -> float:
        """About how many images the rule needs: half-widths shrink with the root of the images."""
        return images_needed(self.images, self.half_width, self.rule.half_width)


def images_needed(images: int, half_width: float, wanted: float) -> float:
    """n = n0 (h0 / h)^2, of n0 images that gave a half-width h0; infinite where h0 is."""
    return images * (half_width / wanted) ** 2


def looks(images: int, shard_size: int) -> list[int]:
    """The numbers of images of a run at which it is looked at, ascending; the last is all."""
    most = LAST * images / shard_size
    shards = sorted({round(2 ** (i / 2)) for i in range(64)})
    return [*(k * shard_size for k in shards if k <= most), images]


def level(images: int, total: int, shard_size: int) -> float:
    """The level alpha_k of intervals at a look after so many images of a run's total."""
    found = looks(total, shard_size)
    return _levels(tuple(found))[found.index(images)]


@cache
def _levels(found: tuple[int, ...]) -> tuple[float, ...]:
    times = np.array(found) / found[-1]
    values = critical_values(times, ALPHA * np.sqrt(times))
    return tuple((2 * ndtr(-values)).tolist())


def critical_values(
    times: Sequence[float] | NDArray[np.float64], spent: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Two-sided critical values c_k, [K], of a standardised Brownian motion at each time.

    Args:
        times: t_k, [K], ascending, above 0.
        spent: [K], ascending: the probability that |Z_j| > c_j at any look j up to k.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    values, last, used = [], 0.0, 0.0
    at, mass = np.zeros(1), np.ones(1)  # where the paths are that no look has ended yet
    for t, total in zip(times, spent, strict=True):
        sd, root = math.sqrt(t - last), math.sqrt(t)
        c = brentq(_excess, 0.0, 40.0, args=(total - used, root, sd, at, mass))
        assert isinstance(c, float)
        inside = c * root * nodes
        kernel = np.exp(-(((inside[:, None] - at) / sd) ** 2) / 2) / (sd * math.sqrt(2 * math.pi))
        at, mass = inside, (kernel @ mass) * c * root * weights
        values.append(c)
        last, used = t, total
    return np.array(values)


def _excess(c: float, wanted: float, root: float, sd: float, at: NDArray, mass: NDArray) -> float:
    """How much more than wanted of the paths at some places ends at the next look."""
    return float(mass @ (ndtr((-c * root - at) / sd) + ndtr((at - c * root) / sd))) - wanted


def place_of_share(share: float, values: int) -> int:
    """The position of the value that a share, in (0, 1], of so many ascending ones has at most."""
    return math.ceil(share * values - 1e-9) - 1


def look(outcomes: Outcomes, total: int, shard_size: int, rule: Rule) -> Look:
    """How certain the scores of outcomes on a run's first images are.

    Args:
        outcomes: on as many images as one of `looks` has.
        total: images of the run.
        shard_size: of the run.
        rule: what is certain enough.
    """
    images = len(outcomes.image_ids)
    alpha = level(images, total, shard_size)
    try:
        pairs = similarity.pairs(outcomes, rule.eps_s, alpha)
    except UserError:  # two models have no image in common yet
        return Look(images, total, alpha, 0.0, math.inf, rule)
    widths = np.sort((pairs["high"] - pairs["low"]).to_numpy() / 2)
    at_share = float(widths[place_of_share(rule.share, len(widths))])
    share = float((widths <= rule.half_width).mean())
    return Look(images, total, alpha, share, at_share, rule)
