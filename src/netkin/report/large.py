"""A matrix of many models as a picture: a pixel or less a pair, and no names."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.report.figures import COLOURS, colour_range
from netkin.report.style import panels, style

NAMES_UP_TO = 150
"""Models; the figure of more has no names, which would make it metres wide."""


@style()
def picture_figure(scores: NDArray[np.float64], split: int, label: str) -> Figure:
    """Scores [N, N] in nats, with a line after the first `split` models.

    Args:
        scores: in the order of the picture.
        split: number of models before the line.
        label: of the colours, with the unit.
    """
    figure, (ax,) = panels(1, 6.0, 5.2)
    low, high = colour_range(scores)
    shown = ax.imshow(scores, cmap=COLOURS, vmin=low, vmax=high, interpolation="antialiased")
    for line in (ax.axhline, ax.axvline):
        line(split - 0.5, color="white", lw=0.8)
    ax.set(xlabel="model", ylabel="model")
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, label=label, extend="both")
    return figure
