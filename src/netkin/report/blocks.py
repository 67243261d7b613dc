"""Small matrices side by side on one colour scale, with values and the borders of groups."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.analysis.matrix import off_diagonal
from netkin.report.figures import NAME_STEP, cell_colours
from netkin.report.style import COLOURS, SMALL, style, width_of


class Block(NamedTuple):
    """A matrix: title, names [n], scores [n, n] (NaN is grey), and rows with a border above."""

    title: str
    names: Sequence[str]
    scores: NDArray[np.float64]
    borders: Sequence[int]


@style()
def blocks_figure(blocks: Sequence[Block], label: str = "similarity s (nats)") -> Figure:
    """The blocks from left to right, cells of one size and one colour scale."""
    sizes = [len(block.names) for block in blocks]
    longest = max(len(name) for block in blocks for name in block.names)
    room = 0.053 * longest + 0.15
    total = width_of(sum(sizes) * 0.42 + len(blocks) * room)
    across = len(blocks) if total >= sum(sizes) * NAME_STEP + len(blocks) * room else 1
    rows = -(-len(blocks) // across)
    widest = sum(sizes) if across > 1 else max(sizes)
    cell = min((total - across * room) / widest, 0.42)
    tall = sum(sizes) if rows > 1 else max(sizes)
    figure = Figure(figsize=(total, tall * cell + rows * (room + 0.2) + 0.5))
    FigureCanvasAgg(figure)
    ratios = [n * cell + room for n in sizes] if across > 1 else None
    axes = figure.subplots(rows, across, squeeze=False, width_ratios=ratios).ravel()
    pairs = np.concatenate([off_diagonal(block.scores) for block in blocks])
    low, high = float(pairs.min()), float(pairs.max())
    limits = (low, max(high, low + 1e-6))  # the diagonal is beyond them
    for ax, block in zip(axes, blocks, strict=True):
        n = len(block.names)
        ax.grid(visible=False)
        ax.set_facecolor("#d9d9d9")
        ax.imshow(np.ma.masked_invalid(block.scores), cmap=COLOURS, norm=Normalize(*limits))
        if cell > 0.2:  # a number of 7 pt has room
            _, inks = cell_colours(np.nan_to_num(block.scores.ravel()), limits)
            for (y, x), value, ink in zip(np.ndindex(n, n), block.scores.flat, inks, strict=True):
                if not np.isnan(value):
                    ax.text(
                        x, y, f"{value:.1f}", color=ink, fontsize=SMALL, ha="center", va="center"
                    )
        for border in block.borders:
            ax.axhline(border - 0.5, color="white", lw=2)
            ax.axvline(border - 0.5, color="white", lw=2)
        ax.set_xticks(range(n), block.names, rotation=90, fontsize=SMALL)
        ax.set_yticks(range(n), block.names, fontsize=SMALL)
        ax.tick_params(length=0)
        ax.set_title(block.title, fontsize=8)
        for spine in ax.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(*limits), COLOURS),
        ax=list(axes),
        location="top",
        shrink=0.6,
        aspect=30,
        extend="max",
    )
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure
