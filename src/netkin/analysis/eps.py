"""The choice of eps from white-box success: an attack has to fool its own source."""

from collections.abc import Mapping

import polars as pl
from scipy.stats import binomtest

from netkin.errors import and_more

ENOUGH = 0.99
"""White-box success that every model has to reach."""
SUCCESS, NOISE = "white_box_success", "noise_error"


def strength_row(
    model: str, eps: float, text: str, images: int, fooled: Mapping[str, int]
) -> dict[str, str | float]:
    """A row of the table that `sentence` reads.

    Args:
        model: its name.
        eps: in pixels of [0, 1].
        text: eps as people write it, such as "8/255".
        images: number of images that were attacked.
        fooled: how many of them the attack (SUCCESS) and noise (NOISE) of this eps changed to a
            wrong prediction.

    Returns:
        model, eps (text), levels (of 255), n, and both rates, each with its 95% Wilson interval.
    """
    row: dict[str, str | float] = {"model": model, "eps": text, "levels": 255 * eps, "n": images}
    for name, count in fooled.items():
        interval = binomtest(count, images).proportion_ci(method="wilson")
        row |= {name: count / images, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def smallest(table: pl.DataFrame) -> str | None:
    """The smallest eps at which success is `ENOUGH` on every model; None where it is at none."""
    lowest = table.group_by("levels", "eps").agg(pl.col(SUCCESS).min()).sort("levels")
    enough = lowest.filter(pl.col(SUCCESS) >= ENOUGH)
    return None if enough.is_empty() else enough["eps"][0]


def sentence(table: pl.DataFrame) -> str:
    """The choice in words, with what noise of that size does, or which models stand against it."""
    eps = smallest(table)
    if eps is None:
        largest = table.filter(pl.col("levels") == table["levels"].max())
        weak = largest.filter(pl.col(SUCCESS) < ENOUGH).sort(SUCCESS).to_dicts()
        names = and_more([f"{row['model']} ({row[SUCCESS]:.1%})" for row in weak])
        return (
            f"No: none of these eps is large enough: at the largest, {largest['eps'][0]}, "
            f"white-box success is below {ENOUGH:.0%} on {names}."
        )
    noise = table.filter(eps=eps).sort(NOISE, descending=True).row(0, named=True)
    return (
        f"Yes. Use eps = {eps}: it is the smallest of these at which white-box success is at least "
        f"{ENOUGH:.0%} on every model. Noise of this size alone makes a model misclassify at most "
        f"{noise[NOISE]:.1%} of its images ({noise['model']})."
    )
