"""Pages in a real browser: they run without a network and without errors, and print whole."""

import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from netkin.report.study import Section
from tests.report import test_report as made

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
READY = """<script>
addEventListener("error", (event) => console.error("uncaught", event.message));
addEventListener("load", () => {{ {steps} }});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 12 models, with a table that is wider than any paper."""
    wide = pl.DataFrame({"model": ["a"], **{f"column_{i}": [float(i)] for i in range(24)}})
    folder = tmp_path_factory.mktemp("page")
    return made.page(folder, made.compared(12), Section("Wide", tables={"": wide}))


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
def test_page_finds_the_neighbours_of_a_model_and_reorders(tmp_path: Path, page: str) -> None:
    steps = """
      const [search, order] = ["input[type=search]", ".order"].map(
        (selector) => document.querySelector(selector));
      search.value = "model_3"; search.dispatchEvent(new Event("input"));
      order.value = "name"; order.dispatchEvent(new Event("change"));
      const plot = document.querySelector(".matrix .plot");
      const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", {key}));
      ["ArrowDown", "ArrowRight"].forEach(press);
    """
    dom = browse(tmp_path, page, "--dump-dom", steps=steps)
    rows = dom.split('<table class="pairs"')[1].split("<tbody>")[1].split("</tbody>")[0]
    first = re.findall(r"<tr>.*?>(model_\d+)<", rows)
    assert first == ["model_3"] * 11 and "11 of 11 neighbours of model_3" in dom
    scores = [float(s) for s in re.findall(r'<td class="n">(\d\.\d\d)</td>', rows)]
    assert len(scores) == 11 and scores == sorted(scores, reverse=True)
    assert "model_0 and model_1" in dom.split('class="tip"')[1][:200]
    assert "<canvas" in dom


@pytest.mark.slow
@needs_browser
def test_print_loses_nothing(tmp_path: Path, page: str) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext is installed")
    pdf = tmp_path / "page.pdf"
    browse(tmp_path, page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    done = subprocess.run(["pdftotext", "-bbox", pdf, "-"], capture_output=True, text=True)
    width = float(re.findall(r'<page width="([\d.]+)"', done.stdout)[0])
    words = re.findall(r'xMin="([-\d.]+)" .*xMax="([\d.]+)".*>(.*)</word>', done.stdout)
    assert all(float(left) >= 0 and float(right) <= width for left, right, _ in words)
    found = {word for *_, word in words}
    assert {f"model_{i}" for i in range(12)} | {"23.000"} <= found  # the last column


@pytest.mark.slow
def test_pages_are_small(page: str) -> None:
    assert len(page) < 400_000
