"""Horizontal bars with intervals, one panel beside another over the same names."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.report.style import INK, PALETTE, panels, style


@dataclass(frozen=True)
class Bar:
    """A panel: values [n] in the order of the names, their intervals, and what they are."""

    title: str
    label: str
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@style()
def bars_figure(names: Sequence[str], shown: Sequence[Bar]) -> Figure:
    """A panel for each of `shown`; the names ([n]) are read from top to bottom."""
    figure, axes = panels(len(shown), 3.4, 0.7 + 0.21 * len(names))
    places = np.arange(len(names))
    for i, (ax, bar) in enumerate(zip(axes, shown, strict=True)):
        ax.barh(places, bar.values, color=PALETTE[i], height=0.68)
        ax.hlines(places, bar.low, bar.high, color=INK, lw=1.0)
        ax.axvline(0, color=INK, lw=0.6)
        ax.set(ylim=(len(names) - 0.5, -0.5), xlabel=bar.label, title=bar.title)
        ax.set_yticks(places, names if i == 0 else [""] * len(names))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    return figure
