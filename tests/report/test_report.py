"""Pages of made-up scores: what is on them, what they load, and what their script reads."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from netkin.analysis.groups import Draws
from netkin.comparison import Example, Result, difference, examples_note, relate
from netkin.report.study import TEX_ROWS, Outputs, Picture, Section, render
from netkin.report.style import Job, Saved, figure_settings, job
from netkin.report.text import fact, minus
from netkin.similarity import Outcomes
from tests.conftest import coarse_figures

VOID = {"meta", "img", "br", "link", "input", "hr"}


def compared(n: int = 4, names: Sequence[str] = (), noise: bool = True) -> Result:
    """n models of two families, of which the last one has a weak attack."""
    rng, images = np.random.default_rng(n), 60
    names = names or [f"model_{i}" for i in range(n)]
    families = {name: "CNN" if i < (n + 1) // 2 else "ViT" for i, name in enumerate(names)}
    fooled = rng.random((n, n, images)) < np.where(np.eye(n), 1.0, 0.4)[..., None]
    fooled[-1, -1, ::2] = False
    outcomes = Outcomes(
        tuple(names),
        tuple(map(str, range(images))),
        rng.random((n, images)) < 0.95,
        fooled,
        rng.random((n, images)) < 0.05 if noise else None,
    )
    draws = Draws(outcomes, 50)
    sizes = [25_600_000 + i for i in range(n)], [224] * n
    clean = np.full((8, 8, 3), 100, np.uint8)
    return relate(
        *("How related?", "Measured so.", outcomes, draws, families, *sizes),
        examples=[Example(names[0], "digits/7", "seven", "two", clean, clean + np.uint8(8))],
        eps=8 / 255,
        links={names[0]: "https://example.org/a"},
    )


def page(folder: Path, c: Result, *others: Section, text: str = "") -> str:
    """The page of a comparison; `text` stands wherever a page takes plain text of its own."""
    outputs = Outputs(folder, links={**c.links, text: text} if text else c.links)
    sections = [*c.write(outputs), *others]
    if text:
        outputs.files.append(text)
    answer = [text] if text else c.answer
    path = outputs.report(text or c.title, text or c.question, answer, sections, f"seed: {text}")
    return path.read_text()


def fake_save(job: Job) -> Saved:
    """Files without drawing."""
    Image.new("RGB", (4, 4)).save(job.paths[0])
    return Saved(job.paths[:1], {"cells": (0.0, 0.0, 1.0, 1.0)}, b"", (2, 2))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not drawn, which takes most of the time of a page."""
    monkeypatch.setattr("netkin.report.style.save", fake_save)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str, Path]:
    """A comparison of four models, its page, and their folder."""
    folder, c = tmp_path_factory.mktemp("four"), compared()
    with coarse_figures():
        return c, page(folder, c), folder


def picture(c: Result, folder: Path) -> Picture:
    """The heatmap of a page, not drawn again."""
    return Picture(lambda: fake_save(job(Figure(), folder / "again")), "", c.lookup())


def data(html: str) -> dict[str, Any]:
    """What the page carries for its script."""
    return json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])


class Parsed(HTMLParser):
    """Start tags, style text and visible text of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style, self.text = "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "style":
            self.style += data
        elif inside != "script" and data.strip():
            self.text.append(data.strip())


def test_page_has_answer_files_and_all_tables(four: tuple[Result, str, Path]) -> None:
    c, html, folder = four
    text = Parsed(html).text
    said = " ".join(text)
    for paragraph in (c.title, c.question, *c.answer):
        for part in fact(paragraph):
            assert minus(part) in said
    for title in ("Look up", "Families", "Models", "Above chance"):
        assert title in text
    assert any("below 95% for model_3" in t for t in text)
    written = {path.name for path in folder.iterdir()}
    for name in ("similarity", "pairs", "models", "families", "corrected", "rest", "examples"):
        assert f"{name}.csv" in written
    for name in ("similarity", "families", "corrected", "rest", "examples"):
        assert {f"{name}.png", f"{name}.pdf"} <= written and f"{name}.svg" not in written
    assert pl.read_csv(folder / "similarity.csv").to_numpy()[:, 1:].astype(float) == pytest.approx(
        c.scores
    )


def test_page_carries_each_pair_with_the_first_listed_model_as_a(
    four: tuple[Result, str, Path],
) -> None:
    c, html, folder = four
    carried = data(html)
    columns = {column["title"]: column for column in carried["columns"]}
    for row in c.pairs.iter_rows(named=True):
        a, b = (carried["names"].index(row[k]) for k in ("a", "b"))
        assert a < b
        at = b * (b - 1) // 2 + a
        for title, key in (("s", "score"), ("A fools B", "a_fools_b"), ("n", "n")):
            assert columns[title]["values"][at] == pytest.approx(row[key], abs=1e-4)
    assert carried["columns"][columns["A fools B"]["other"]]["title"] == "B fools A"
    assert sorted(carried["order"]) == [0, 1, 2, 3]
    assert all(sorted(order) == [0, 1, 2, 3] for order in carried["orders"].values())
    shuffled = replace(c, pairs=c.pairs.sample(fraction=1, shuffle=True, seed=0))
    section = Section("", figures=[picture(shuffled, folder)])
    again = data(render("", "", [], [section], ""))["columns"]
    for column in carried["columns"]:
        assert column in again


def test_page_loads_nothing_from_a_network(four: tuple[Result, str, Path]) -> None:
    _, html, folder = four
    parsed = Parsed(html)
    loads = [v for _, attrs in parsed.tags for k, v in attrs.items() if k in ("src", "href") and v]
    assert sum(v.startswith("data:image/webp;base64,") for v in loads) == 5
    files = {v.removeprefix("./") for v in loads if v.startswith("./")}
    assert files and all((folder / name).is_file() for name in files)
    links = {v for v in loads if not v.startswith(("data:", "./", "#"))}
    here = {v.removeprefix("#") for v in loads if v.startswith("#")}
    assert here and here <= {attrs.get("id") for _, attrs in parsed.tags}
    assert links == {"https://example.org/a"}  # of a link, not of a load
    assert not re.search(r"url\(|@import", parsed.style)
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in parsed.tags)


@pytest.mark.usefixtures("undrawn")
def test_page_escapes_what_it_is_given(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    section = Section(evil, [evil], {evil: pl.DataFrame({evil: [evil]})})
    c = compared(3, [evil, "b", "c"])
    html = page(tmp_path, c, section, text=evil)
    assert evil not in html
    assert data(html)["names"][0] == evil
    assert html.count("<script") == 2
    assert Parsed(html).text.count(evil) >= 9


@pytest.mark.usefixtures("undrawn")
def test_page_of_two_models_has_one_pair_and_no_controls_of_single_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = compared(2, noise=False)
    html = page(tmp_path / "two", c)
    text = Parsed(html).text
    monkeypatch.setattr("netkin.comparison.LARGE", 1)  # a matrix of many models has no lookup
    assert ('type="application/json"' in html) > ('type="application/json"' in page(tmp_path, c))
    assert "The only pair" in text and "Least similar" not in text
    assert "model_1" in c.answer[0] and "Strong sources, brittle targets" not in text


def test_no_pair_is_both_most_and_least_similar(four: tuple[Result, str, Path]) -> None:
    c, html, _ = four
    text = Parsed(html).text
    most, least = (text.index(t) for t in ("Most similar", "Least similar"))
    end = text.index("Families", least)  # the section, not its entry of the contents
    scores = [f"{s:.3f}" for s in sorted(c.pairs["score"], reverse=True)]
    assert [t for t in text[most:least] if t in scores] == scores[:3]
    assert [t for t in text[least:end] if t in scores] == scores[:2:-1]


@pytest.mark.usefixtures("undrawn")
def test_members_that_failed_leave_gaps(tmp_path: Path) -> None:
    c = compared(4)
    pairs = c.pairs.with_columns(
        pl.when((pl.col("a") == "model_0") & (pl.col("b") == "model_1"))
        .then(None)
        .otherwise(pl.col(column))
        .alias(column)
        for column in ("score", "low", "high")
    )
    scores = c.scores.copy()
    scores[0, 1] = scores[1, 0] = np.nan
    models = c.models.with_columns(
        clean_accuracy=pl.lit(None, pl.Float64), input_size=pl.lit(None, pl.Int64)
    )
    html = page(tmp_path, replace(c, scores=scores, pairs=pairs, models=models))
    assert data(html)["columns"][0]["values"][0] is None
    assert not any(re.search(r"\b(nan|None)\b", t, re.IGNORECASE) for t in Parsed(html).text)


def test_formats_and_long_tables(tmp_path: Path) -> None:
    """Nor does the page link to a file that there is not."""
    for rows, written in ((TEX_ROWS, True), (TEX_ROWS + 1, False)):
        outputs = Outputs(tmp_path)
        table = pl.DataFrame({"n": range(rows)})
        with figure_settings(formats=["svg"]):
            picture = outputs.figure("long.name", Figure(), table, "Long")
        html = outputs.report("t", "q", [], [Section("S", figures=[picture])], "").read_text()
        assert (tmp_path / "long.name.tex").is_file() == written == ("./long.name.tex" in html)
        assert "./long.name.svg" in html and "./long.name.pdf" not in html
        assert pl.read_csv(tmp_path / "long.name.csv").equals(table)
        assert ("long.name.tex" in outputs.files) == written


def test_columns_have_units_and_styles_by_their_kind() -> None:
    table = pl.DataFrame(
        {
            "craft_seconds": [7200.0, 1.0],
            "peak_bytes": [12_000_000, 1],
            "model": ["vit_s", "m"],
            "words": ["long " * 20, "short"],
        }
    )
    html = render("t", "q", [], [Section("s", (), {"": table})], "")
    for heading, cell in (("craft", "2.0 h"), ("peak", "12.0 MB")):
        assert heading in Parsed(html).text and cell in Parsed(html).text
    assert 'data-value="12000000"' in html and "<caption>" not in html
    for style, text in (("n", "2.0 h"), ("name", "vit_s"), ("long", "short")):
        assert re.search(rf'<td class="{style}" data-value="[^"]*">{text}</td>', html), text


def test_difference_maps_eps_to_black_and_white() -> None:
    clean = np.full((1, 3, 3), 100, np.uint8)
    adversarial = clean + np.array([-8, 0, 8])[None, :, None]
    shown = difference(clean, adversarial.astype(np.uint8), 8 / 255)
    assert shown.dtype == np.uint8
    assert shown[0, :, 0].tolist() == [0, 128, 255]
    assert "8/255" in examples_note(8 / 255) and "eps" not in examples_note(None)
