"""The similarity matrix in a page: an SVG that stands by itself, and the data that page.js reads.

Without scripts, and in print, the SVG is a complete figure. With them it can be pointed at, tapped,
walked through by keyboard, reordered and zoomed, and the table of all pairs is built. Of more than
`LARGE` models the SVG has a picture instead of a million cells, and no data.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib.colors import Colormap, to_hex
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from netkin.analysis.clusters import hierarchy
from netkin.report.figures import LARGE, VALUES_UP_TO, cell_colours, colour_range
from netkin.report.style import COLOURS, DIVERGING, NO_SCORE, base_colours

STRIP = 7  # px, of base architectures
PICTURE = 900  # px, a side of a matrix without names
SHADES = 64  # of the colour bar and of a picture
PAIR_COLUMNS = (
    *("n", "score", "low", "high", "a_fools_b", "b_fools_a"),
    *("noise_fools_a", "noise_fools_b", "corrected", "above_noise"),
)
"""Columns of a table of pairs that the page shows, as far as it has them."""


def heatmap_svg(
    scores: NDArray[np.float64],
    names: Sequence[str],
    bases: Sequence[str],
    label: str,
    least: float = 0.0,
    marked: NDArray[np.bool_] | None = None,
    signed: bool = False,
) -> Markup:
    """The SVG element of scores [N, N], N >= 2, in the order of their clustering.

    Args:
        scores: symmetric; NaN is grey.
        names: N model names.
        bases: the base architecture of each, which is drawn as a strip.
        label: of the colours, with the unit.
        least, marked: see `netkin.report.figures.heatmap_figure`.
        signed: whether 0 is in the middle of the colours.
    """
    n, order = len(names), hierarchy(scores).order
    limits = colour_range(scores, least, signed)
    colours = DIVERGING if signed else COLOURS
    if n > LARGE:
        return _picture_svg(scores[np.ix_(order, order)], limits, colours, label)
    cell = cell_size(n)
    font = 12 if n <= VALUES_UP_TO else min(11.0, cell * 0.85)
    room = max(map(len, names)) * font * 0.57 + STRIP + 8  # an estimate, on the safe side
    side = n * cell
    marks = np.zeros((n, n), dtype=bool) if marked is None else marked
    strip = base_colours(bases)
    rows, columns = [], []
    for at, i in enumerate(map(int, order)):
        name, fill = escape(names[i]), strip[bases[i]]
        cells = _cells(scores[i, order], marks[i, order], limits, colours, cell, n <= VALUES_UP_TO)
        rows.append(
            f'<g class="row" transform="translate(0 {at * cell})"><text x="{-STRIP - 4}" '
            f'y="{cell / 2}" dy=".35em" text-anchor="end">{name}</text>{_strip(fill, cell, True)}'
            f"<g>{cells}</g></g>"
        )
        columns.append(
            f'<g class="column" transform="translate({at * cell} 0)"><text transform="translate('
            f'{cell / 2} {-STRIP - 4}) rotate(-90)" dy=".35em">{name}</text>'
            f"{_strip(fill, cell, False)}</g>"
        )
    width, height = room + side + 4, room + side + 58
    bar = _bar(scores, limits, colours, label, max(side, 190))
    return Markup(
        f'<svg class="heatmap" viewBox="0 0 {max(width, room + 200):.0f} {height:.0f}" '
        f'width="{max(width, room + 200):.0f}" role="img" '
        f'aria-label="Heatmap: {escape(label)} of every pair of {n} models. '
        f'The table of pairs has the same numbers." '
        f'style="font-size: {font:g}px; --cell: {cell}px">'
        f'<g class="plot" transform="translate({room:.0f} {room:.0f})">{"".join(columns)}'
        f'{"".join(rows)}</g><g transform="translate({room:.0f} {room + side + 14:.0f})">{bar}</g>'
        "</svg>"
    )


def _picture_svg(
    ordered: NDArray[np.float64], limits: tuple[float, float], colours: Colormap, label: str
) -> Markup:
    """The SVG of scores [N, N] as they are ordered: a pixel a pair, and the colour bar."""
    low, high = limits
    steps = np.clip((ordered - low) / (high - low) * SHADES, 0, SHADES - 1)
    pixels = np.where(np.isnan(ordered), SHADES, np.nan_to_num(steps)).astype(np.uint8)
    shades = [to_hex(colours((k + 0.5) / SHADES)) for k in range(SHADES)]
    image = Image.fromarray(pixels, "P")
    image.putpalette(bytes.fromhex("".join(c.removeprefix("#") for c in [*shades, NO_SCORE])))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return Markup(
        f'<svg class="heatmap" viewBox="0 0 {PICTURE} {PICTURE + 58}" width="{PICTURE}" role="img" '
        f'aria-label="Heatmap: {escape(label)} of every pair of {len(ordered)} models.">'
        f'<image width="{PICTURE}" height="{PICTURE}" href="data:image/png;base64,{data}"/>'
        f'<g transform="translate(0 {PICTURE + 14})">'
        f"{_bar(ordered, limits, colours, label, PICTURE)}</g></svg>"
    )


def heatmap_data(
    scores: NDArray[np.float64],
    names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    pairs: pl.DataFrame,
    models: pl.DataFrame,
    links: Mapping[str, str],
    symbol: str,
) -> Markup:
    """What page.js reads, as JSON that is safe within a script element.

    Args:
        scores: [N, N].
        names: N model names.
        groups: by kind (base, family), the group of each model.
        pairs: a row a pair: a, b, and some of `PAIR_COLUMNS`.
        models: a row a model: model, and clean_accuracy, white_box_success and white_box_score
            where they are known.
        links: a page about a model, by its name.
        symbol: of a value.
    """
    place = {name: i for i, name in enumerate(names)}
    by_model = {row["model"]: row for row in models.iter_rows(named=True)}
    known = [c for c in PAIR_COLUMNS if c in pairs.columns and pairs[c].is_not_null().any()]
    columns: dict[str, list[Any]] = {
        c: [None] * (len(names) * (len(names) - 1) // 2) for c in known
    }
    for row in pairs.iter_rows(named=True):
        a, b = place[row["a"]], place[row["b"]]
        turned = a > b  # page.js takes the model that is listed first as A
        at = max(a, b) * (max(a, b) - 1) // 2 + min(a, b)
        for c in known:
            columns[_turned(c) if turned else c][at] = _short(row[c])
    data = {
        "names": names,
        "order": hierarchy(scores).order.tolist(),
        "groups": groups,
        "symbol": symbol,
        "models": {
            c: [_short(by_model.get(name, {}).get(c)) for name in names]
            for c in ("clean_accuracy", "white_box_success", "white_box_score")
        },
        "pairs": columns,
        "links": [links.get(name) for name in names],
        "step": cell_size(len(names)),
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def cell_size(models: int) -> int:
    """The side of a cell in CSS pixels."""
    return 40 if models <= VALUES_UP_TO else 18 if models <= 40 else 12


def _turned(column: str) -> str:
    other = {"a_fools_b": "b_fools_a", "noise_fools_a": "noise_fools_b"}
    return {**other, **{b: a for a, b in other.items()}}.get(column, column)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def _cells(
    values: NDArray[np.float64],
    marks: NDArray[np.bool_],
    limits: tuple[float, float],
    colours: Colormap,
    cell: int,
    numbers: bool,
) -> str:
    """A row of cells: a square each, with its number or mark where it has one."""
    rgba, inks = cell_colours(np.nan_to_num(values), limits, colours)
    parts = []
    for at, (value, mark, colour, ink) in enumerate(zip(values, marks, rgba, inks, strict=True)):
        fill = NO_SCORE if math.isnan(value) else to_hex(colour)
        square = f'<rect fill="{fill}"'
        shift = f'transform="translate({at * cell})"'
        inside = ""
        if numbers and not math.isnan(value):
            inside += (
                f'<text x="{cell / 2}" y="{cell / 2}" dy=".35em" text-anchor="middle" '
                f'fill="{ink}">{round(value, 2) + 0.0:.2f}</text>'
            )
        if mark:
            x, y, r = (cell - 6, 6, 2.6) if numbers else (cell / 2, cell / 2, cell * 0.22)
            inside += f'<circle cx="{x}" cy="{y}" r="{r:g}" stroke="{ink}"/>'
        parts.append(f"<g {shift}>{square}/>{inside}</g>" if inside else f"{square} {shift}/>")
    return "".join(parts)


def _strip(fill: str, cell: int, row: bool) -> str:
    x, y, width, height = (-STRIP, 0, STRIP - 2, cell) if row else (0, -STRIP, cell, STRIP - 2)
    return (
        f'<rect class="base" x="{x}" y="{y}" style="width:{width}px;height:{height}px" '
        f'fill="{fill}"/>'
    )


def _bar(
    scores: NDArray[np.float64],
    limits: tuple[float, float],
    colours: Colormap,
    label: str,
    side: float,
) -> str:
    """The colour bar, with an arrow at an end that some of the values exceed."""
    low, high = limits
    left, width = 14.0, min(side - 28, 420.0)
    known = scores[~np.isnan(scores)]
    parts = [
        f'<rect class="step" x="{left + width * k / SHADES:.2f}" '
        f'style="width:{width / SHADES + 0.5:.2f}px;'
        f'height:10px" fill="{to_hex(colours((k + 0.5) / SHADES))}"/>'
        for k in range(SHADES)
    ]
    if (known < low).any():
        parts.append(f'<path d="M{left} 0v10l-9-5z" fill="{to_hex(tuple(colours.get_under()))}"/>')
    if (known > high).any():
        end = to_hex(tuple(colours.get_over()))
        parts.append(f'<path class="over" d="M{left + width} 0v10l9-5z" fill="{end}"/>')
    ticks = [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    step = min(np.diff(ticks), default=1.0)
    digits = max(0, math.ceil(-math.log10(step) - 1e-9)) if step > 0 else 1
    for tick in ticks:
        x = left + width * (tick - low) / (high - low)
        text = f"{tick + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        parts.append(f'<text x="{x:.1f}" y="22" text-anchor="middle">{text}</text>')
    parts.append(f'<text x="{left}" y="38">{escape(label)}</text>')
    return f'<g class="bar">{"".join(parts)}</g>'
