"""The figure of a matrix over models, for papers and pages."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import Colormap, Normalize, to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from netkin.analysis.clusters import Hierarchy, hierarchy
from netkin.analysis.matrix import off_diagonal
from netkin.report.style import (
    COLOURS,
    DIVERGING,
    FULL,
    INK,
    NO_SCORE,
    OTHER,
    SMALL,
    base_colours,
    style,
    width_of,
)

LABEL = "similarity s = ln(100 p)"
VALUES_UP_TO = 16  # models; beyond it a cell is too small for its number
NAME_STEP = 0.1  # inches from one name to the next
LARGE = 150
"""Models above which a matrix is a picture: a pixel or less a pair, and no names."""
SQUARE = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
CODES = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
SHADES = ("#9aa3ad", "#4a525c")
"""Of clusters beside a matrix, in turn: colours are of base architectures."""


def colour_range(
    scores: NDArray[np.float64], least: float = 0.0, signed: bool = False
) -> tuple[float, float]:
    """The values that the two ends of the colour map stand for, from [N, N] of pairs.

    2 to 99.5 % of the pairs of different models, so that one pair does not take the colours of all
    others, and the most similar ones still differ. With 50 pairs or fewer these are all of them but
    a far outlier below (Tukey's outer fence), such as a pair that was never fooled: s = ln 0.01 =
    -4.6. The diagonal is outside.

    The ends are at least `least` apart, so that differences of chance have similar colours. With
    `signed` they have 0 in the middle.
    """
    pairs = off_diagonal(scores)
    if not pairs.size:
        return (-1.0, 1.0) if signed else (0.0, float(np.log(100.0)))
    q1, q3 = np.quantile(pairs, (0.25, 0.75))
    low = np.quantile(pairs[pairs >= q1 - max(3 * (q3 - q1), 1.0)], 0.02, method="lower")
    high = np.quantile(pairs, 0.995, method="higher")
    if signed:
        end = max(abs(low), abs(high), least / 2, 0.01)
        return -float(end), float(end)
    if high - low < 1e-9:  # one pair, or equal scores: any range of some width
        low, high = low - 0.5, high + 0.5
    more = max(0.0, least - (high - low)) / 2
    return float(low - more), float(high + more)


def inks(values: NDArray[np.float64], colours: ScalarMappable) -> list[str]:
    """The ink that is legible on the colour of each value [n]."""
    rgb = colours.to_rgba(values)[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    # 0.179 is where black and white have the same WCAG contrast.
    return ["black" if y > 0.179 else "white" for y in luminance]


def cluster_order(scores: NDArray[np.float64], labels: NDArray) -> NDArray[np.intp]:
    """The models by cluster, and within each by the hierarchy of the scores, [N]."""
    rank = np.argsort(hierarchy(scores).order)
    return np.lexsort((rank, labels)).astype(np.intp)


@style()
def heatmap_figure(
    scores: NDArray[np.float64],
    names: Sequence[str],
    groups: Sequence[str],
    label: str = LABEL,
    least: float = 0.0,
    marked: NDArray[np.bool_] | None = None,
    signed: bool = False,
    *,
    clusters: NDArray | None = None,
    order: NDArray[np.intp] | None = None,
    limits: tuple[float, float] | None = None,
    colours: Colormap | None = None,
) -> Figure:
    """A matrix over models: cells with numbers where they have room, names, a strip of groups, and
    a colour bar. The cells are the figure's first axes.

    Cells are higher than wide where names need that; where they would be more than twice as high,
    no names are written, and a note in the figure says so.

    Args:
        scores: [N, N], symmetric, N >= 2. NaN is drawn hatched.
        names: N model names.
        groups: the base architecture or family of each model: a strip of colours with a legend
            where there are two or more.
        label: of the colours, with the unit.
        least: see `colour_range`.
        marked: [N, N], cells with a circle, which `label` should explain; for at most `LARGE`
            models.
        signed: whether 0 is in the middle of the colours.
        clusters: [N] int from 0: frames and numbers, from 1, in the place of the dendrogram.
        order: [N], of rows and columns, contiguous by cluster. Unless given, that of
            `cluster_order` or of the hierarchy, which is then drawn as a dendrogram.
        limits: the values at the two ends of the colours; `colour_range`, unless given.
        colours: a colour map; the usual one, unless given.

    Raises UserError for fewer than 2 models, ValueError where the arguments disagree.
    """
    n = len(names)
    if scores.shape != (n, n) or len(groups) != n:
        raise ValueError(f"{n} names, {len(groups)} groups and scores {scores.shape} disagree")
    tree = None
    if order is None and clusters is None:
        tree = hierarchy(scores)
        order = tree.order
    elif order is None:
        assert clusters is not None
        order = cluster_order(scores, clusters)
    ends = Normalize(*(limits or colour_range(scores, least, signed)))
    shown = ScalarMappable(ends, colours or (DIVERGING if signed else COLOURS))
    ordered = scores[np.ix_(order, order)]
    rows = [names[int(i)] for i in order]
    left = 0.36 if clusters is not None else 0.0
    if tree is not None:
        left = 0.75 if width_of(FULL) > 5 else 0.5

    kinds = base_colours(groups)
    strip = 0.12 if len(kinds) > 1 else 0.0
    room = max(inches(f"00 {name}" if n > 16 else name) for name in names) + 0.08
    total = width_of(left + strip + room + 0.06 + n * 0.42)
    side = total - left - strip - room - 0.06
    step = max(side / n, NAME_STEP)
    named = step <= 2 * side / n
    if not named:
        side = total - left - strip - 0.06
        step = side / n
    level = side / n >= NAME_STEP  # whether columns have room for names
    below = (room if level else 0.32) if named else 0.2
    legend_of = _legend(kinds)
    longest = max(map(inches, legend_of)) + 0.35
    across = max(1, int(total / longest))
    legend = 0.17 * -(-len(legend_of) // across) if strip else 0.0
    height = 0.52 + n * step + max(below, 0.35) + legend
    figure = Figure(figsize=(total, height))
    figure.set_layout_engine("none")
    FigureCanvasAgg(figure)

    def axes(x: float, y: float, width: float, tall: float) -> Axes:
        """Empty axes, in inches from the left and the top."""
        ax = figure.add_axes(
            (x / total, (height - y - tall) / height, width / total, tall / height)
        )
        ax.grid(visible=False)
        ax.tick_params(length=0, pad=2, labelsize=SMALL, colors=INK)
        ax.spines[:].set_visible(False)
        return ax

    cells = axes(left + strip + 0.02, 0.52, side, n * step)
    cells.set_label("cells")  # which the page finds in the picture
    _draw_cells(cells, ordered, shown, 72 * side / n)
    _write_names(cells, rows, named, level)
    bar = axes(left + strip + 0.02, 0.4, side, 0.1)
    _colour_bar(bar, scores, shown, label, 6 if side > 2 else 3)
    if left:
        beside = axes(0, 0.52, left, n * step)
        beside.set(ylim=(n, 0), xticks=[], yticks=[])
        if tree is not None:
            _dendrogram(beside, tree)
        elif clusters is not None:
            _frame_clusters(cells, beside, clusters[order])
    if marked is not None:
        _mark(cells, ordered, marked[np.ix_(order, order)], shown)
    if strip:
        ax = axes(left + 0.02, 0.52, strip - 0.04, n * step)
        shades = [kinds[groups[model]] for model in map(int, order)]
        if n > LARGE:
            picture = to_rgba_array(shades)[:, None]
            ax.imshow(picture, extent=(0, 1, n, 0), aspect="auto", interpolation="nearest")
        else:
            for row, shade in enumerate(shades):
                ax.add_patch(Rectangle((0, row), 1, 1, color=shade, lw=0))
        ax.set(xlim=(0, 1), ylim=(n, 0), xticks=[], yticks=[], label="strip")
        patches = [Patch(color=colour, lw=0) for colour in legend_of.values()]
        figure.legend(
            patches, list(legend_of), loc="lower right", bbox_to_anchor=(1, 0), ncols=across,
            handlelength=0.9, handleheight=0.9, borderaxespad=0, columnspacing=1.2,
        )  # fmt: skip
    return figure


def _draw_cells(
    ax: Axes, ordered: NDArray[np.float64], colours: ScalarMappable, cell: float
) -> None:
    """The coloured cells, `cell` points wide, with numbers where these have room."""
    n = len(ordered)
    ax.set(xlim=(0, n), ylim=(n, 0))
    if n > LARGE:
        picture = colours.to_rgba(ordered)
        picture[np.isnan(ordered)] = to_rgba(NO_SCORE)
        ax.imshow(picture, extent=(0, n, n, 0), aspect="auto", interpolation="antialiased")
        return
    # The cells of a colour are one path: 69 models take a fifth less to save than a path a cell.
    kinds, of = np.unique(colours.to_rgba(ordered).reshape(-1, 4), axis=0, return_inverse=True)
    corners = np.indices((n, n)).reshape(2, -1).T[:, None, ::-1] + SQUARE  # [n * n, 5, 2]
    drawn = [corners[of.ravel() == k].reshape(-1, 2) for k in range(len(kinds))]
    paths = [Path(each, np.tile(CODES, len(each) // 5)) for each in drawn]
    gap = cell > 9
    # Edges of the cell's own colour close the hairlines that viewers of PDFs show.
    edges, width = ("white", 0.8) if gap else (kinds, 0.1)
    cells = PathCollection(paths, facecolors=kinds, edgecolors=edges, linewidths=width)
    ax.add_collection(cells, autolim=False)
    for row, column in np.argwhere(np.isnan(ordered)):
        ax.add_patch(
            Rectangle((column, row), 1, 1, fc="#e6e6e6", ec="#8c8c8c", hatch="////", lw=0.3)
        )
    digits = 2 if cell >= 17 else 1
    if cell < 12:
        return
    legible = inks(np.nan_to_num(ordered.ravel()), colours)
    for (row, column), value, ink in zip(np.ndindex(n, n), ordered.flat, legible, strict=True):
        if not np.isnan(value):
            text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
            centre = (column + 0.5, row + 0.53)
            ax.text(*centre, text, color=ink, fontsize=SMALL, ha="center", va="center")


def _write_names(ax: Axes, ordered: Sequence[str], named: bool, level: bool) -> None:
    """Names at the right; below, names too, or numbers in two lines that rows have as well."""
    n = len(ordered)
    ticks = np.arange(n) + 0.5
    ax.yaxis.tick_right()
    if not named:
        ax.set(xticks=[], yticks=[])
        note = f"{n:,} models" + ("" if n > LARGE else "; their names need more width")
        ax.set_xlabel(note, fontsize=SMALL, color="#666666", labelpad=2)
        return
    if level:
        ax.set_xticks(ticks, ordered, rotation=90, parse_math=False)
        ax.set_yticks(ticks, ordered, parse_math=False)
        return
    numbered = [f"{k} {name}" for k, name in enumerate(ordered, start=1)]
    ax.set_yticks(ticks, numbered, parse_math=False)
    ax.set_xticks([])
    for k in range(n):
        ax.annotate(
            f"{k + 1}", (k + 0.5, n), (0, -2 - 9.5 * (k % 2)), textcoords="offset points",
            rotation=90, ha="center", va="top", fontsize=SMALL, annotation_clip=False,
        )  # fmt: skip


def _legend(kinds: dict[str, str]) -> dict[str, str]:
    """The colours of groups, with those that have none of their own as one."""
    rest = [kind for kind, colour in kinds.items() if colour == OTHER]
    if len(rest) < 2:
        return kinds
    distinct = {kind: colour for kind, colour in kinds.items() if colour != OTHER}
    return {**distinct, f"{len(rest)} others": OTHER}


@cache
def inches(text: str) -> float:
    """The width of a text as names are set."""
    path = TextPath((0, 0), text.replace(" ", "-") or "-", size=SMALL)
    # Outlines have points at their ends, so that no curve has to be solved.
    x, codes = np.asarray(path.vertices)[:, 0], np.asarray(path.codes)
    return float(np.ptp(x[codes != path.CLOSEPOLY])) / 72


def _mark(
    ax: Axes, ordered: NDArray[np.float64], marked: NDArray[np.bool_], colours: ScalarMappable
) -> None:
    """A circle in the corner of each marked cell, or in its middle if that is small."""
    few = len(marked) <= VALUES_UP_TO
    x, y, size = (0.86, 0.16, 2.4) if few else (0.5, 0.5, 2.0)
    for row, column in np.argwhere(marked):
        (ink,) = inks(ordered[row, [column]], colours)
        ax.plot(column + x, row + y, "o", ms=size, mfc="none", mec=ink, mew=0.5)


def _frame_clusters(ax: Axes, strip: Axes, ordered: NDArray) -> None:
    """A frame around each cluster's block, and its shade and number at the left."""
    n = len(ordered)
    strip.set_xlim(0, 1)
    for cluster in np.unique(ordered):
        start, size = int((ordered == cluster).argmax()), int((ordered == cluster).sum())
        for ink, lw in (("white", 2.2), (INK, 1.0)):
            frame = Rectangle((start, start), size, size, fill=False, ec=ink, lw=lw, clip_on=False)
            ax.add_patch(frame)
        shade, gap = SHADES[int(cluster) % 2], 0.04 * size / n
        strip.add_patch(Rectangle((0.72, start + gap), 0.22, size - 2 * gap, color=shade, lw=0))
        middle, number = start + size / 2, str(cluster + 1)
        strip.text(0.58, middle, number, ha="right", va="center", fontsize=SMALL)


def _colour_bar(
    ax: Axes, values: NDArray[np.float64], colours: ScalarMappable, label: str, ticks: int
) -> None:
    """A horizontal colour bar on `ax`, with an arrow at an end that some of the values exceed."""
    known, (low, high) = values[~np.isnan(values)], colours.get_clim()
    below, above = bool((known < low).any()), bool((known > high).any())
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    bar = ax.figure.colorbar(
        colours, cax=ax, orientation="horizontal", extend=extend, extendfrac=0.03
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(label, color=INK, labelpad=3)
    bar.locator = MaxNLocator(ticks)
    ax.xaxis.set_ticks_position("top")
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=2, width=0.6, labelsize=SMALL, colors=INK)


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
    width = 1.1 if n <= VALUES_UP_TO else 0.7 if n <= LARGE else 0.25
    ax.add_collection(LineCollection(lines, colors=INK, linewidths=width, capstyle="projecting"))
    ax.set(xlim=(tree.top - span - stub, tree.top + stub), ylim=(n, 0), yticks=[])
    ax.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=1))
    ax.spines["bottom"].set(visible=True, color=INK, linewidth=0.6)
    ax.tick_params(axis="x", length=2, width=0.6, labelsize=SMALL, colors=INK)
    ax.set_xlabel("joined at", fontsize=SMALL, color=INK, labelpad=1)
