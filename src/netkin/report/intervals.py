"""Means of named groups, a row each, with two intervals."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.report.style import PALETTE, panels, style


@style()
def intervals_figure(
    names: Sequence[str],
    means: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    label: str,
) -> Figure:
    """A point for each name, with a thick inner and a thin outer interval.

    Args:
        names: [n], from top to bottom.
        means: [n].
        inner, outer: [n, 2] low and high; NaN where there is none.
        label: the axis's, with its unit.
    """
    n = len(names)
    figure, (ax,) = panels(1, 4.6, 0.7 + 0.22 * n)
    places = np.arange(n)
    ax.hlines(places, *outer.T, color=PALETTE[0], lw=0.9)
    ax.hlines(places, *inner.T, color=PALETTE[0], lw=3.2, alpha=0.45)
    ax.plot(means, places, ls="", marker="o", color=PALETTE[0])
    ax.set_yticks(places, names)
    ax.set(xlabel=label, ylim=(n - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    return figure
