"""What a study leaves behind: tables, figures with their tables, and one page that shows them."""

import base64
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from PIL import Image

from netkin.report.page import environment
from netkin.report.style import save
from netkin.store.files import write
from netkin.tracking import Tracker

PACKAGES = ("netkin", "torch", "timm", "pytorch-lightning", "numpy", "hydra-core", "wandb")
ROWS = 200
"""Of a table that a page shows; the CSV file has them all."""
_UNKNOWN = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Picture:
    """A saved figure: its PNG (the PDF and the CSV have the same base name) and its caption."""

    png: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page. All text is plain text: the page escapes it.

    Attributes:
        title: of the section.
        paragraphs: what was found, in words.
        tables: caption -> table; numbers are shown to three decimals.
        figures: of `Outputs.figure`.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    figures: Sequence[Picture] = ()


class Outputs:
    """A run's own folder: whatever is written there is logged to the tracker, too."""

    def __init__(self, folder: Path, tracker: Tracker):
        self.folder, self.tracker = folder, tracker
        self.files: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def table(self, name: str, table: pl.DataFrame) -> pl.DataFrame:
        """Write name.csv; returns the table."""
        write(self.folder / f"{name}.csv", table.write_csv)
        self.tracker.table(f"tables/{name}", table)
        self.files.append(f"{name}.csv")
        return table

    def figure(self, name: str, figure: Figure, table: pl.DataFrame, caption: str) -> Picture:
        """Write name.png, name.pdf and name.csv, the numbers that the figure shows."""
        if f"{name}.csv" not in self.files:
            self.table(name, table)
        png, pdf = save(figure, self.folder / name)
        self.tracker.figure(f"figures/{name}", png)
        self.files += [png.name, pdf.name]
        return Picture(png, caption)

    def report(
        self,
        title: str,
        question: str,
        answer: Sequence[str],
        sections: Sequence[Section],
        config: str,
    ) -> Path:
        """Write report.html: self-contained, in the look of a pairwise run's page.

        Args:
            title: the question in a line.
            question: what was asked and how it was measured, in a sentence or two.
            answer: the findings in words, a paragraph each.
            sections: what shows them.
            config: the resolved config as YAML.
        """
        html = render(title, question, answer, sections, config, self.files)
        path = self.folder / "report.html"
        write(path, lambda file: file.write_text(html, encoding="utf-8"))
        return path


def render(
    title: str,
    question: str,
    answer: Sequence[str],
    sections: Sequence[Section],
    config: str,
    files: Sequence[str] = (),
) -> str:
    """The HTML of a study's page; see `Outputs.report`."""
    return (
        environment()
        .get_template("study.html.j2")
        .render(
            title=title,
            question=question,
            answer=answer,
            sections=[
                {
                    "title": section.title,
                    "paragraphs": section.paragraphs,
                    "pictures": [_picture(picture) for picture in section.figures],
                    "tables": [_table(*item) for item in section.tables.items()],
                }
                for section in sections
            ],
            config=config,
            versions=versions(),
            files=files,
        )
    )


def versions() -> dict[str, str]:
    """Of Python, this machine's system and the packages that results may depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: version(package) for package in PACKAGES},
    }


def _picture(picture: Picture) -> dict[str, Any]:
    with Image.open(picture.png) as image:
        dpi = image.info.get("dpi", (300, 300))[0]
        width = round(image.width / dpi * 120)  # 120 CSS pixels an inch: 9 pt text reads as 15 px
    data = base64.b64encode(picture.png.read_bytes()).decode()
    return {
        "url": f"data:image/png;base64,{data}",
        "width": width,
        "caption": picture.caption,
        "stem": picture.png.name.removesuffix(".png"),
    }


def _table(caption: str, table: pl.DataFrame) -> dict[str, Any]:
    return {
        "caption": caption,
        "columns": [
            {"name": name.replace("_", " "), "numeric": kind.is_numeric()}
            for name, kind in table.schema.items()
        ],
        "rows": [
            [{"text": _text(value), "value": "" if value is None else value} for value in row]
            for row in table.head(ROWS).iter_rows()
        ],
        "left_out": max(table.height - ROWS, 0),
    }


def _text(value: Any) -> str:
    """A cell: three decimals for a number, more digits where that would leave none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
    return str(value)
