"""Yes, No or Not certain: the one place that decides it."""

import math
from typing import Literal

from netkin.similarity import ALPHA

Verdict = Literal["Yes", "No", "Not certain"]


def verdict(
    effect: float,
    interval: tuple[float | None, float | None] | None = None,
    p: float | None = None,
    *,
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
        verdict(share_of_draws, p=1 - share_of_draws, threshold=0.5)  # in 95% of draws

    Args:
        effect: the estimate, in any unit.
        interval: its low and high end, of the confidence 1 - alpha.
        p: of the hypothesis that the effect is `threshold`, in [0, 1]; one value for both signs.
        threshold: in the unit of the effect.
        alpha: the p-value from which an effect is not certain.
        enough: whether there are enough observations for any verdict.
    """
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
