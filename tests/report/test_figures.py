"""Figures at the width of a paper's column or page, and tables for LaTeX."""

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from netkin.analysis.statistics import trend
from netkin.errors import UserError
from netkin.report import style
from netkin.report.beside import painters, prepare
from netkin.report.beside import save as beside
from netkin.report.heatmap import colour_range, heatmap_figure, inks
from netkin.report.plots import Line, lines_figure, scatter_figure
from netkin.report.style import BASES, COLOURS, Saved, base_colours, figure_settings
from netkin.report.text import latex


def random_scores(n: int, seed: int = 0) -> np.ndarray:
    s = np.random.default_rng(seed).uniform(1.5, 4.0, (n, n))
    s = (s + s.T) / 2
    np.fill_diagonal(s, np.log(100.0))
    return s


def written(figure: Figure, kind: type = Text) -> list:
    """What is drawn of a kind, without empty texts."""
    found = [a for a in figure.findobj(kind) if a.get_visible()]
    return [a for a in found if not isinstance(a, Text) or a.get_text()]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "width"), [(2, 6.75), (13, 3.25), (69, 3.25), (69, 6.75)])
def test_figures_have_the_width_and_text_of_7_to_9_points(
    tmp_path: Path, n: int, width: float
) -> None:
    x = np.arange(8.0)
    names = [f"vit_base_patch16_{i}" for i in range(n)]
    with figure_settings(width):
        figures = [
            heatmap_figure(random_scores(n), names, [list(BASES)[i % 7] for i in range(n)]),
            scatter_figure(x, np.sin(x), "x", "y", names[:8] if n > 8 else None),
            lines_figure([(y, [Line("a", x, x, x, x)]) for y in "uvw"], "x"),
        ]
        for i, figure in enumerate(figures):
            png = save(figure, tmp_path / f"{i}").paths[0]
            with Image.open(png) as image:
                assert image.width == pytest.approx(300 * width, abs=12)
            assert all(7 <= text.get_fontsize() <= 9 for text in written(figure))
    few = n == 69 and width < 5
    for axis in (figures[0].axes[0].xaxis, figures[0].axes[0].yaxis):
        labels = [label for label in axis.get_ticklabels() if label.get_text()]
        numbered = n == 69 and axis is figures[0].axes[0].xaxis
        assert len(labels) == (0 if few or numbered else n)
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert few == any("need more width" in text.get_text() for text in written(figures[0]))


def save(figure: Figure, stem: Path) -> Saved:
    return style.save(style.job(figure, stem))


@pytest.mark.slow
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    s, names = random_scores(13), [f"net_{i}" for i in range(13)]
    s[0, 1] = s[1, 0] = np.nan
    groups = ["CNN", "ViT"] + ["CNN"] * 11
    with figure_settings(formats=["svg", "pdf"]):
        first = save(heatmap_figure(s, names, groups), tmp_path / "digits.v1").paths
        again = save(heatmap_figure(s, names, groups), tmp_path / "again").paths
    assert [path.name for path in first] == [f"digits.v1.{s}" for s in ("png", "pdf", "svg")]
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in first]
    assert b"/CIDFontType2" in first[1].read_bytes() and b"/Type3" not in first[1].read_bytes()


def test_another_process_draws_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it cannot start, and where a figure cannot be sent to it."""
    x, names = np.arange(4.0), list("abcd")

    def drawn(folder: str) -> list[Saved]:
        (tmp_path / folder).mkdir()
        figures = [heatmap_figure(random_scores(4), names, names), scatter_figure(x, x, "", "")]
        figures.append(scatter_figure(x, x**2, "x", "y", names))
        figures[1].axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:.1f}")
        waiting = [beside(f, tmp_path / folder / f"{i}")[1] for i, f in enumerate(figures)]
        return [wait() for wait in waiting]

    def contents(saved: list[Saved]) -> list[Any]:
        files = [path.read_bytes() for each in saved for path in each.paths]
        return [files, [each[1:] for each in saved]]

    here = drawn("here")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with painters():
        prepare()
        there = drawn("there")
    with monkeypatch.context() as patch, painters():
        patch.setattr("sys.executable", "/bin/false")
        dead = drawn("dead")
    assert contents(here) == contents(there) == contents(dead)


def test_a_figure_that_cannot_be_written_is_an_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = scatter_figure([0, 1], [0, 1], "x", "y")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with painters(), pytest.raises(FileNotFoundError, match="gone"):
        beside(figure, tmp_path / "gone" / "a")[1]()


def test_heatmap_marks_holes_and_writes_the_other_cells() -> None:
    s = random_scores(4)
    s[0, 1] = s[1, 0] = np.nan
    cells = heatmap_figure(s, list("abcd"), ["f"] * 4).axes[0]
    assert [p.get_hatch() for p in cells.patches] == ["////"] * 2
    texts = sorted(t.get_text() for t in cells.texts)
    assert texts == sorted(f"{v:.2f}" for v in s.flat if not np.isnan(v))


def test_colours_span_the_scores_of_different_models() -> None:
    s = random_scores(8)
    pairs = s[~np.eye(8, dtype=bool)]
    assert colour_range(s) == (pairs.min(), pairs.max())
    many = random_scores(40)
    many[1, 0] = many[0, 1] = 9.0  # one pair must not take the colours of the others
    low, high = colour_range(many)
    assert 1.5 < low < high < 4
    assert colour_range(many - 3, signed=True)[0] == -colour_range(many - 3, signed=True)[1]
    s[0, 1] = s[1, 0] = np.log(0.01)  # never fooled: must not take the range of the others
    low, high = colour_range(s)
    assert low >= 1.5 and high == pairs.max()
    low, high = colour_range(random_scores(2))
    assert low < high


def test_ink_is_dark_on_light_and_light_on_dark() -> None:
    colours = ScalarMappable(Normalize(1, 2), COLOURS)
    assert inks(np.array([1.0, 2.0, 9.0]), colours) == ["white", "black", "black"]


def test_clusters_are_contiguous_and_framed() -> None:
    labels = np.array([1, 0, 1, 0, 1])
    figure = heatmap_figure(random_scores(5), list("abcde"), ["f"] * 5, clusters=labels)
    cells, _, beside = figure.axes
    assert [t.get_text() for t in cells.get_yticklabels()][:2] in (["b", "d"], ["d", "b"])
    assert [t.get_text() for t in beside.texts] == ["1", "2"]
    assert sorted(cast(Any, p).get_width() for p in cells.patches) == [2, 2, 3, 3]


def test_saved_axes_lie_where_they_are_drawn(tmp_path: Path) -> None:
    """A page finds the cells in the picture by them."""
    figure = heatmap_figure(np.eye(2) + 1, ["a", "b"], ["f", "f"], order=np.arange(2))
    saved = save(figure, tmp_path / "h")
    left, top, right, bottom = saved.axes["cells"]
    with Image.open(saved.paths[0]) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    height, width, _ = pixels.shape
    x, y = int(left * width), int(top * height)
    cell = int((right - left) * width / 2), int((bottom - top) * height / 2)
    inside = [
        tuple(pixels[y + dy * cell[1] + 12, x + dx * cell[0] + 12]) for dy, dx in np.ndindex(2, 2)
    ]
    assert inside[0] == inside[3] != inside[1] == inside[2]
    assert (pixels[y + 20, x - 4] > 250).all() and (pixels[y - 4, x + 20] > 250).all()


def test_bases_have_one_colour_everywhere_and_many_groups_have_some() -> None:
    assert base_colours(["Hybrid", "CNN"]) == {k: BASES[k] for k in ("CNN", "Hybrid")}
    many = base_colours(["CNN", *map(str, range(40))])
    assert len(many) == 41 and list(many.values()).count(BASES["CNN"]) == 1


@pytest.mark.slow
def test_dollars_in_names_are_text(tmp_path: Path) -> None:
    names = ["$x^{$", "a$b$"]  # the first is an error as mathematics
    assert save(heatmap_figure(random_scores(2), names, names), tmp_path / "h")


@pytest.mark.slow
@pytest.mark.parametrize("width", [3.25, 6.75])
def test_no_name_is_left_out_or_struck_through(tmp_path: Path, width: float) -> None:
    x = np.random.default_rng(0).uniform(1, 4, 15)
    y = 60 + 4 * x + np.random.default_rng(1).normal(0, 1, 15)
    names = [f"deit_small_{i}" for i in range(15)]
    with figure_settings(width):
        figure = scatter_figure(x, y, "s", "accuracy", names, trend=trend(x, y))
        save(figure, tmp_path / "s")
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in names]
    assert len(boxes) == 15
    overlaps = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    (line,) = [drawn for drawn in ax.lines if isinstance(drawn, Line2D)]
    path = ax.transData.transform(np.column_stack(line.get_data()))
    dense = np.column_stack([np.interp(np.linspace(0, 1, 2000), np.linspace(0, 1, len(path)), c)
                             for c in path.T])  # fmt: skip
    struck = [box for box in boxes if any(box.contains(*point) for point in dense)]
    assert (overlaps, len(struck)) == (0, 0)
    for box in boxes:
        assert ax.bbox.padded(3).contains(*box.min) and ax.bbox.padded(3).contains(*box.max)


@pytest.mark.parametrize(
    "settings",
    [{"width": 0}, {"width": True}, {"formats": []}, {"formats": ["gif"]}],
)
def test_settings_that_no_figure_has_are_refused(settings: dict) -> None:
    with (
        pytest.raises(UserError, match=f"^{next(iter(settings))} must be"),
        figure_settings(**settings),
    ):
        pass


def test_latex_escapes_names_and_aligns_numbers() -> None:
    table = pl.DataFrame({"model_a": ["vit_s & 50%", "x"], "r": [-0.5, None], "n": [3, 4]})
    lines = latex(table).splitlines()
    assert lines[1:6] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"model a & r & n \\",
        r"\midrule",
        r"vit\_s \& 50\% & $-$0.500 & 3 \\",
    ]
    assert lines[6:] == [r"x & -- & 4 \\", r"\bottomrule", r"\end{tabular}"]
