"""Yes, No or Not certain: the one place that decides it."""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from netkin.similarity import ALPHA

Verdict = Literal["Yes", "No", "Not certain"]


def verdict(
    effect: float,
    interval: tuple[float | None, float | None] | None = None,
    p: float | None = None,
    *,
    null: ArrayLike | None = None,
    threshold: float = 0.0,
    alpha: float = ALPHA,
    enough: bool = True,
) -> Verdict:
    """Whether an effect is above a threshold: Yes above it, No below it, both beyond chance.

    Not certain where the interval includes the threshold, where p is not below alpha, where the
    effect or its uncertainty is NaN or None, or where there are not `enough` observations. With
    neither interval nor p the effect is exact, such as a count.

        verdict(r, (low, high))                                   # is r above 0?
        verdict(share, (low, high), threshold=ALIKE)              # is it at least ALIKE?
        verdict(test.r, p=test.p, enough=models >= FEWEST)        # a permutation test
        verdict(nearest, null=nearest_of_shuffled)                # more, or less, than by chance?
        verdict(share, p=min(share, 1 - share), threshold=0.5)    # in 95% of draws, or in 5%?

    The interval and p are over what the claim generalises to. An interval over images says what
    other images would give these models; that models of one family are more alike is a claim about
    families, which takes a p-value by permuting their labels.

    Args:
        effect: the estimate, in any unit.
        interval: its low and high end, of the confidence 1 - alpha.
        p: of the hypothesis that the effect is `threshold`, in [0, 1]; one value for both signs.
        null: [m] effects by chance alone, such as of shuffled scores. p is then that of
            `by_chance`, and the threshold their median; give neither.
        threshold: in the unit of the effect.
        alpha: the p-value from which an effect is not certain.
        enough: whether there are enough observations for any verdict.
    """
    if null is not None:
        p, threshold = by_chance(effect, null), float(np.median(np.asarray(null, float)))
    if not enough or math.isnan(effect):
        return "Not certain"
    if p is not None and not p < alpha:
        return "Not certain"
    if interval is not None:
        low, high = (math.nan if end is None else end for end in interval)
        if not (low > threshold or high < threshold):
            return "Not certain"
        return "Yes" if low > threshold else "No"
    return "Yes" if effect > threshold else "No"


def by_chance(effect: float, null: ArrayLike) -> float:
    """The two-sided p-value of an effect, by m effects of chance alone, [m].

    Twice the share of these, the effect among them, that are at least as far out on its side, at
    most 1. NaN where one of them is NaN, or there are none.
    """
    values = np.asarray(null, dtype=float)
    if not values.size or np.isnan(values).any() or math.isnan(effect):
        return math.nan
    beyond = min((values >= effect - 1e-12).sum(), (values <= effect + 1e-12).sum())
    return min(1.0, 2 * float(beyond + 1) / (values.size + 1))
