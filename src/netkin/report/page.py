"""The HTML report of a run: one self-contained file that opens offline.

`render` only lays out what a `Page` holds; nothing is measured here. plotly.js, the style and the
images are inside the file, and its content security policy forbids any load from a network.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image
from plotly.offline import get_plotlyjs

from netkin.analysis.hierarchy import hierarchy
from netkin.analysis.summary import WEAK_ATTACK
from netkin.report.figures import COLOURS, VALUES_UP_TO, cell_colours, colour_range
from netkin.report.text import count, fraction_text, number, percent

EXTREMES = 5  # pairs in each of the tables of the most and the least similar
ANCHORS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.00)  # fooling rates p that explain the score


@dataclass(frozen=True)
class Example:
    """One image under attack.

    Attributes:
        source: the model that the adversarial image was made on.
        image_id: which image of the data set.
        label: the true class.
        prediction: what the source takes the adversarial image for.
        clean: [H, W, 3] uint8.
        adversarial: [H, W, 3] uint8, within eps of clean.
    """

    source: str
    image_id: str
    label: str
    prediction: str
    clean: NDArray[np.uint8]
    adversarial: NDArray[np.uint8]


@dataclass(frozen=True)
class Page:
    """What a report says of N models. All text is plain text: the template escapes it.

    Attributes:
        title: such as "How related are 13 models on digits?".
        question: a sentence or two: what was asked, and how it was measured.
        answer: the findings in words, one paragraph each.
        scores: [N, N], symmetric, natural-log scores; NaN where a pair has none.
        names: N model names.
        families: the family of each model.
        pairs: one row a pair: a, b, n, a_fools_b, b_fools_a (rates in [0, 1]), score, low, high
            (95 % interval); N (N - 1) / 2 rows, in any order.
        models: one row a model: model, family, params, input_size, clean_accuracy and
            white_box_success (in [0, 1]), white_box_score, mean_similarity, nearest.
        family_means: family_a, family_b, pairs, mean; family_a == family_b is within a family, and
            a family of one has no such row. With columns low and high, the interval is shown too.
        examples: images under attack; may be empty.
        eps: the attack's bound, in pixels of [0, 1], above 0.
        config: the resolved config as YAML.
        versions: package -> version, with python and platform.
        files: names of the files that lie next to the report.
    """

    title: str
    question: str
    answer: list[str]
    scores: NDArray[np.float64]
    names: list[str]
    families: list[str]
    pairs: pl.DataFrame
    models: pl.DataFrame
    family_means: pl.DataFrame
    examples: list[Example]
    eps: float
    config: str
    versions: dict[str, str]
    files: list[str]


def environment() -> Environment:
    """Jinja as all pages use it: everything escaped, an unknown name an error."""
    env = Environment(
        loader=PackageLoader("netkin.report", ""),
        autoescape=True,  # whatever the suffix of the template
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"num": number, "pct": percent, "count": count}
    return env


def render(page: Page) -> str:
    """The HTML of a page."""
    env = environment()
    known = page.pairs.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan())
    ranked = known.sort(["score", "a", "b"], descending=[True, False, False])
    shown = min(EXTREMES, max(ranked.height // 2, 1))  # no pair is in both tables
    written, (_, longest) = len(page.names) <= VALUES_UP_TO, _tick_labels(page.names)
    weak = page.models.filter(pl.col("white_box_success") < WEAK_ATTACK)
    return env.get_template("page.html.j2").render(
        page=page,
        plotly_js=Markup(get_plotlyjs()),
        heatmap=Markup(_heatmap(page)),
        # On a narrow screen it scrolls rather than shrink until names overlap.
        heatmap_min_width=round(len(page.names) * (30 if written else 11) + longest + 110),
        most=list(ranked.head(shown).iter_rows(named=True)),
        least=list(ranked.tail(shown).reverse().iter_rows(named=True)) if ranked.height > 1 else [],
        models=list(page.models.iter_rows(named=True)),
        weak=weak["model"].to_list(),
        weak_attack=WEAK_ATTACK,
        families=_family_table(page),
        examples=[
            {
                "example": e,
                "clean": _png(e.clean),
                "adversarial": _png(e.adversarial),
                "difference": _png(difference(e.clean, e.adversarial, page.eps)),
            }
            for e in page.examples
        ],
        eps=fraction_text(page.eps),
        amplification=0.5 / page.eps,
        anchors=[(p, math.log(100 * p)) for p in ANCHORS],
    )


def difference(
    clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], eps: float
) -> NDArray[np.uint8]:
    """adversarial - clean around mid-grey, [H, W, 3] uint8: -eps is black and +eps is white."""
    delta = (adversarial.astype(float) - clean.astype(float)) / (255 * eps)
    return np.clip(np.round(127.5 + 127.5 * delta), 0, 255).astype(np.uint8)


def _png(image: NDArray[np.uint8]) -> str:
    """A data URL of [H, W, 3] uint8."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _family_table(page: Page) -> dict[str, Any]:
    """The family means as a square table in the order of the heatmap, each cell in its colour."""
    order = dict.fromkeys(page.families[i] for i in hierarchy(page.scores).order)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in page.family_means.iter_rows(named=True):
        a, b, mean = row["family_a"], row["family_b"], row["mean"]
        if mean is None or math.isnan(mean):
            continue
        rgba, (ink,) = cell_colours(np.array([mean]), colour_range(page.scores))
        note = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
        if row.get("low") is not None and row.get("high") is not None:
            note += f", 95% interval {number(row['low'])} to {number(row['high'])}"
        cell = {"mean": mean, "ink": ink, "fill": to_hex(rgba[0]), "note": note}
        cells[a, b] = cells[b, a] = cell
    members = {family: page.families.count(family) for family in order}
    return {"members": members, "rows": [[cells.get((a, b)) for b in order] for a in order]}


def _heatmap(page: Page) -> str:
    """A plotly div of the matrix, in the order of the figure, without plotly.js itself."""
    n, order = len(page.names), hierarchy(page.scores).order
    values = page.scores[np.ix_(order, order)]
    low, high = colour_range(page.scores)
    names = [escape(page.names[i]) for i in order]  # plotly reads names as HTML
    written = n <= VALUES_UP_TO
    hover = _hover(page)
    gap = 1.5 if written else 0
    figure = go.Figure()
    figure.add_heatmap(
        z=_cells(values),
        hovertext=[[hover[page.names[i], page.names[j]] for j in order] for i in order],
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
    # plotly has no colours for what lies outside the range, so these cells are drawn over it.
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
    if written:
        _, inks = cell_colours(np.nan_to_num(values.ravel()), (low, high))
        figure.update_layout(
            annotations=[
                {"x": x, "y": y, "text": f"{s:.2f}", "showarrow": False, "font": {"color": ink}}
                for (y, x), s, ink in zip(np.ndindex(n, n), values.flat, inks, strict=True)
                if not math.isnan(s)
            ]
        )
    size, longest = _tick_labels(page.names)
    level = longest * n < 400
    # Numbered positions, not names, so that plotly takes no name for a number or a date.
    axis = {
        "tickvals": list(range(n)),
        "ticktext": names,
        "tickfont": {"size": size},
        "showgrid": False,
        "ticks": "",
        "ticklabelstandoff": 4,
        "zeroline": False,
        "constrain": "domain",
        "fixedrange": written,
    }
    figure.update_layout(
        template="none",
        xaxis=axis | {"tickangle": 0 if level else -90, "constraintoward": "left"},
        yaxis=axis | {"autorange": "reversed", "scaleanchor": "x", "constraintoward": "top"},
        margin={"l": longest, "r": 10, "t": 10 if written else 32, "b": 30 if level else longest},
        plot_bgcolor="#d9d9d9",  # shows through where a pair has no score
        font={"family": "inherit", "color": "#1c2430"},
        hoverlabel={"bgcolor": "white", "font": {"size": 13, "color": "#1c2430"}, "align": "left"},
        dragmode=False if written else "zoom",
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id="heatmap",  # else a random one
        config={
            "responsive": True,
            "displaylogo": False,
            "displayModeBar": not written,
            "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
        },
    )


def _tick_labels(names: list[str]) -> tuple[int, float]:
    """Font size of the names beside the heatmap and the room for the longest, in px.

    Estimated, because plotly's own automatic margins need not settle with square cells.
    """
    size = 12 if len(names) <= VALUES_UP_TO else 9 if len(names) < 40 else 8
    return size, max(map(len, names)) * size * 0.58 + 14


def _cells(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if math.isnan(s) else round(s, 4) for s in row] for row in values.tolist()]


def _hover(page: Page) -> dict[tuple[str, str], str]:
    """What is said of each cell, by the two names, as the HTML that plotly knows."""
    text: dict[tuple[str, str], str] = {}
    for row in page.pairs.iter_rows(named=True):
        text[row["a"], row["b"]] = text[row["b"], row["a"]] = _lines(_pair_lines(row))
    for row in page.models.iter_rows(named=True):
        name = escape(row["model"])
        text[row["model"], row["model"]] = _lines(
            (
                f"<b>{name}</b> with itself",
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


def _lines(lines: Iterable[str]) -> str:
    return "<br>".join(lines)
