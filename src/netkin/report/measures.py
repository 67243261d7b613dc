"""Figures of several measures of similarity over the same models."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from netkin.analysis.measures import Measure
from netkin.analysis.statistics import FEWEST, trend
from netkin.report.scatter import scatter
from netkin.report.style import INK, panels, style

TITLES = {
    "similarity": "similarity s (nats)",
    "prediction_agreement": "prediction agreement",
    "error_consistency": "error consistency (kappa)",
    "gradient_cosine": "cosine of input gradients",
    "linear_cka": "linear CKA of features",
}
"""The measures in the order of figures, with their names on axes."""


def short_title(name: str) -> str:
    """The name of a measure in a sentence, without its unit."""
    return TITLES[name].split(" (")[0]


@style()
def measures_scatter(measures: Sequence[Measure], correlations: pl.DataFrame) -> Figure:
    """Each measure against the first one, with a point per pair of models.

    Args:
        measures: 2 to 7.
        correlations: a row per two measures with the columns a, b and r, such as those of
            `netkin.analysis.measures.correlate`.
    """
    figure, axes = panels(3, 2.7, 2.6, rows=2)
    first, others = measures[0], measures[1:]
    rows, columns = np.tril_indices(len(first.matrix), k=-1)
    x = first.matrix[rows, columns]
    for ax, other in zip(axes, others, strict=False):
        y = other.matrix[rows, columns]
        r = correlations.filter(a=first.name, b=other.name)["r"][0]
        known = ~np.isnan(y)
        text = "" if r is None or np.isnan(r) else f"r = {r:.2f}"
        labels = TITLES[first.name], TITLES[other.name]
        line = trend(x, y) if len(first.matrix) >= FEWEST else None
        scatter(ax, x[known], y[known], *labels, trend=line, text=text)
    for ax in axes[len(others) :]:
        ax.set_axis_off()
    return figure


@style()
def correlation_matrix(measures: Sequence[Measure], correlations: pl.DataFrame) -> Figure:
    """r between every two measures, as a matrix with its numbers; see `measures_scatter`."""
    n = len(measures)
    values = np.eye(n)
    place = {measure.name: i for i, measure in enumerate(measures)}
    for row in correlations.iter_rows(named=True):
        i, j = place[row["a"]], place[row["b"]]
        values[i, j] = values[j, i] = np.nan if row["r"] is None else row["r"]
    figure, (ax,) = panels(1, 4.8, 3.4)
    ax.grid(visible=False)
    ax.set_facecolor("#d9d9d9")
    image = ax.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1)
    for (y, x), value in zip(np.ndindex(n, n), values.flat, strict=True):
        text = "–" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # noqa: RUF001
        ink = "white" if abs(value) > 0.65 else INK
        ax.text(x, y, text, color=ink, ha="center", va="center", fontsize=7.5)
    labels = [short_title(measure.name) for measure in measures]
    ax.set_xticks(range(n), labels, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), labels)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("Pearson's r over pairs")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure
