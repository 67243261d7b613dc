"""Pairs of named groups as points, a row each, with their mean and its intervals."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from netkin.report.style import INK, PALETTE, legend_above, panels, style


@style()
def intervals_figure(
    names: Sequence[str],
    values: Sequence[NDArray[np.float64]],
    means: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    line: float,
    label: str,
    colours: Sequence[str] = (),
    legend: bool = True,
) -> Figure:
    """A row for each name: its values as points, their mean, a thick inner and a thin outer
    interval of the mean.

    Args:
        names: [n], from top to bottom.
        values: [n] arrays of any length, the pairs of each.
        means: [n].
        inner, outer: [n, 2] low and high; NaN where there is none.
        line: the mean of all pairs, drawn through all rows.
        label: the axis's, with its unit.
        colours: [n], of the points; one for all, unless given.
        legend: whether there is one, of pairs and intervals over models and images.
    """
    n = len(names)
    figure, (ax,) = panels(1, 4.6, 0.75 + 0.22 * n)
    rng, shown = np.random.default_rng(0), colours or [PALETTE[0]] * n
    places = np.arange(n)
    for place, pairs, colour in zip(places, values, shown, strict=True):
        many = len(pairs) > 200
        ax.scatter(
            pairs,
            place + rng.uniform(-0.28, 0.28, len(pairs)),
            s=2 if many else 7,
            alpha=0.25 if many else 0.55,
            color=colour,
            linewidths=0,
            rasterized=len(pairs) > 1000,
        )
    ax.hlines(places, *outer.T, color=INK, lw=0.9)
    ax.hlines(places, *inner.T, color=INK, lw=2.6)
    ax.plot(means, places, ls="", marker="D", ms=4, mfc="white", mec=INK, mew=1)
    ax.axvline(line, color=INK, lw=0.8, ls=(0, (4, 3)))
    ax.set_yticks(places, names)
    ax.set(xlabel=label, ylim=(n - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    if not legend:
        return figure
    handles = {
        "pair": Line2D([], [], ls="", marker="o", ms=3, color=shown[0]),
        "mean": Line2D([], [], ls="", marker="D", ms=4, mfc="white", mec=INK),
        "95% over models": Line2D([], [], color=INK, lw=0.9),
        "over images": Line2D([], [], color=INK, lw=2.6),
        "mean of all pairs": Line2D([], [], color=INK, lw=0.8, ls=(0, (4, 3))),
    }
    if np.isnan(inner).all():
        del handles["over images"]
    legend_above(figure, list(handles.values()), list(handles))
    return figure
