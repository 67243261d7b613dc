"""Clusters as figures: a matrix in their order, and a map of the models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from netkin.analysis.clusters import hierarchy
from netkin.report.figures import Square, colour_range, inches
from netkin.report.scatter import NAMES_UP_TO, write_names
from netkin.report.style import (
    COLOURS,
    FULL,
    INK,
    MARKERS,
    SMALL,
    base_colours,
    before_saving,
    legend_above,
    style,
    width_of,
)

SHADES = ("#9aa3ad", "#4a525c")
"""Of clusters beside a matrix, in turn: colours are of base architectures."""


def cluster_order(scores: NDArray[np.float64], labels: NDArray) -> NDArray[np.intp]:
    """The models by cluster, and within each by the hierarchy of the scores, [N]."""
    place = np.argsort(hierarchy(scores).order)
    return np.lexsort((place, labels)).astype(np.intp)


def score_blocks(
    scores: NDArray[np.float64],
    names: Sequence[str],
    labels: NDArray,
    groups: Sequence[str],
) -> Figure:
    """Scores [N, N] in nats, in the order of the clusters (Fig. D.2)."""
    order, limits = cluster_order(scores, labels), colour_range(scores)
    return blocks_figure(
        scores, names, labels, order, groups, "similarity s (nats)", COLOURS, limits
    )


@style()
def blocks_figure(
    values: NDArray[np.float64],
    names: Sequence[str],
    labels: NDArray,
    order: NDArray[np.intp],
    groups: Sequence[str],
    label: str,
    colours: Colormap | str,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Values of pairs [N, N], rows and columns in `order`, with the clusters marked.

    Args:
        values, names, order, groups, label, limits: see `netkin.report.figures.Square`; the order
            is contiguous by cluster.
        labels: [N] int from 0, the clusters; numbered from 1 in the figure.
        colours: a colour map, or matplotlib's name of one.
    """
    square = Square(values, names, order, groups, label, limits, colormaps.get_cmap(colours))
    figure, cells, side = square.draw(0.36)
    _mark_clusters(cells, side, labels[order])
    return figure


def _mark_clusters(ax: Axes, strip: Axes, ordered: NDArray) -> None:
    """A frame around each cluster's block, and its colour and number at the left."""
    n = len(ordered)
    strip.set_xlim(0, 1)
    for cluster in np.unique(ordered):
        start, size = int((ordered == cluster).argmax()), int((ordered == cluster).sum())
        for colour, width in (("white", 2.2), (INK, 1.0)):
            ax.add_patch(
                Rectangle(
                    (start, start), size, size, fill=False, ec=colour, lw=width, clip_on=False
                )
            )
        strip.add_patch(
            Rectangle(
                (0.72, start + 0.04 * size / n), 0.22, size - 0.08 * size / n,
                color=SHADES[int(cluster) % 2], lw=0,
            )
        )  # fmt: skip
        strip.text(
            0.58, start + size / 2, str(cluster + 1), ha="right", va="center", fontsize=SMALL
        )


@style()
def map_figure(
    points: NDArray[np.float64], names: Sequence[str], labels: NDArray, groups: Sequence[str]
) -> Figure:
    """Models as points [N, 2] in the colour of their base architecture or other group ([N]) and
    the marker of their cluster ([N] int from 0).

    Up to 40 names are written near their points. More models are numbered from left to right
    within their clusters, and a list at the right, or below, has their names.
    """
    n, few, colours = len(names), len(names) <= NAMES_UP_TO, base_colours(groups)
    width = width_of(5.2 if few else FULL)
    lines = n + len(np.unique(labels))
    if few:
        figure, listed = Figure(figsize=(width, 0.8 * width)), None
        ax = figure.subplots()
    else:
        beside, tall = width > 5, -(-lines // 2) * 0.118  # inches of a list in two columns
        size = (width, max(tall, 0.6 * width)) if beside else (width, 0.9 * width + tall)
        figure = Figure(figsize=size)
        ratio: dict[str, Any] = (
            {"ncols": 2, "width_ratios": (width - 3.4, 3.4)}
            if beside
            else {"nrows": 2, "height_ratios": (0.9 * width, tall)}
        )
        ax, listed = figure.subplots(**ratio)
    FigureCanvasAgg(figure)
    for cluster in np.unique(labels):
        members = labels == cluster
        ax.scatter(
            *points[members].T,
            s=36 if few else 26,
            color=[colours[groups[i]] for i in np.flatnonzero(members).tolist()],
            marker=MARKERS[cluster % len(MARKERS)],
            edgecolors="white",
            linewidths=0.5,
        )
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    ax.margins(0.08)
    ax.grid(False)
    handles = {base: _dot("o", colour) for base, colour in colours.items()}
    if few:
        handles |= {f"cluster {c + 1}": _dot(MARKERS[c % len(MARKERS)]) for c in np.unique(labels)}
    legend_above(figure, list(handles.values()), list(handles))
    if few:
        before_saving(figure, lambda: write_names(ax, points[:, 0], points[:, 1], names))
        return figure
    order = np.lexsort((points[:, 0], labels))
    assert listed is not None
    listed.set_axis_off()
    _list_names(listed, [names[int(i)] for i in order], labels[order])
    numbers = [str(number) for number in range(1, n + 1)]
    before_saving(figure, lambda: write_names(ax, points[order, 0], points[order, 1], numbers))
    return figure


def _list_names(ax: Axes, names: Sequence[str], labels: NDArray) -> None:
    """Numbers and names, a line each in two columns, each cluster under its own heading."""
    lines: list[tuple[str, int | None]] = []
    for number, (name, label) in enumerate(zip(names, labels.tolist(), strict=True), start=1):
        if not lines or label != labels[number - 2]:
            lines.append((f"cluster {label + 1}", label))
        lines.append((f"{number}  {name}", None))
    rows = -(-len(lines) // 2)
    first, second = (max(inches(text) for text, _ in part) for part in (lines[:rows], lines[rows:]))
    starts = (0.0, (first + 0.2) / (first + second + 0.3))
    ax.set(xlim=(0, 1), ylim=(rows, 0))
    for i, (text, cluster) in enumerate(lines):
        column, y = divmod(i, rows)
        x = starts[column]
        if cluster is not None:
            marker = MARKERS[cluster % len(MARKERS)]
            ax.plot(x + 0.012, y + 0.5, marker=marker, color=INK, ms=4, lw=0)
        ax.text(
            x + 0.035,
            y + 0.5,
            text,
            fontsize=SMALL,
            va="center",
            fontweight="normal" if cluster is None else "bold",
        )


def _dot(marker: str, colour: str = INK) -> Line2D:
    return Line2D([], [], ls="", marker=marker, color=colour)
