"""Scatter plots with a trend line, its band, and names next to the points."""

from collections.abc import Sequence

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from netkin.analysis.statistics import Trend
from netkin.report.style import (
    BASES,
    INK,
    MARKERS,
    PALETTE,
    SMALL,
    base_colours,
    before_saving,
    legend_above,
    panels,
    style,
)

NAMES_UP_TO = 40  # points; more names than these cannot all be read
RADIUS = 3.4  # pt, from a point that no name enters
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
        names: of the points, written near them where there are at most `NAMES_UP_TO`, and
            joined by a line where there is no room beside the point.
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
    colours = base_colours(groups) if groups is not None else {"": PALETTE[0]}
    known = list(BASES) if {*BASES} & {*kinds} else []  # which have the same marker in all panels
    places = list(dict.fromkeys([*known, *kinds]))
    markers = {kind: MARKERS[places.index(kind) % len(MARKERS)] for kind in kinds}
    group_of = np.array(groups if groups is not None else [""] * len(x))
    for kind in kinds:
        ax.scatter(
            x[group_of == kind],
            y[group_of == kind],
            s=size,
            alpha=alpha,
            color=colours[kind],
            marker=markers[kind],
            linewidths=0,
            rasterized=many,
        )
    if trend is not None:
        ax.fill_between(trend.x, trend.low, trend.high, color="#555555", alpha=0.2, lw=0)
        label = f"linear fit, {trend.level:.0%} band"
        ax.plot(trend.x, trend.y, color=INK, lw=1.3, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if text:
        ax.set_title(text, fontsize=7.5, fontweight="normal", loc="left")
    assert isinstance(ax.figure, Figure)
    handles, labels = ax.get_legend_handles_labels()
    if len(kinds) > 1:
        handles += [
            Line2D([], [], ls="", marker=markers[kind], color=colours[kind]) for kind in kinds
        ]
        labels += kinds
    if handles and not ax.figure.legends:  # the panels of a figure have one legend
        legend_above(ax.figure, handles, labels)
    if names is not None and len(names) <= NAMES_UP_TO:
        line = None if trend is None else (trend.x, trend.y)
        before_saving(ax.figure, lambda: write_names(ax, x, y, names, line))


def write_names(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    names: Sequence[str],
    line: tuple[ArrayLike, ArrayLike] | None = None,
) -> None:
    """Write each name near its point, off other names, points and a line (its x and y), and join
    those that are moved away to their points. None is left out.

    The layout of the figure must be final: see `netkin.report.style.before_saving`.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # so that the layout, and with it the scale, is final
    texts = [
        ax.text(float(a), float(b), name, fontsize=SMALL, color=INK, ha="center", va="center")
        for a, b, name in zip(x, y, names, strict=True)
    ]
    points = ax.transData.transform(np.column_stack([x, y]))
    # Points have a size: a ring around each is avoided, too.
    turns = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = RADIUS * figure.dpi / 72 * np.column_stack([np.cos(turns), np.sin(turns)])
    avoid = [points, (points[:, None] + ring).reshape(-1, 2)]
    if line is not None:
        along = np.linspace(*ax.get_xlim(), 200)
        heights = np.interp(along, *map(np.asarray, line), left=np.nan, right=np.nan)
        avoid.append(ax.transData.transform(np.column_stack([along, heights])[~np.isnan(heights)]))
    obstacles = np.vstack(avoid)
    _adjust(ax, texts, x, y, obstacles)
    for i, text in enumerate(texts):
        _free(ax, text, points[i], [other for other in texts if other is not text], obstacles)
    for text, point in zip(texts, points, strict=True):
        _lead(ax, text, point)


def _adjust(
    ax: Axes,
    texts: Sequence[Text],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    obstacles: NDArray[np.float64],
) -> None:
    """Move texts [n] from their points off each other and the obstacles ([m, 2], in pixels)."""
    scale = round(ax.figure.dpi / 100)  # adjustText counts in pixels
    adjust_text(
        list(texts),
        *ax.transData.inverted().transform(obstacles).T,
        target_x=x,
        target_y=y,
        ax=ax,
        expand=(1.06, 1.25),
        force_text=(0.15, 0.3),
        force_static=(0.15, 0.3),
        max_move=(10 * scale, 10 * scale),
        pull_threshold=10 * scale,
        iter_lim=400,  # without a limit in seconds: the same figure every time
    )


def _free(
    ax: Axes,
    text: Text,
    point: NDArray[np.float64],
    others: Sequence[Text],
    obstacles: NDArray[np.float64],
) -> None:
    """Move a text that still meets another one or an obstacle to the nearest place around its
    point where it does not, if there is one."""
    assert isinstance(ax.figure, Figure)
    taken, unit = [other.get_window_extent() for other in others], ax.figure.dpi / 72
    frame = ax.bbox.padded(unit)

    def is_free() -> bool:
        box = text.get_window_extent()
        return (
            bool(frame.contains(*box.min) and frame.contains(*box.max))
            and not box.count_overlaps(taken)
            and not box.count_contains(obstacles)
        )

    if is_free():
        return
    stays = text.get_position()
    size = np.asarray(text.get_window_extent().size) / 2
    for distance in range(5, 75, 3):  # points from the text's edge
        for turn in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            shift = np.array([np.cos(turn), np.sin(turn)])
            text.set_position(_data(ax, point + shift * (size + distance * unit)))
            if is_free():
                return
    text.set_position(stays)


def _data(ax: Axes, pixels: NDArray[np.float64]) -> tuple[float, float]:
    x, y = ax.transData.inverted().transform(pixels)
    return float(x), float(y)


def _lead(ax: Axes, text: Text, point: NDArray[np.float64]) -> None:
    """Join a text that is away from its point ([2], in pixels) to it."""
    assert isinstance(ax.figure, Figure)
    box, unit = text.get_window_extent(), ax.figure.dpi / 72
    near = np.clip(point, box.min, box.max)
    if np.linalg.norm(near - point) > (RADIUS + 3) * unit:
        look = {"arrowstyle": "-", "color": "#8a929c", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        ax.annotate("", _data(ax, point), _data(ax, near), arrowprops=look)
