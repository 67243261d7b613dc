"""Small matrices side by side on one colour scale, with values and the borders of groups."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.report.figures import cell_colours
from netkin.report.style import COLOURS, panels, style

VALUES_UP_TO = 20


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
    cell = float(np.clip(7 / sum(sizes), 0.11, 0.42))
    longest = max(len(name) for block in blocks for name in block.names)
    room = 0.075 * min(longest, 30) + 0.3
    figure, axes = panels(len(blocks), 1.0, max(sizes) * cell + room + 0.3)
    figure.set_size_inches(sum(sizes) * cell + len(blocks) * room + 0.6, max(sizes) * cell + room)
    known = np.concatenate([block.scores[~np.isnan(block.scores)] for block in blocks])
    limits = (float(known.min()), float(max(known.max(), known.min() + 1e-6)))
    for ax, block in zip(axes, blocks, strict=True):
        n = len(block.names)
        ax.grid(visible=False)
        ax.set_facecolor("#d9d9d9")
        ax.imshow(np.ma.masked_invalid(block.scores), cmap=COLOURS, norm=Normalize(*limits))
        if n <= VALUES_UP_TO and cell > 0.25:
            _, inks = cell_colours(np.nan_to_num(block.scores.ravel()), limits)
            for (y, x), value, ink in zip(np.ndindex(n, n), block.scores.flat, inks, strict=True):
                if not np.isnan(value):
                    ax.text(x, y, f"{value:.1f}", color=ink, fontsize=6, ha="center", va="center")
        for border in block.borders:
            ax.axhline(border - 0.5, color="white", lw=2)
            ax.axvline(border - 0.5, color="white", lw=2)
        size = min(7.0, 72 * cell * 0.85)
        ax.set_xticks(range(n), block.names, rotation=90, fontsize=size)
        ax.set_yticks(range(n), block.names, fontsize=size)
        ax.tick_params(length=0)
        ax.set_title(block.title, fontsize=8)
        for spine in ax.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(*limits), COLOURS), ax=axes, shrink=0.7, aspect=25, pad=0.01
    )
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure
