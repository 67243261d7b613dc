"""Pages in a real browser: they run without a network and without errors, and print whole."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from netkin.report.matrix import heatmap_section, matrix_sections
from netkin.report.study import Section, render
from tests.report.test_report import make_relations

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
READY = """<script>
addEventListener("error", (event) => console.error("uncaught", event.message));
addEventListener("load", () => {{ {steps} }});
</script>"""


@functools.cache
def page(models: int) -> str:
    """The page of some models, with a table that is wider than any paper."""
    wide = pl.DataFrame({"model": ["a"], **{f"column_{i}": [float(i)] for i in range(24)}})
    sections = [*matrix_sections(make_relations(models)), Section("Wide", tables={"": wide})]
    return render("t", "q", [], sections, "")


def browse(folder: Path, html: str, *options: str, steps: str = "") -> str:
    """Open a page from disk in a browser without a network; returns its DOM, or its errors."""
    assert CHROMIUM is not None
    file = folder / "page.html"
    file.write_text(
        html.replace("<title>", READY.format(steps=steps) + "<title>"), encoding="utf-8"
    )
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
        *("--virtual-time-budget=2000", "--window-size=1400,900", *options, file.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    return done.stdout


@pytest.mark.slow
@needs_browser
def test_page_finds_the_neighbours_of_a_model_and_reorders(tmp_path: Path) -> None:
    steps = """
      const [search, order] = ["input[type=search]", ".order"].map(
        (selector) => document.querySelector(selector));
      search.value = "model_3"; search.dispatchEvent(new Event("input"));
      order.value = "name"; order.dispatchEvent(new Event("change"));
      const svg = document.querySelector("svg.heatmap");
      const press = (key) => svg.dispatchEvent(new KeyboardEvent("keydown", {key}));
      ["ArrowDown", "ArrowRight"].forEach(press);
    """
    dom = browse(tmp_path, page(12), "--dump-dom", steps=steps)
    rows = dom.split('<table class="pairs"')[1].split("<tbody>")[1].split("</tbody>")[0]
    first = re.findall(r"<tr>.*?>(model_\d+)<", rows)
    assert first == ["model_3"] * 11 and "11 of 11 neighbours of model_3" in dom
    scores = [float(s) for s in re.findall(r'<td class="n">(\d\.\d\d)</td>', rows)]
    assert scores == sorted(scores, reverse=True)
    assert "model_0 and model_1" in dom.split('class="tip"')[1][:200]


@pytest.mark.slow
@needs_browser
def test_print_loses_nothing(tmp_path: Path) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext is installed")
    pdf = tmp_path / "page.pdf"
    browse(tmp_path, page(12), f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    done = subprocess.run(["pdftotext", "-bbox", pdf, "-"], capture_output=True, text=True)
    width = float(re.findall(r'<page width="([\d.]+)"', done.stdout)[0])
    words = re.findall(r'xMin="([-\d.]+)" .*xMax="([\d.]+)".*>(.*)</word>', done.stdout)
    assert all(float(left) >= 0 and float(right) <= width for left, right, _ in words)
    found = [word for *_, word in words]
    for name in [f"model_{i}" for i in range(12)]:
        assert found.count(name) >= 3  # of a row, a column and the table of models
    assert {"23.000", "s", "ln(100"} <= set(found)  # the last column, the colour bar


@pytest.mark.slow
@needs_browser
def test_page_of_many_models_opens(tmp_path: Path) -> None:
    assert "<image" in browse(tmp_path, page(160), "--dump-dom")


def test_pages_are_small() -> None:
    assert len(page(12)) < 200_000
    assert len(page(69)) < 1_000_000
    assert len(page(160)) < 500_000


def test_many_models_are_a_picture_and_their_pairs_a_file() -> None:
    html = page(160)
    assert html.count("data:image/png") == 1 and 'type="application/json"' not in html
    assert '12,720 pairs, are too many for a page: <a class="name" href="./pairs.csv">' in html


def test_page_may_have_two_heatmaps() -> None:
    relations = make_relations(5)
    sections = [heatmap_section(relations, title=t, signed=t == "B") for t in ("A", "B")]
    ids = re.findall(r' id="([^"]+)"', render("t", "q", [], sections, ""))
    assert len(ids) == len(set(ids)) == 2
