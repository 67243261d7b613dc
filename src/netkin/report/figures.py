"""The similarity matrix as a figure for a paper: clustered, with its dendrogram, as PNG and PDF."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from netkin.analysis.hierarchy import Hierarchy, hierarchy, off_diagonal
from netkin.report.style import COLOURS, INK, base_colours

LABEL = "similarity  $s = \\ln(100\\,p)$"
VALUES_UP_TO = 16  # models; beyond it a cell is too small for its number
FAMILIES_UP_TO = 12  # more colours than these cannot be told apart


def colour_range(
    scores: NDArray[np.float64], least: float = 0.0, signed: bool = False
) -> tuple[float, float]:
    """The values that the two ends of the colour map stand for, from [N, N] of pairs.

    2 to 98 % of the pairs of different models, so that one pair does not take the colours of all
    others. With 50 pairs or fewer these are all of them but a far outlier below (Tukey's outer
    fence), such as a pair that was never fooled: s = ln 0.01 = -4.6. The diagonal is outside.

    The ends are at least `least` apart, so that differences of chance have similar colours. With
    `signed` they have 0 in the middle.
    """
    pairs = off_diagonal(scores)
    if not pairs.size:
        return (-1.0, 1.0) if signed else (0.0, float(np.log(100.0)))
    q1, q3 = np.quantile(pairs, (0.25, 0.75))
    low = np.quantile(pairs[pairs >= q1 - max(3 * (q3 - q1), 1.0)], 0.02, method="lower")
    high = np.quantile(pairs, 0.98, method="higher")
    if signed:
        end = max(abs(low), abs(high), least / 2, 1e-9)
        return -float(end), float(end)
    if high - low < 1e-9:  # one pair, or equal scores: any range of some width
        low, high = low - 0.5, high + 0.5
    more = max(0.0, least - (high - low)) / 2
    return float(low - more), float(high + more)


def cell_colours(
    values: NDArray[np.float64], limits: tuple[float, float], colours: Colormap = COLOURS
) -> tuple[NDArray[np.float64], list[str]]:
    """RGBA of each value ([n] -> [n, 4] in [0, 1]) and the ink that is legible on it."""
    rgba = colours(Normalize(*limits)(values))
    linear = np.where(rgba <= 0.04045, rgba / 12.92, ((rgba + 0.055) / 1.055) ** 2.4)
    luminance = linear[:, :3] @ (0.2126, 0.7152, 0.0722)
    # 0.179 is where black and white have the same WCAG contrast.
    return rgba, ["black" if y > 0.179 else "white" for y in luminance]


def heatmap_figure(
    scores: NDArray[np.float64],
    names: Sequence[str],
    families: Sequence[str],
    label: str = LABEL,
    least: float = 0.0,
    marked: NDArray[np.bool_] | None = None,
) -> Figure:
    """The clustered matrix with its dendrogram; safe in any thread.

    Args:
        scores: [N, N], symmetric, in nats, N >= 2. NaN is drawn hatched.
        names: N model names.
        families: the family of each model: a strip of colours with a legend where there are 2 to
            12 families, and left out otherwise.
        label: of the colours.
        least: see `colour_range`.
        marked: [N, N], cells to mark with a circle, which `label` should explain.

    Raises UserError for fewer than 2 models, ValueError where the arguments disagree.
    """
    n = len(names)
    if scores.shape != (n, n) or len(families) != n:
        raise ValueError(f"{n} names, {len(families)} families and scores {scores.shape} disagree")
    tree = hierarchy(scores)
    cell = float(np.clip(5.2 / n, 0.1, 0.7))  # inches
    font = min(9.0, 72 * cell * 0.8)  # points, so that a line of text always fits its cell
    side = n * cell
    # A layout in inches. bbox_inches="tight" saves names and legend, which are outside.
    figure = Figure(figsize=(side + 2, side + 2))
    FigureCanvasAgg(figure)

    def axes(left: float, bottom: float, width: float, height: float) -> Axes:
        ax = figure.add_axes(
            (left / (side + 2), bottom / (side + 2), width / (side + 2), height / (side + 2))
        )
        ax.tick_params(length=0, pad=3, labelsize=font, colors=INK)
        for spine in ax.spines.values():
            spine.set_visible(False)
        return ax

    strip = 0.14 if 1 < len(set(families)) <= FAMILIES_UP_TO else 0.0
    tree_width = float(np.clip(0.22 * side, 0.7, 1.3))
    left, bottom = 1.6, 0.2
    limits = colour_range(scores, least)
    _cells(axes(left, bottom, side, side), scores, names, tree, font, limits)
    if marked is not None:
        _marks(figure.axes[0], marked, scores, tree, limits, 72 * cell)
    bar = axes(left, bottom + side + 0.1, side, 0.13)
    colour_bar(bar, scores, COLOURS, limits, label, 6 if n > 4 else 3)
    tree_axes = axes(left - tree_width - strip - 0.06, bottom, tree_width, side)
    _dendrogram(tree_axes, tree)
    if strip:
        _families(axes(left - strip - 0.03, bottom, strip - 0.03, side), families, tree, side)
    return figure


def _marks(
    ax: Axes,
    marked: NDArray[np.bool_],
    scores: NDArray[np.float64],
    tree: Hierarchy,
    limits: tuple[float, float],
    cell: float,
) -> None:
    """A circle in the corner of each marked cell of `cell` points, or in its middle if small."""
    x, y = (0.84, 0.18) if len(marked) <= VALUES_UP_TO else (0.5, 0.5)
    for row, column in np.argwhere(marked[np.ix_(tree.order, tree.order)]):
        value = scores[tree.order[row], tree.order[column]]
        _, (ink,) = cell_colours(np.array([value]), limits)
        size = min(0.16 * cell, 4.0) if len(marked) <= VALUES_UP_TO else 0.45 * cell
        ax.plot(column + x, row + y, "o", ms=size, mfc="none", mec=ink, mew=min(0.8, 0.15 * size))


def _cells(
    ax: Axes,
    scores: NDArray[np.float64],
    names: Sequence[str],
    tree: Hierarchy,
    font: float,
    limits: tuple[float, float],
) -> None:
    n = len(names)
    ordered = scores[np.ix_(tree.order, tree.order)]
    gap = n <= VALUES_UP_TO
    ax.pcolormesh(
        np.ma.masked_invalid(ordered),
        cmap=COLOURS,
        norm=Normalize(*limits),
        # Edges of the cell's own colour close the hairlines that PDF viewers show between cells.
        edgecolors="white" if gap else "face",
        linewidth=1.0 if gap else 0.1,
    )
    for row, column in np.argwhere(np.isnan(ordered)):
        ax.add_patch(
            Rectangle((column, row), 1, 1, fc="#e6e6e6", ec="#8c8c8c", hatch="////", lw=0.3)
        )
    if gap:
        _, inks = cell_colours(np.nan_to_num(ordered.ravel()), limits)
        for (row, column), value, ink in zip(np.ndindex(n, n), ordered.flat, inks, strict=True):
            if not np.isnan(value):
                ax.text(
                    column + 0.5,
                    row + 0.53,
                    f"{round(value, 2) + 0.0:.2f}",  # no -0.00
                    color=ink,
                    fontsize=min(font, 8) * (0.8 if n > 8 else 1.0),
                    ha="center",
                    va="center",
                )
    ax.set(xlim=(0, n), ylim=(n, 0))
    ax.yaxis.tick_right()
    labels = [names[i] for i in map(int, tree.order)]
    ticks = np.arange(n) + 0.5
    # A name is text, not mathematics, even with a $ in it.
    ax.set_xticks(ticks, labels, rotation=90, parse_math=False)
    ax.set_yticks(ticks, labels, parse_math=False)
    ax.tick_params(length=0)


def colour_bar(
    ax: Axes,
    values: NDArray[np.float64],
    colours: Colormap,
    limits: tuple[float, float],
    label: str,
    ticks: int = 6,
) -> None:
    """A horizontal colour bar on `ax`, with an arrow at an end that some of the values exceed."""
    known = values[~np.isnan(values)]
    below, above = bool((known < limits[0]).any()), bool((known > limits[1]).any())
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = ax.figure.colorbar(
        ScalarMappable(Normalize(*limits), colours),
        cax=ax,
        orientation="horizontal",
        extend=extend,
        extendfrac=0.03,
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(label, fontsize=9, color=INK, labelpad=4)
    bar.locator = MaxNLocator(ticks)
    ax.xaxis.set_ticks_position("top")
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=2, width=0.6, labelsize=8, colors=INK)


def _dendrogram(ax: Axes, tree: Hierarchy) -> None:
    n = len(tree.order)
    similarity = tree.top - tree.linkage[:, 2]
    # The most similar pair joins at the very end of the axis: leaves start a little beyond it.
    span = max(float(np.ptp(similarity)), 0.3)  # a width also for a single join
    stub = max(0.06, 0.4 / n) * span
    tips = {int(leaf): (tree.top + stub, i + 0.5) for i, leaf in enumerate(tree.order)}
    lines = []
    for i, (a, b) in enumerate(tree.linkage[:, :2].astype(int)):
        (x_a, y_a), (x_b, y_b), x = tips[a], tips[b], float(similarity[i])
        lines.append([(x_a, y_a), (x, y_a), (x, y_b), (x_b, y_b)])
        tips[n + i] = (x, (y_a + y_b) / 2)
    width = 1.1 if n <= VALUES_UP_TO else 0.7
    ax.add_collection(LineCollection(lines, colors=INK, linewidths=width, capstyle="projecting"))
    ax.set(xlim=(tree.top - span - stub, tree.top + stub), ylim=(n, 0), yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(3 if n > 4 else 2, min_n_ticks=1))
    ax.spines["bottom"].set(visible=True, color=INK, linewidth=0.6)
    ax.tick_params(axis="x", length=2, width=0.6, labelsize=7)
    ax.set_xlabel("mean where joined", fontsize=7, color=INK, labelpad=2, loc="right")


def _families(ax: Axes, families: Sequence[str], tree: Hierarchy, side: float) -> None:
    n = len(families)
    colour = base_colours(families)
    for row, model in enumerate(map(int, tree.order)):
        ax.add_patch(Rectangle((0, row), 1, 1, color=colour[families[model]], lw=0))
    ax.set(xlim=(0, 1), ylim=(n, 0), xticks=[], yticks=[])
    legend = ax.legend(
        handles=[Patch(color=c, label=family, lw=0) for family, c in colour.items()],
        loc="upper right",
        # Under the dendrogram, left of the names of the columns.
        bbox_to_anchor=(1.0, -0.45 / side),
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        handlelength=1.0,
        handleheight=1.0,
    )
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK)
