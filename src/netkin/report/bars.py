"""Horizontal bars with intervals, in panels side by side with one list of names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.report.style import INK, PALETTE, panels, style


@dataclass(frozen=True)
class Bar:
    """A panel: title, label of the axis, and values [n] with the ends of their intervals."""

    title: str
    label: str
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@style()
def bars_figure(names: Sequence[str], bars: Sequence[Bar]) -> Figure:
    """A panel for each of `bars`, with the names [n] from top to bottom."""
    figure, axes = panels(len(bars), 3.4, 0.7 + 0.21 * len(names))
    places = np.arange(len(names))
    for i, (ax, bar) in enumerate(zip(axes, bars, strict=True)):
        ax.barh(places, bar.values, color=PALETTE[i], height=0.68)
        ax.hlines(places, bar.low, bar.high, color=INK, lw=1.0)
        ax.axvline(0, color=INK, lw=0.6)
        ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=bar.label, title=bar.title)
        place = ax.get_subplotspec()
        first = place is None or place.is_first_col()
        ax.set_yticks(places, names if first else [""] * len(names))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    return figure
