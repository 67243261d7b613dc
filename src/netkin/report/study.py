"""What a study writes: tables, figures with their tables, and one page with all of them.

The page is a single HTML file that opens offline. Images, style and scripts are inside it, and its
content security policy forbids any load from a network.
"""

import base64
import io
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from netkin.errors import OutputsError
from netkin.report.glossary import MEANINGS
from netkin.report.latex import latex
from netkin.report.style import save
from netkin.report.text import cell_text, count, heading, minus, number, percent
from netkin.store.files import write
from netkin.tracking import Tracker

PACKAGES = ("netkin", "torch", "timm", "pytorch-lightning", "numpy", "hydra-core", "wandb")
PAPER = "https://arxiv.org/abs/2210.11407"
SHARP = 200
"""Dots an inch of figures within a page, which shows 120 pixels an inch."""
ROWS = 200
"""Rows of a table on the page; the CSV file has them all."""
TEX_ROWS = 500
"""The most rows of a table that is written for LaTeX, too: ten pages of a paper."""
LONG = 60
"""Characters; a column with a longer text is set as prose, with line breaks."""


@dataclass(frozen=True)
class Picture:
    """A saved figure: its PNG (the PDF and the CSV have the same base name) and its caption."""

    png: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page: its paragraphs, blocks, figures and tables, in this order.

    Attributes:
        title: plain text; the page escapes it, as it does paragraphs, captions and tables.
        paragraphs: the findings of the section in words.
        tables: caption -> table. Numbers have three decimals, rates are in per cent; columns named
            `..._seconds` and `..._bytes` are written in a unit that suits them.
        figures: of `Outputs.figure`.
        blocks: HTML that the page takes over unescaped; see `block`.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Sequence[Picture] = ()
    blocks: Sequence[Markup] = ()


class Outputs:
    """A run's own folder. What is written there is also logged to the tracker, if there is one,
    once the page is written: no failure of a tracker leaves files unwritten.

    Args:
        folder: made if it does not exist.
        tracker: of the run, or None.
    """

    def __init__(self, folder: Path, tracker: Tracker | None = None):
        self.folder, self.tracker = folder, tracker
        self.files: list[str] = []
        self._unlogged: list[Callable[[Tracker], object]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def table(self, name: str, table: pl.DataFrame) -> pl.DataFrame:
        """Write name.csv and, of at most TEX_ROWS rows, name.tex for LaTeX; returns the table."""
        write(self.folder / f"{name}.csv", table.write_csv, OutputsError, "folder")
        self.files.append(f"{name}.csv")
        tex = self.folder / f"{name}.tex"
        if table.height <= TEX_ROWS:
            text = latex(table)
            write(tex, lambda f: f.write_text(text, encoding="utf-8"), OutputsError, "folder")
            self.files.append(tex.name)
        else:
            tex.unlink(missing_ok=True)  # of an earlier run of fewer rows
        self._unlogged.append(lambda tracker: tracker.table(name, table))
        return table

    def figure(self, name: str, figure: Figure, table: pl.DataFrame, caption: str) -> Picture:
        """Write name.png, name.pdf, name.svg and, unless they are written already, the numbers by
        `table`."""
        if f"{name}.csv" not in self.files:
            self.table(name, table)
        png, *others = save(figure, self.folder / name)
        self._unlogged.append(lambda tracker: tracker.figure(name, png))
        self.files += [png.name, *(path.name for path in others)]
        return Picture(png, caption)

    def image(self, name: str, image: Image.Image) -> None:
        """Write name.png: an image that is no figure."""
        png = self.folder / f"{name}.png"
        write(png, lambda f: image.save(f, format="PNG"), OutputsError, "folder")
        self._unlogged.append(lambda tracker: tracker.figure(name, png))
        self.files.append(png.name)

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
            answer: the findings in words, a paragraph each.
            sections: the evidence.
            config: the resolved config as YAML.
        """
        html = render(title, question, answer, sections, config, self.files)
        path = self.folder / "report.html"
        write(path, lambda f: f.write_text(html, encoding="utf-8"), OutputsError, "folder")
        self._unlogged.append(lambda tracker: tracker.page(path))
        while self.tracker is not None and self._unlogged:
            self._unlogged.pop(0)(self.tracker)
        return path


def render(
    title: str,
    question: str,
    answer: Sequence[str],
    sections: Sequence[Section],
    config: str,
    files: Sequence[str] = (),
) -> str:
    """The HTML of a page; see `Outputs.report`."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            question=minus(question),
            answer=[minus(text) for text in answer],
            sections=[
                {
                    "title": section.title,
                    "paragraphs": [
                        minus(text) for text in section.paragraphs if text not in answer
                    ],
                    "blocks": section.blocks,
                    "pictures": [_picture(picture) for picture in section.figures],
                    "tables": [_table(*item) for item in section.tables.items()],
                }
                for section in sections
            ],
            config=config,
            versions=versions(),
            files=files,
            script=Markup(_script()),
        )
    )


def block(template: str, macro: str, **values: Any) -> Markup:
    """The HTML of one macro of a template in this folder, for `Section.blocks`.

    Values are escaped unless they are Markup.
    """
    return getattr(_environment().get_template(template).module, macro)(**values)


@cache
def _script() -> str:
    return resources.files("netkin.report").joinpath("page.js").read_text(encoding="utf-8")


def _meaning(heading: str) -> Markup:
    """What a column's heading means, as the title attribute of its element."""
    text = MEANINGS.get(heading)
    return Markup(' title="{}"').format(text) if text else Markup("")


def _paper(title: str) -> Markup:
    """A title in which "Fig. 1", "Tab. 2" or "Sec. 3" of the paper is a link."""
    before, _, after = title.partition(" (")
    if not re.match(r"(Fig|Tab|Sec|App)\. ", after):
        return escape(title)
    link = Markup('<a href="{}">{}</a>').format(PAPER, after.removesuffix(")"))
    return escape(before) + Markup(" <small>({})</small>").format(link)


@cache
def _environment() -> Environment:
    """Everything is escaped, whatever a template's suffix; an unknown name is an error."""
    env = Environment(
        loader=PackageLoader("netkin.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"num": number, "pct": percent, "count": count}
    env.filters |= {"meaning": _meaning, "paper": _paper}
    return env


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


def _picture(picture: Picture) -> dict[str, Any]:
    with Image.open(picture.png) as image:
        dpi = image.info.get("dpi", (300, 300))[0]
        width = round(image.width / dpi * 120)  # 120 CSS pixels an inch: 9 pt text reads as 15 px
        # The page needs no 300 dpi, and figures have few colours: a third of the bytes.
        size = (round(image.width * SHARP / dpi), round(image.height * SHARP / dpi))
        out = io.BytesIO()
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        # Maximum coverage keeps colours that few pixels have, such as those of a legend.
        few = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(out, format="WEBP", lossless=True, method=6)  # two thirds of a PNG
    data = base64.b64encode(out.getvalue()).decode()
    return {
        "url": f"data:image/webp;base64,{data}",
        "width": width,
        "caption": minus(picture.caption),
        "stem": picture.png.stem,
        "latex": picture.png.with_suffix(".tex").is_file(),
    }


def _table(caption: str, table: pl.DataFrame) -> dict[str, Any]:
    rows = [
        [
            {"text": cell_text(name, value), "value": "" if value is None else value}
            for name, value in zip(table.columns, row, strict=True)
        ]
        for row in table.head(ROWS).iter_rows()
    ]
    columns = []
    for i, (name, kind) in enumerate(table.schema.items()):
        prose = any(len(row[i]["text"]) > LONG for row in rows)
        style = "n" if kind.is_numeric() else "long" if prose else "name"
        columns.append({"name": heading(name), "style": style})
    return {
        "caption": caption,
        "columns": columns,
        "rows": rows,
        "left_out": max(table.height - ROWS, 0),
    }
