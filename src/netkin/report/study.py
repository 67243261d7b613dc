"""What a study writes: tables, figures with their tables, and one page with all of them.

The page is a single HTML file that opens offline. Images, style and scripts are inside it, and its
content security policy forbids any load from a network.
"""

import base64
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from netkin.data.tables import guarded
from netkin.errors import OutputsError
from netkin.report.sentences import text as sentence
from netkin.report.text import cell_text, fact, heading, latex, minus
from netkin.store.files import write
from netkin.tracking import Tracker

if TYPE_CHECKING:  # a page without figures needs no matplotlib
    from matplotlib.figure import Figure

    from netkin.report.style import Saved

PACKAGES = ("netkin", "torch", "timm", "pytorch-lightning", "numpy", "hydra-core", "wandb")
ROWS = 200
"""Rows of a table on the page; the CSV file has them all."""
TEX_ROWS = 500
"""The most rows of a table that is written for LaTeX, too: ten pages of a paper."""
UPRIGHT = 8
"""Columns; a row alone with more of them is shown as a column."""
LONG = 60
"""Characters; a column with a longer text is set as prose, with line breaks."""


@dataclass(frozen=True)
class Lookup:
    """What a page shows of a matrix's pairs: the cell that one points at, and a table to search.

    Attributes:
        names: of the N models.
        order: [N], of the figure's rows and columns.
        pairs: a row for each pair: a, b, and some of `PAIRS`; the model listed first is a.
        diagonal: a text for each model with itself, or none.
        groups: by kind (base architecture, family), the group of each model.
        accuracy: [N], for an order; empty where it is unknown.
    """

    names: Sequence[str]
    order: Sequence[int]
    pairs: pl.DataFrame
    diagonal: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    accuracy: Sequence[float | None] = ()


PAIRS = {
    "score": ("s", "number", "score"),
    "low": ("95% interval", "range", "low"),
    "n": ("n", "count", "n"),
    "a_fools_b": ("A fools B", "rate", "b_fools_a"),
    "b_fools_a": ("B fools A", "rate", "a_fools_b"),
    "noise_fools_a": ("noise fools A", "rate", "noise_fools_b"),
    "noise_fools_b": ("noise fools B", "rate", "noise_fools_a"),
    "corrected": ("corrected", "rate", "corrected"),
    "above_noise": ("above noise", "flag", "above_noise"),
}
"""Columns of pairs that a page shows: heading, kind, and the column with A and B exchanged."""


@dataclass(frozen=True)
class Picture:
    """A figure: what waits for its files (the CSV has the same base name), and its caption."""

    saved: "Callable[[], Saved]"
    caption: str
    lookup: Lookup | None = None


@dataclass(frozen=True)
class Section:
    """A part of a page: its paragraphs, figures and tables, in this order.

    Attributes:
        title: plain text; the page escapes it, as it does paragraphs, captions and tables.
        paragraphs: the findings of the section in words.
        tables: caption -> table. Numbers have three decimals, rates are in per cent; columns named
            `..._seconds` and `..._bytes` are written in a unit that suits them.
        figures: of `Outputs.figure`. The very first of a page stands beside its answer.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Sequence[Picture] = ()


class Outputs:
    """A run's own folder. What is written there is also logged to the tracker, if there is one.

    Args:
        folder: made if it does not exist.
        tracker: of the run, or None.
        links: pages about models, by their names, wherever the page names them.
    """

    def __init__(
        self,
        folder: Path,
        tracker: Tracker | None = None,
        links: Mapping[str, str] | None = None,
    ):
        self.folder, self.tracker, self.links = folder, tracker or Tracker(), links or {}
        self.files: list[str] = []
        self._figures: dict[str, Callable[[], Saved]] = {}
        self._tables: dict[str, pl.DataFrame] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def table(self, name: str, table: pl.DataFrame) -> pl.DataFrame:
        """Write name.csv and, of at most TEX_ROWS rows, name.tex for LaTeX; returns the table."""
        write(self.folder / f"{name}.csv", guarded(table).write_csv, OutputsError, "folder")
        self.files.append(f"{name}.csv")
        tex = self.folder / f"{name}.tex"
        if table.height <= TEX_ROWS:
            text = latex(table)
            write(tex, lambda f: f.write_text(text, encoding="utf-8"), OutputsError, "folder")
            self.files.append(tex.name)
        else:
            tex.unlink(missing_ok=True)  # of an earlier run of fewer rows
        self._tables[name] = table
        return table

    def figure(
        self,
        name: str,
        figure: "Figure",
        table: pl.DataFrame,
        caption: str,
        lookup: Lookup | None = None,
    ) -> Picture:
        """Write the figure in the formats of `netkin.report.style.figure_settings` and, unless they
        are written already, its numbers as name.csv.

        `lookup` is of the pairs of a `netkin.report.heatmap.heatmap_figure`.
        """
        from netkin.report import beside

        if f"{name}.csv" not in self.files:
            self.table(name, table)
        paths, saved = beside.save(figure, self.folder / name)
        self._figures[name] = saved
        self.files += [path.name for path in paths]
        return Picture(saved, caption, lookup)

    def report(
        self,
        title: str,
        question: str,
        answer: Sequence[str],
        sections: Sequence[Section],
        config: str,
    ) -> Path:
        """Write report.html, log all files to the tracker, and return the page's path.

        Args:
            title: the question in one line.
            question: the question and how it was measured, in a sentence or two.
            answer: the findings in words, a paragraph each: the page shows the label and the first
                sentence of each (`netkin.report.text.fact`), and the others on a click.
            sections: the evidence.
            config: the resolved config as YAML.
        """
        for name, table in self._tables.items():
            self.tracker.table(name, table)
        for drawn in reversed(self._figures.values()):  # the last first: nobody draws it yet
            drawn()
        html = render(title, question, answer, sections, config, self.files, self.links)
        path = self.folder / "report.html"
        write(path, lambda f: f.write_text(html, encoding="utf-8"), OutputsError, "folder")
        for name, drawn in self._figures.items():
            self.tracker.media(f"figures/{name}", drawn().paths[0])
        self.tracker.media("report", path)
        return path


def render(
    title: str,
    question: str,
    answer: Sequence[str],
    sections: Sequence[Section],
    config: str,
    files: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """The HTML of a page; see `Outputs.report`."""
    lead, shown = None, []
    for section in sections:
        said = [fact(text) for text in section.paragraphs if text not in answer]
        pictures = list(section.figures)
        if not shown and lead is None and pictures:
            lead = pictures.pop(0)
        if said or pictures or section.tables:
            parts = {"paragraphs": said, "figures": pictures, "tables": section.tables}
            shown.append({"title": section.title, **parts})
    return _page().render(
        title=title,
        question=fact(question),
        answer=[fact(text) for text in answer],
        lead=None if lead is None else _picture(lead, links or {}),
        sections=shown,
        config=config,
        versions=versions(),
        files=files,
        links=links or {},
    )


@cache
def _page() -> Template:
    """Everything is escaped, whatever a template's suffix; an unknown name is an error."""
    env = Environment(
        loader=PackageLoader("netkin.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"minus": minus, "linked": linked, "picture": _picture, "table": _table}
    return env.get_template("page.html.j2")


def linked(text: str, links: Mapping[str, str]) -> Markup:
    """A text, escaped, in which names are links to their pages."""
    parts = [text]
    if links:  # the longest name first: one may begin with another
        names = "|".join(re.escape(name) for name in sorted(links, key=len, reverse=True))
        parts = re.split(rf"(?<![\w./@-])({names})(?![\w/@-]|\.\w)", text)
    link = Markup('<a href="{}">{}</a>')
    return Markup("").join(
        link.format(links[part], part) if i % 2 else part for i, part in enumerate(parts)
    )


def versions() -> dict[str, str]:
    """Versions of Python, the operating system and the packages that results may depend on."""
    packages = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # a copy on sys.path, or a library use without Hydra
            packages[package] = version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **packages,
    }


def _picture(picture: Picture, links: Mapping[str, str]) -> dict[str, Any]:
    saved = picture.saved()
    png, *others = saved.paths
    tables = [png.with_name(f"{png.stem}.{suffix}") for suffix in ("csv", "tex")]
    kinds = {"tex": "LaTeX"}
    return {
        "url": f"data:image/webp;base64,{base64.b64encode(saved.webp).decode()}",
        "width": saved.size[0],
        "height": saved.size[1],
        "caption": picture.caption,
        "files": {
            kinds.get(file.suffix[1:], file.suffix[1:].upper()): file.name
            for file in [*others, *tables]
            if file in others or file.is_file()
        },
        "lookup": None if picture.lookup is None else _lookup(picture.lookup, saved, links),
        "names": [] if picture.lookup is None else picture.lookup.names,
    }


def _lookup(lookup: Lookup, saved: "Saved", links: Mapping[str, str]) -> Markup:
    """What page.js reads, as JSON that is safe within a script element."""
    names, order = lookup.names, list(map(int, lookup.order))
    index = {name: i for i, name in enumerate(names)}
    a, b = (
        np.array([index[name] for name in lookup.pairs[column].to_list()]) for column in ("a", "b")
    )
    assert (a < b).all()
    at = np.argsort(b * (b - 1) // 2 + a)  # the pair of models i < j is at j (j - 1) / 2 + i

    def values(column: str) -> list[Any]:
        return [_short(value) for value in lookup.pairs[column][at.tolist()]]

    known = [c for c in PAIRS if c in lookup.pairs.columns and lookup.pairs[c].is_not_null().any()]
    columns = []
    for column in known:
        title, kind, other = PAIRS[column]
        meaning = sentence.table("headings").get(title, "")
        entry = {"title": title, "kind": kind, "meaning": meaning, "values": values(column)}
        ends = {"ends": values("high")} if kind == "range" else {}
        columns.append(entry | ends | {"other": known.index(other)})
    orders = {"clusters": order}
    for kind, groups in lookup.groups.items():
        orders[kind] = sorted(order, key=lambda i, groups=groups: groups[i])
    accuracy = [_short(value) or 0.0 for value in lookup.accuracy]
    if any(accuracy):
        orders["accuracy"] = sorted(order, key=lambda i: -accuracy[i])
    orders["name"] = sorted(order, key=lambda i: names[i])
    data = {
        "names": names,
        "order": order,
        "orders": orders,
        "diagonal": lookup.diagonal,
        "groups": {f"{kind.split(' ')[0]} of A, B": of for kind, of in lookup.groups.items()},
        "links": [links.get(name) for name in names],
        "columns": columns,
        "axes": saved.axes,
    }
    return htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False)


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else round(value, 4)


def _table(table: pl.DataFrame) -> dict[str, Any]:
    """What a page shows of a table: not columns without any value; a row alone stands upright."""
    known = [c for c in table.columns if table[c].null_count() < table.height]
    shown = table.select(known or table.columns).head(ROWS)
    rows = [
        [
            {"text": cell_text(name, value), "value": "" if value is None else value}
            for name, value in zip(shown.columns, row, strict=True)
        ]
        for row in shown.iter_rows()
    ]
    columns = []
    for i, (name, kind) in enumerate(shown.schema.items()):
        prose = any(len(row[i]["text"]) > LONG for row in rows)
        words = "long" if prose else "" if kind == pl.Boolean else "name"
        title = heading(name)
        meaning = sentence.table("headings").get(title)
        style = "n" if kind.is_numeric() else words
        columns.append({"name": title, "style": style, "meaning": meaning})
    if len(rows) == 1 and len(columns) > UPRIGHT:
        titles = [{"text": column["name"], "value": column["name"]} for column in columns]
        rows = list(zip(titles, rows[0], strict=True))
        columns = [{"name": name, "style": "", "meaning": None} for name in ("of", "value")]
    return {"columns": columns, "rows": rows, "left_out": max(table.height - ROWS, 0)}
