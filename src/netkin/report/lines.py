"""Lines with intervals over whole numbers or shares, in panels side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from netkin.report.style import MARKERS, PALETTE, legend_above, panels, style


class Line(NamedTuple):
    """A series: its name, x [n], y [n], and the interval of y, low and high [n]."""

    name: str
    x: NDArray
    y: NDArray
    low: NDArray
    high: NDArray


@style()
def lines_figure(
    parts: Sequence[tuple[str, Sequence[Line]]],
    xlabel: str,
    width: float = 2.6,
    height: float = 2.5,
    shares: bool = False,
) -> Figure:
    """A panel for each (label of its y axis, its lines); the lines have the same names in all.

    x are whole numbers, or with `shares` numbers above 0, drawn as per cent on a log scale.
    """
    figure, axes = panels(len(parts), width, height)
    for ax, (label, lines) in zip(axes, parts, strict=True):
        for i, line in enumerate(lines):
            # Side by side where they have the same x, so that no interval hides another.
            x = line.x + (0 if shares else 0.05 * (i - (len(lines) - 1) / 2))
            ax.errorbar(
                x,
                line.y,
                [np.maximum(line.y - line.low, 0), np.maximum(line.high - line.y, 0)],
                color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[i % len(MARKERS)],
                lw=1.2,
                elinewidth=0.7,
                label=line.name,
            )
        ax.set(xlabel=xlabel, ylabel=label)
        if shares:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.xaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_xticks(sorted({int(v) for line in lines for v in line.x}))
        ax.margins(x=0.08)
    handles, names = axes[0].get_legend_handles_labels()
    legend_above(figure, handles, names)
    return figure
