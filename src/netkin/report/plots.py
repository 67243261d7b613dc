"""Scatter plots, lines, intervals, bars, training curves, maps, and images side by side.

Each returns a figure that is ready to be saved; `scatter` and `panels` of `netkin.report.style`
build others. Draw these in `netkin.report.style.style()`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from netkin.analysis.statistics import Trend
from netkin.report.style import (
    BASES,
    FULL,
    INK,
    MARKERS,
    PALETTE,
    SMALL,
    base_colours,
    before_saving,
    legend_above,
    panels,
    style,
    width_of,
)
from netkin.report.text import minus

NAMES_UP_TO = 80
"""Names; more cannot all be read."""
RADIUS = 3.4
"""Points of type: the distance from a point that no name enters."""
MANY = 400
"""Points; more are drawn small, and as pixels in a PDF."""
DASHED = (0, (4, 3))
STANDING_OUT = (PALETTE[4], PALETTE[6])
"""The colours of single points among many."""
LOSSES = {
    "train_loss": "total",
    "label_loss": "from the label",
    "teacher_loss": "from the teacher",
}
ACCURACIES = {
    "train_accuracy": "training, class head",
    "distilled_accuracy": "training, distillation head",
    "teacher_agreement": "training, agreement with the teacher",
    "test_accuracy": "test",
    "test_accuracy_ema": "test, moving average",
}


class Marks(NamedTuple):
    """What stands out in a scatter plot.

    Attributes:
        ringed: [n], the points with a ring, and `ring`, what it means.
        points: further points, (x, y) by what they are, drawn large and named.
        identity: what the line of equal x and y means, if that is drawn.
    """

    ringed: NDArray[np.bool_] | None = None
    ring: str = ""
    points: Mapping[str, tuple[float, float]] | None = None
    identity: str = ""


NOTHING = Marks()


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
    marks: Marks = NOTHING,
) -> Figure:
    """`scatter` on one pair of axes, of `width` by `height` inches with their labels."""
    figure, (ax,) = panels(1, width, height)
    scatter(ax, x, y, xlabel, ylabel, names, groups, trend, text, marks)
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
    marks: Marks = NOTHING,
) -> None:
    """A scatter plot of n points.

    Args:
        ax: of a figure of `panels`, whose panels share one legend.
        x, y: [n].
        xlabel, ylabel: with their units.
        names: of the points, empty for points without one, written near them where there are at
            most `NAMES_UP_TO`, and joined by a line where there is no room beside the point.
        groups: of the points: a colour and a marker each, in a legend.
        trend: of `netkin.analysis.statistics.trend`: a line and its band.
        text: such as "r = -0.31, Mantel p = 0.001", above the points.
        marks: what stands out.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    many = len(x) > MANY
    group_of = np.array(groups if groups is not None else [""] * len(x))
    kinds = list(dict.fromkeys(group_of.tolist()))
    colours = base_colours(group_of.tolist()) if groups is not None else {"": PALETTE[0]}
    known = list(BASES) if {*BASES} & {*kinds} else []  # which have the same marker in all panels
    listed = list(dict.fromkeys([*known, *kinds]))
    markers = {kind: MARKERS[listed.index(kind) % len(MARKERS)] for kind in kinds}
    if marks.identity:
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#777777", lw=0.9, ls=DASHED, zorder=1, label=marks.identity)
    ringed = np.zeros(len(x), dtype=bool) if marks.ringed is None else marks.ringed
    for kind in kinds:
        of, size = group_of == kind, 22
        if many and of.sum() > len(x) / 10:
            size = 6
        ax.scatter(
            x[of],
            y[of],
            s=size,
            alpha=0.35 if size == 6 else 0.85,
            color=colours[kind],
            marker=markers[kind],
            edgecolors=INK,
            linewidths=np.where(ringed[of], 1.1, 0.0).tolist(),
            rasterized=many,
        )
    points = marks.points or {}
    for (label, point), marker, colour in zip(points.items(), "*D", STANDING_OUT, strict=False):
        drawn = {"color": colour, "edgecolors": INK, "linewidths": 0.6, "zorder": 3}
        ax.scatter(*point, s=90 if marker == "*" else 36, marker=marker, label=label, **drawn)
    if trend is not None:
        ax.fill_between(trend.x, trend.low, trend.high, color="#555555", alpha=0.2, lw=0)
        label = f"linear fit, {trend.level:.0%} band"
        ax.plot(trend.x, trend.y, color=INK, lw=1.3, label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if text:
        ax.set_title(minus(text), fontsize=7.5, fontweight="normal", loc="left")
    figure = ax.figure
    assert isinstance(figure, Figure)
    handles, labels = ax.get_legend_handles_labels()
    if len(kinds) > 1:
        handles += [_dot(markers[kind], colours[kind]) for kind in kinds]
        labels += kinds
    if ringed.any():
        ring = _dot("o", "none")
        ring.set(markeredgecolor=INK, markeredgewidth=1.1)
        handles, labels = [*handles, ring], [*labels, marks.ring]
    if handles and not figure.legends:
        legend_above(figure, handles, labels)
    if names is not None and sum(map(bool, names)) <= NAMES_UP_TO:
        line = None if trend is None else np.column_stack([trend.x, trend.y])
        before_saving(figure, partial(_write_names, ax, np.column_stack([x, y]), names, line))


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
) -> Figure:
    """A panel for each (label of its y axis, its lines); the lines have the same names in all, and
    x are whole numbers."""
    figure, axes = panels(len(parts), width, 2.5)
    for ax, (label, lines) in zip(axes, parts, strict=True):
        for i, line in enumerate(lines):
            # Side by side where they have the same x, so that no interval hides another.
            x = line.x + 0.05 * (i - (len(lines) - 1) / 2)
            ax.errorbar(
                x,
                line.y,
                np.maximum([line.y - line.low, line.high - line.y], 0),
                color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[i % len(MARKERS)],
                lw=1.2,
                elinewidth=0.7,
                label=line.name,
            )
        ax.set(xlabel=xlabel, ylabel=label)
        ax.set_xticks(sorted({int(v) for line in lines for v in line.x}))
        ax.margins(x=0.08)
    handles, names = axes[0].get_legend_handles_labels()
    legend_above(figure, handles, names)
    return figure


@style()
def intervals_figure(
    names: Sequence[str],
    values: Sequence[NDArray[np.float64]],
    means: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    line: float,
    label: str,
) -> Figure:
    """A row for each name: its values as points, their mean, a thick inner and a thin outer
    interval of the mean.

    Args:
        names: [n], from top to bottom.
        values: [n] arrays of any length, the pairs of each.
        means: [n].
        inner, outer: [n, 2] low and high, over images and over models; NaN where there is none.
        line: the mean of all pairs, drawn through all rows.
        label: the axis's, with its unit.
    """
    n = len(names)
    figure, (ax,) = panels(1, 4.6, 0.75 + 0.22 * n)
    rng, rows = np.random.default_rng(0), np.arange(n)
    for row, pairs in zip(rows, values, strict=True):
        many = len(pairs) > 200
        ax.scatter(
            pairs,
            row + rng.uniform(-0.28, 0.28, len(pairs)),
            s=2 if many else 7,
            alpha=0.25 if many else 0.55,
            color=PALETTE[0],
            linewidths=0,
            rasterized=len(pairs) > 1000,
        )
    thin = ax.hlines(rows, *outer.T, color=INK, lw=0.9)
    thick = ax.hlines(rows, *inner.T, color=INK, lw=2.6)
    (mean,) = ax.plot(means, rows, ls="", marker="D", ms=4, mfc="white", mec=INK, mew=1)
    every = ax.axvline(line, color=INK, lw=0.8, ls=DASHED)
    ax.set_yticks(rows, names)
    ax.set(xlabel=label, ylim=(n - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    pair = Line2D([], [], ls="", marker="o", ms=3, color=PALETTE[0])
    handles = {"pair": pair, "mean": mean, "95% over models": thin}
    if not np.isnan(inner).all():
        handles["over images"] = thick
    handles["mean of all pairs"] = every
    legend_above(figure, list(handles.values()), list(handles))
    return figure


@style()
def ranked_figure(
    names: Sequence[str],
    parts: Mapping[str, NDArray[np.float64]],
    label: str,
    groups: Sequence[str] | None = None,
) -> Figure:
    """A row for each of n names, the first at the top, with its value, in a panel by title.

    Args:
        names: [n].
        parts: by title, values [n, 1], or values and the low and high ends of their intervals,
            [n, 3].
        label: the axes', with its unit.
        groups: of the names: a colour each, in a legend.
    """
    n = len(names)
    pt = 8 if n <= 30 else SMALL
    figure, axes = panels(len(parts), 5.2 if len(parts) == 1 else 3.4, 0.8 + n * pt * 0.026)
    kinds = sorted({*(groups or ())}, key=lambda group: (len(group), group))
    colours = {kind: PALETTE[i % len(PALETTE)] for i, kind in enumerate(kinds)}
    for ax, (title, values) in zip(axes, parts.items(), strict=True):
        for y, (value, *ends) in enumerate(values):
            colour = INK if groups is None else colours[groups[y]]
            ax.plot(ends, [y] * len(ends), color=colour, lw=pt / 5)
            ax.plot(value, y, "o", color=colour, ms=pt / 1.8)
        if np.nanmin(values) < 0 < np.nanmax(values):  # NaN: without an interval
            ax.axvline(0, color=INK, lw=0.6)
        spec = ax.get_subplotspec()
        first = spec is None or spec.is_first_col()
        ax.set_yticks(range(n), names if first else [""] * n, fontsize=pt)
        ax.set(ylim=(n - 0.4, -0.6), xlabel=label, title=title)
        ax.grid(axis="y", visible=False)
    if colours:
        legend_above(figure, [_dot("o", colour) for colour in colours.values()], list(colours))
    return figure


@style()
def curves_figure(curves: pl.DataFrame) -> Figure:
    """Two panels from the curves of `netkin.training.fit.Fit`: losses, and accuracies in per cent.

    Test accuracies, which need not be there for every epoch, are points joined by a line.
    """
    figure, (left, right) = panels(2, 3.6, 2.9)
    for column, label in LOSSES.items():
        if column in curves.columns:
            left.plot(curves["epoch"], curves[column], label=label)
    left.set(xlabel="epoch", ylabel="loss on augmented images (nats)")
    if "teacher_loss" in curves.columns:
        left.legend()
    for column, label in ACCURACIES.items():
        if column in curves.columns:
            rows = curves.drop_nulls(column)
            marker = "o" if column.startswith("test") else ""
            right.plot(rows["epoch"], 100 * rows[column], label=label, marker=marker)
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    right.legend(loc="lower right")
    return figure


@style()
def map_figure(
    points: NDArray[np.float64], names: Sequence[str], labels: NDArray, groups: Sequence[str]
) -> Figure:
    """Models as points [N, 2] in the colour of their base architecture or other group ([N]) and
    the marker of their cluster ([N] int from 0), with their names."""
    few, colours = len(names) <= 40, base_colours(groups)
    figure, (ax,) = panels(1, 5.2 if few else FULL, 4.2 if few else 6.4)
    handles = {base: _dot("o", colour) for base, colour in colours.items()}
    for cluster in np.unique(labels):
        members, marker = labels == cluster, MARKERS[cluster % len(MARKERS)]
        ax.scatter(
            *points[members].T,
            s=70 if marker == "*" else 36,
            color=[colours[groups[i]] for i in np.flatnonzero(members).tolist()],
            marker=marker,
            edgecolors="white",
            linewidths=0.5,
        )
        handles[f"cluster {cluster + 1}"] = _dot(marker)
    ax.set(xticks=[], yticks=[])  # neither axis means anything
    ax.spines[:].set(visible=True, color="#c8ccd1")
    ax.margins(0.06)
    ax.grid(False)
    legend_above(figure, list(handles.values()), list(handles))
    if len(names) <= NAMES_UP_TO:
        before_saving(figure, partial(_write_names, ax, points, names))
    return figure


@style()
def images_figure(
    images: Sequence[Sequence[NDArray[np.uint8]]],
    titles: Sequence[str],
    below: Sequence[Sequence[str]],
    names: Sequence[str],
) -> Figure:
    """Images side by side, as they are.

    Args:
        images: R rows of up to C images, [H, W, 3] each.
        titles: of the C columns.
        below: a text for each image.
        names: of the rows, at the left.
    """
    rows, columns = len(images), len(titles)
    width = width_of(columns * 0.95)
    side = width / (columns + 0.2)  # of an image, in inches; names take the rest
    step = 1 + 0.2 / side  # from row to row, in images
    figure = Figure(figsize=(width, side * rows * step + 0.2))
    figure.set_layout_engine("none")
    FigureCanvasAgg(figure)
    # One axes for all: an axes an image takes ten times as long to draw.
    ax = figure.add_axes((1 - columns * side / width, 0, columns * side / width, 1))
    words = {"fontsize": SMALL, "color": INK}
    for column, title in enumerate(titles):
        ax.text(column + 0.5, -0.04, title, ha="center", va="bottom", **words)
    for row, name in enumerate(names):
        ax.text(-0.06, row * step + 0.5, name, rotation=90, ha="right", va="center", **words)
        for column, (image, word) in enumerate(zip(images[row], below[row], strict=True)):
            box = (column + 0.02, column + 0.98, row * step + 0.98, row * step + 0.02)
            ax.imshow(image, interpolation="nearest", extent=box)
            ax.text(column + 0.5, row * step + 1, word, ha="center", va="top", **words)
    ax.set(xlim=(0, columns), ylim=(rows * step, -0.2 / side))
    ax.set_axis_off()
    return figure


def _dot(marker: str, colour: str = INK) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=colour)


def _write_names(
    ax: Axes,
    points: NDArray[np.float64],
    names: Sequence[str],
    line: NDArray[np.float64] | None = None,
) -> None:
    """Write each name near its point ([n, 2]), off other names, points and a line ([m, 2]), and
    join those that are farther away to their points.

    Each name in turn takes the nearest free position around its point, or the least occupied one:
    deterministic, and linear in the names. The figure's layout must be final: see `before_saving`.
    """
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    pixels = ax.transData.transform(points)
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    around = np.column_stack([np.cos(turns), np.sin(turns)])  # [24, 2], the first to the right
    # Points have a size: a ring around each is avoided, too.
    obstacles = [pixels, (pixels[:, None] + RADIUS * unit * around[::3]).reshape(-1, 2)]
    if line is not None:
        x = np.linspace(line[:, 0].min(), line[:, 0].max(), 200)
        along = np.column_stack([x, np.interp(x, *line.T)])
        obstacles.append(ax.transData.transform(along))
    avoided = np.concatenate(obstacles)
    frame = ax.bbox.padded(unit).extents
    taken = np.empty((0, 4))  # boxes of names: left, bottom, right, top
    texts = [ax.text(0, 0, name, fontsize=SMALL, color=INK, ha="center", va="center")
             for name in names]  # fmt: skip
    for text, point in zip(texts, pixels, strict=True):
        if not text.get_text():
            continue
        half = np.asarray(text.get_window_extent().size) / 2
        tried, occupied = [], []
        for gap in range(1, 72, 3):  # farther from the point, until a position is free
            centres = point + around * (half + (RADIUS + gap) * unit)
            boxes = np.hstack([centres - half, centres + half])  # [24, 4]
            outside = ((boxes[:, :2] < frame[:2]) | (boxes[:, 2:] > frame[2:])).any(axis=1)
            tried.append(boxes)
            occupied.append(_inside(boxes, avoided, avoided) + 100 * outside)
            occupied[-1] += 10 * _inside(boxes, taken[:, :2], taken[:, 2:])
            if not occupied[-1].min():
                break
        boxes, occupied = np.concatenate(tried), np.concatenate(occupied)
        best = int(occupied.argmin())
        taken = np.vstack([taken, boxes[best]])

        def to_data(pixel: NDArray[np.float64]) -> tuple[float, float]:
            x, y = ax.transData.inverted().transform(pixel)
            return float(x), float(y)

        text.set_position(to_data((boxes[best, :2] + boxes[best, 2:]) / 2))
        near = np.clip(point, boxes[best, :2], boxes[best, 2:])
        if np.linalg.norm(near - point) > (RADIUS + 5) * unit:
            arrow = {"arrowstyle": "-", "color": "#8a929c", "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
            ax.annotate("", to_data(point), to_data(near), arrowprops=arrow)


def _inside(
    boxes: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How many of M other boxes, by their corners [M, 2], each of some boxes [C, 4] meets, [C]."""
    meets = (boxes[:, None, :2] < high) & (boxes[:, None, 2:] > low)
    return meets.all(axis=2).sum(axis=1)
