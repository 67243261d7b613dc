"""Clusters as figures: a matrix in their order, and a map of the models."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from netkin.analysis.hierarchy import hierarchy
from netkin.report.figures import VALUES_UP_TO, colour_bar, colour_range
from netkin.report.scatter import write_names
from netkin.report.style import COLOURS, INK, MARKERS, PALETTE, STYLE, style

MAP_NAMES_UP_TO = 16  # models named on the map; more are numbered, with a list beside it


def cluster_order(scores: NDArray[np.float64], labels: NDArray) -> NDArray[np.intp]:
    """The models by cluster, and within each by the hierarchy of the scores, [N]."""
    place = np.argsort(hierarchy(scores).order)
    return np.lexsort((place, labels)).astype(np.intp)


def score_blocks(scores: NDArray[np.float64], names: Sequence[str], labels: NDArray) -> Figure:
    """Scores [N, N] in nats, in the order of the clusters (Fig. D.2)."""
    return blocks_figure(
        scores, names, labels, cluster_order(scores, labels), "similarity s (nats)", COLOURS,
        colour_range(scores),
    )  # fmt: skip


@style()
def blocks_figure(
    values: NDArray[np.float64],
    names: Sequence[str],
    labels: NDArray,
    order: NDArray[np.intp],
    label: str,
    colours: Colormap | str = "viridis",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Values of pairs [N, N], rows and columns in `order`, with the clusters marked.

    Args:
        values: [N, N].
        names: [N].
        labels: [N] int from 0, the clusters; numbered from 1 in the figure.
        order: [N], contiguous by cluster.
        label: the colour bar's, with the unit.
        colours: a colour map.
        limits: the values at the two ends of the colour map.
    """
    n = len(names)
    cell = float(np.clip(6.2 / n, 0.095, 0.5))  # inches
    font = min(9.0, 72 * cell * 0.82)
    side = n * cell
    with mpl.rc_context({**STYLE, "figure.constrained_layout.use": False, "axes.grid": False}):
        figure = Figure(figsize=(side + 2, side + 2))
        FigureCanvasAgg(figure)

        def axes(left: float, bottom: float, width: float, height: float) -> Axes:
            total = side + 2
            ax = figure.add_axes((left / total, bottom / total, width / total, height / total))
            for spine in ax.spines.values():
                spine.set_visible(False)
            return ax

        ax = axes(0.8, 0.2, side, side)
        ordered = values[np.ix_(order, order)]
        colour_map = mpl.colormaps[colours] if isinstance(colours, str) else colours
        ax.pcolormesh(
            np.ma.masked_invalid(ordered),
            cmap=colour_map,
            norm=Normalize(*limits),
            edgecolors="face",
            linewidth=0.1,
        )
        if n <= VALUES_UP_TO:
            _write_values(ax, ordered, colour_map, limits, min(font, 8) * (0.8 if n > 8 else 1))
        ax.set(xlim=(0, n), ylim=(n, 0))
        ax.yaxis.tick_right()
        ticks = np.arange(n) + 0.5
        labels_of_rows = [names[i] for i in map(int, order)]
        ax.set_xticks(ticks, labels_of_rows, rotation=90)
        ax.set_yticks(ticks, labels_of_rows)
        ax.tick_params(length=0, pad=3, labelsize=font)
        _mark_clusters(ax, axes(0.8 - 0.34, 0.2, 0.3, side), labels[order])
        bar = axes(0.8, 0.2 + side + 0.1, side, 0.13)
        colour_bar(bar, ordered, colour_map, limits, label)
    return figure


def _write_values(
    ax: Axes,
    values: NDArray[np.float64],
    colours: Colormap,
    limits: tuple[float, float],
    size: float,
) -> None:
    rgb = colours(Normalize(*limits)(values))[..., :3]
    dark = rgb @ (0.2126, 0.7152, 0.0722) < 0.45
    for row, column in np.ndindex(values.shape):
        if not np.isnan(values[row, column]):
            ax.text(
                column + 0.5,
                row + 0.53,
                f"{values[row, column]:.2f}",
                color="white" if dark[row, column] else "black",
                fontsize=size,
                ha="center",
                va="center",
            )


def _mark_clusters(ax: Axes, strip: Axes, ordered: NDArray) -> None:
    """A frame around each cluster's block, and its colour and number at the left."""
    n = len(ordered)
    strip.set(xlim=(0, 1), ylim=(n, 0), xticks=[], yticks=[])
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
                color=_colour(int(cluster)), lw=0,
            )
        )  # fmt: skip
        strip.text(0.58, start + size / 2, str(cluster + 1), ha="right", va="center", fontsize=8)


@style()
def map_figure(points: NDArray[np.float64], names: Sequence[str], labels: NDArray) -> Figure:
    """Models as points [N, 2] in the colour and marker of their cluster ([N] int from 0).

    Up to 16 names are written next to their points. More models are numbered from left to right
    within their clusters, and a list at the right has their names.
    """
    n, few = len(names), len(names) <= MAP_NAMES_UP_TO
    figure = Figure(figsize=(5.2, 4.2) if few else (9.6, 5.6))
    FigureCanvasAgg(figure)
    ratio: dict[str, Any] = {"width_ratios": (1, 0.02) if few else (1, 0.8)}
    ax, listed = figure.subplots(1, 2, gridspec_kw=ratio)
    for cluster in np.unique(labels):
        members = labels == cluster
        ax.scatter(
            *points[members].T,
            s=42 if few else 30,
            color=_colour(int(cluster)),
            marker=_marker(int(cluster)),
            edgecolors="white",
            linewidths=0.5,
            label=f"cluster {cluster + 1}",
        )
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    ax.margins(0.08)
    ax.grid(False)
    listed.set_axis_off()
    if few:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.3)
        write_names(ax, points[:, 0], points[:, 1], names)
        return figure
    order = np.lexsort((points[:, 0], labels))
    _list_names(listed, [names[int(i)] for i in order], labels[order])
    write_names(ax, points[order, 0], points[order, 1], [str(number) for number in range(1, n + 1)])
    return figure


def _list_names(ax: Axes, names: Sequence[str], labels: NDArray) -> None:
    """Numbers and names, a line each in two columns, each cluster under its own heading."""
    lines: list[tuple[str, int | None]] = []
    for number, (name, label) in enumerate(zip(names, labels.tolist(), strict=True), start=1):
        if not lines or label != labels[number - 2]:
            lines.append((f"cluster {label + 1}", label))
        lines.append((f"{number}  {name}", None))
    columns = max(2, -(-len(lines) // 42))
    rows = -(-len(lines) // columns)
    ax.set(xlim=(0, columns), ylim=(rows, 0))
    for i, (text, cluster) in enumerate(lines):
        x, y = divmod(i, rows)
        if cluster is not None:
            ax.plot(x + 0.02, y + 0.5, marker=_marker(cluster), color=_colour(cluster), ms=5, lw=0)
        ax.text(
            x + 0.07,
            y + 0.5,
            text,
            fontsize=6.6,
            va="center",
            fontweight="normal" if cluster is None else "bold",
        )


def _colour(cluster: int) -> str:
    return PALETTE[cluster % len(PALETTE)]


def _marker(cluster: int) -> str:
    """The markers shift by one each time that the colours repeat."""
    return MARKERS[(cluster + cluster // len(PALETTE)) % len(MARKERS)]
