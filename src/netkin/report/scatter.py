"""Scatter plots with a trend line, its band, and names next to the points."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from netkin.analysis.statistics import Trend
from netkin.report.style import INK, MARKERS, PALETTE, panels, style

NAMES_UP_TO = 40  # points; more names than these cannot all be read
_MANY = 400  # points; more are drawn small, and as pixels in a PDF


@style()
def scatter_figure(
    x: ArrayLike,
    y: ArrayLike,
    xlabel: str,
    ylabel: str,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    trend: Trend | None = None,
    text: str = "",
    width: float = 4.2,
    height: float = 3.2,
) -> Figure:
    """A scatter plot of n points, ready to be saved.

    Args:
        x, y: [n].
        xlabel, ylabel: with their units.
        names: of the points, written next to them where there are at most `NAMES_UP_TO` and
            a name hides no point and no other name.
        groups: of the points: a colour and a marker each, in a legend.
        trend: of `netkin.analysis.statistics.trend`: a line and its band.
        text: such as "r = -0.31, Mantel p = 0.001", above the points.
        width, height: of the axes with their labels, in inches.
    """
    figure, (ax,) = panels(1, width, height)
    scatter(ax, x, y, xlabel, ylabel, names, groups, trend, text)
    return figure


def scatter(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    xlabel: str,
    ylabel: str,
    names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    trend: Trend | None = None,
    text: str = "",
) -> None:
    """`scatter_figure` on given axes. Draw within `netkin.report.style.style()`."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    many = len(x) > _MANY
    size, alpha = (6, 0.35) if many else (22, 0.85)
    kinds = list(dict.fromkeys(groups)) if groups is not None else [""]
    group_of = np.array(groups if groups is not None else [""] * len(x))
    for i, kind in enumerate(kinds):
        ax.scatter(
            x[group_of == kind],
            y[group_of == kind],
            s=size,
            alpha=alpha,
            color=PALETTE[i % len(PALETTE)],
            marker=MARKERS[i % len(MARKERS)],
            linewidths=0,
            rasterized=many,
        )
    if trend is not None:
        ax.fill_between(trend.x, trend.low, trend.high, color="#555555", alpha=0.2, lw=0)
        ax.plot(trend.x, trend.y, color=INK, lw=1.3)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if text:
        ax.set_title(text, fontsize=8, fontweight="normal", loc="left")
    if groups is not None and len(kinds) > 1:
        handles = [
            Line2D([], [], ls="", marker=MARKERS[i % len(MARKERS)], color=PALETTE[i % len(PALETTE)])
            for i in range(len(kinds))
        ]
        ax.legend(handles, kinds, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.3)
    if names is not None and len(names) <= NAMES_UP_TO:
        write_names(ax, x, y, names)


def write_names(ax: Axes, x: ArrayLike, y: ArrayLike, names: Sequence[str]) -> int:
    """Write each name next to its point where it hides no point and no other name.

    The axes must have their points and limits. Returns the number of names that were written.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    assert isinstance(ax.figure, Figure)
    ax.figure.draw_without_rendering()  # so that the layout, and with it the scale, is final
    frame = Box(*ax.get_window_extent().padded(4).extents)
    points = ax.transData.transform(np.column_stack([x, y]))
    radius = 2.5 * ax.figure.dpi / 72
    taken: list[Box] = []
    for i, name in enumerate(names):
        others = np.delete(points, i, axis=0)
        for dx, dy, ha, va in _BESIDE:
            label = ax.annotate(
                name,
                (float(x[i]), float(y[i])),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=6.5,
                color=INK,
            )
            label.set_in_layout(False)
            box = Box(*label.get_window_extent().extents)
            if box.within(frame) and not box.holds(others, radius) and not box.meets(taken):
                taken.append(box)
                break
            label.remove()
    return len(taken)


_BESIDE = (  # the places for a name, in order: offsets in points, and its alignment
    *((4, 0, "left", "center"), (-4, 0, "right", "center")),
    *((0, 4, "center", "bottom"), (0, -4, "center", "top")),
    *((3, 3, "left", "bottom"), (3, -3, "left", "top")),
    *((-3, 3, "right", "bottom"), (-3, -3, "right", "top")),
)


class Box(NamedTuple):
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def within(self, other: "Box") -> bool:
        """Whether it is inside the other."""
        return (
            self.x0 >= other.x0
            and self.x1 <= other.x1
            and self.y0 >= other.y0
            and self.y1 <= other.y1
        )

    def meets(self, others: Sequence["Box"]) -> bool:
        """Whether it overlaps any of the others."""
        return any(
            self.x0 < o.x1 and o.x0 < self.x1 and self.y0 < o.y1 and o.y0 < self.y1 for o in others
        )

    def holds(self, points: NDArray[np.float64], radius: float) -> bool:
        """Whether any of the points [n, 2] is within `radius` of it or in it."""
        px, py = points.T
        inside = (px > self.x0 - radius) & (px < self.x1 + radius)
        return bool((inside & (py > self.y0 - radius) & (py < self.y1 + radius)).any())
