"""The similarity matrix as an interactive heatmap in a page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from markupsafe import Markup
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from netkin.analysis.hierarchy import hierarchy
from netkin.report.figures import COLOURS, VALUES_UP_TO, cell_colours, colour_range
from netkin.report.text import number, percent

INK = "#1c2430"  # of the page's text
NO_SCORE = "#d9d9d9"


def interactive_heatmap(
    scores: NDArray[np.float64],
    names: Sequence[str],
    pairs: pl.DataFrame,
    models: pl.DataFrame,
    least: float = 0.0,
    marked: NDArray[np.bool_] | None = None,
) -> Markup:
    """A plotly div of scores [N, N] in the order of the figure, without plotly.js itself.

    A cell's hover text has the row of its pair in `pairs`, or, on the diagonal, of its model in
    `models`. For the arguments see `netkin.report.matrix.Relations`, for `least` and `marked`
    `netkin.report.figures.heatmap_figure`.
    """
    n, order = len(names), hierarchy(scores).order
    values = scores[np.ix_(order, order)]
    limits = colour_range(scores, least)
    numbers = n <= VALUES_UP_TO
    hover, ordered = _hover(pairs, models), [names[int(i)] for i in order]
    figure = go.Figure()
    _add_cells(figure, values, limits, [[hover[a, b] for b in ordered] for a in ordered], numbers)
    if marked is not None:
        _add_marks(figure, marked[np.ix_(order, order)], values, limits, numbers)
    if numbers:
        _, inks = cell_colours(np.nan_to_num(values.ravel()), limits)
        figure.update_layout(
            annotations=[
                {"x": x, "y": y, "text": f"{s:.2f}", "showarrow": False, "font": {"color": ink}}
                for (y, x), s, ink in zip(np.ndindex(n, n), values.flat, inks, strict=True)
                if not math.isnan(s)
            ]
        )
    figure.update_layout(_layout(ordered))
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id="heatmap",  # else a random one
            config={
                "responsive": True,
                "displaylogo": False,
                "displayModeBar": not numbers,
                "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
            },
        )
    )


def minimal_width(names: Sequence[str]) -> int:
    """CSS pixels; on a narrower screen the heatmap scrolls, so that names do not overlap."""
    _, longest = _tick_labels(names)
    return round(len(names) * (30 if len(names) <= VALUES_UP_TO else 11) + longest + 110)


def _add_cells(
    figure: go.Figure,
    values: NDArray[np.float64],
    limits: tuple[float, float],
    hover: list[list[str]],
    gaps: bool,
) -> None:
    low, high = limits
    gap = 1.5 if gaps else 0
    figure.add_heatmap(
        z=_cells(values),
        hovertext=hover,
        hoverinfo="text",
        colorscale=[[t, to_hex(COLOURS(t))] for t in np.linspace(0, 1, 33)],
        zmin=low,
        zmax=high,
        xgap=gap,
        ygap=gap,
        colorbar={
            "title": {"text": "similarity s = ln(100 p)", "side": "right"},
            "thickness": 12,
            "outlinewidth": 0,
            "y": 1,
            "yanchor": "top",
            "len": 0.7,
            "tickformat": ".1f",
        },
    )
    # plotly has no colours for values outside the range, so these cells are drawn over it.
    outside = np.where((values < low) | (values > high), values, np.nan)
    if not np.isnan(outside).all():
        ends = [[0, to_hex(tuple(COLOURS.get_under()))], [1, to_hex(tuple(COLOURS.get_over()))]]
        figure.add_heatmap(
            z=_cells(outside),
            colorscale=ends,
            zmin=low,
            zmax=high,
            xgap=gap,
            ygap=gap,
            showscale=False,
            hoverinfo="skip",
        )


def _add_marks(
    figure: go.Figure,
    marked: NDArray[np.bool_],
    values: NDArray[np.float64],
    limits: tuple[float, float],
    numbers: bool,
) -> None:
    """A circle in each marked cell, legible on its colour."""
    y, x = np.nonzero(marked)
    _, inks = cell_colours(np.nan_to_num(values[y, x]), limits)
    shift = (0.36, -0.34) if numbers else (0.0, 0.0)
    figure.add_scatter(
        x=(x + shift[0]).tolist(),
        y=(y + shift[1]).tolist(),
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 6 if numbers else 4,
            "color": inks,
            "line": {"width": 1},
        },
        hoverinfo="skip",
        showlegend=False,
    )


def _layout(names: Sequence[str]) -> dict[str, Any]:
    """Axes, margins and colours for names in the order of the rows."""
    n, numbers = len(names), len(names) <= VALUES_UP_TO
    size, longest = _tick_labels(names)
    level = longest * n < 400
    # Numbered positions, not names, so that plotly takes no name for a number or a date.
    axis = {
        "tickvals": list(range(n)),
        "ticktext": [escape(name) for name in names],  # plotly reads names as HTML
        "tickfont": {"size": size},
        "showgrid": False,
        "ticks": "",
        "ticklabelstandoff": 4,
        "zeroline": False,
        "constrain": "domain",
        "fixedrange": numbers,
    }
    return {
        "template": "none",
        "xaxis": axis
        | {
            "range": [-0.5, n - 0.5],
            "tickangle": 0 if level else -90,
            "constraintoward": "left",
        },
        "yaxis": axis | {"range": [n - 0.5, -0.5], "scaleanchor": "x", "constraintoward": "top"},
        "margin": {
            "l": longest,
            "r": 10,
            "t": 10 if numbers else 32,
            "b": 30 if level else longest,
        },
        "plot_bgcolor": NO_SCORE,  # visible where a pair has no score
        "font": {"family": "inherit", "color": INK},
        "hoverlabel": {
            "bgcolor": "white",
            "font": {"size": 13, "color": INK},
            "align": "left",
        },
        "dragmode": False if numbers else "zoom",
    }


def _tick_labels(names: Sequence[str]) -> tuple[int, float]:
    """Font size of the names beside the heatmap and the room for the longest, in px.

    Estimated, because plotly's own automatic margins need not settle with square cells.
    """
    size = 12 if len(names) <= VALUES_UP_TO else 9 if len(names) < 40 else 8
    return size, max(map(len, names)) * size * 0.58 + 14


def _cells(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if math.isnan(s) else round(s, 4) for s in row] for row in values.tolist()]


def _hover(pairs: pl.DataFrame, models: pl.DataFrame) -> dict[tuple[str, str], str]:
    """The hover text of each cell, by its two names, as the HTML that plotly knows."""
    text: dict[tuple[str, str], str] = {}
    for row in pairs.iter_rows(named=True):
        text[row["a"], row["b"]] = text[row["b"], row["a"]] = "<br>".join(_pair_lines(row))
    for row in models.iter_rows(named=True):
        text[row["model"], row["model"]] = "<br>".join(
            (
                f"<b>{escape(row['model'])}</b> with itself",
                f"white-box success {percent(row['white_box_success'])}",
                f"s = {number(row['white_box_score'], 3)}",
            )
        )
    return text


def _pair_lines(row: Mapping[str, Any]) -> Iterable[str]:
    a, b = escape(row["a"]), escape(row["b"])
    yield f"<b>{a}</b> and <b>{b}</b>"
    interval = f"95% interval {number(row['low'], 3)} to {number(row['high'], 3)}"
    yield f"s = {number(row['score'], 3)} ({interval})"
    yield f"n = {row['n']} images"
    yield f"{a} fools {b}: {percent(row['a_fools_b'])}"
    yield f"{b} fools {a}: {percent(row['b_fools_a'])}"
    if row.get("above_noise") is not None:
        yield f"noise fools {b}: {percent(row['noise_fools_b'])}"
        yield f"noise fools {a}: {percent(row['noise_fools_a'])}"
        above = "" if row["above_noise"] else "; not above noise"
        yield f"corrected for chance: {percent(row['corrected'])}{above}"
