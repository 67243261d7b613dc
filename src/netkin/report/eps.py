"""White-box success and the effect of noise, by eps."""

import polars as pl
from matplotlib.figure import Figure

from netkin.analysis.eps import NOISE, SUCCESS
from netkin.report.lines import Line, lines_figure

LINES = 12
"""Models in a figure: of more, those that are the hardest to fool."""


def eps_figure(table: pl.DataFrame) -> Figure:
    """Both rates by eps, a line a model, from a table of `netkin.analysis.eps.strength_row`."""
    strength = table.group_by("model", maintain_order=True).agg(pl.col(SUCCESS).mean())
    names = strength.sort(SUCCESS, maintain_order=True)["model"].head(LINES).to_list()
    labels = {SUCCESS: "white-box success (%)", NOISE: "error under noise (%)"}
    panels = []
    for column, label in labels.items():
        lines = []
        for name in names:
            rows = table.filter(model=name)
            rates = [100 * rows[column + end].to_numpy() for end in ("", "_low", "_high")]
            lines.append(Line(name, rows["levels"].to_numpy(), *rates))
        panels.append((label, lines))
    return lines_figure(panels, "eps (of 255)", 3.2)
