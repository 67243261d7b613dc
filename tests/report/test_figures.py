"""Figures at the width of a paper's column or page, and tables for LaTeX."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from netkin.analysis.statistics import trend
from netkin.errors import UserError
from netkin.report.figures import heatmap_figure
from netkin.report.latex import latex
from netkin.report.lines import Line, lines_figure
from netkin.report.scatter import scatter_figure
from netkin.report.style import BASES, base_colours, figure_width, save
from tests.report.test_report import random_scores


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
    with figure_width(width):
        figures = [
            heatmap_figure(random_scores(n), names, [list(BASES)[i % 7] for i in range(n)]),
            scatter_figure(x, np.sin(x), "x", "y", names[:8] if n > 8 else None),
            lines_figure([(y, [Line("a", x, x, x, x)]) for y in "uvw"], "x"),
        ]
        for i, figure in enumerate(figures):
            png, *_ = save(figure, tmp_path / f"{i}")
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


@pytest.mark.slow
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    s, names = random_scores(13), [f"net_{i}" for i in range(13)]
    s[0, 1] = s[1, 0] = np.nan
    first = save(heatmap_figure(s, names, ["CNN", "ViT"] + ["CNN"] * 11), tmp_path / "digits.v1")
    assert [path.name for path in first] == [f"digits.v1.{s}" for s in ("png", "pdf", "svg")]
    again = save(heatmap_figure(s, names, ["CNN", "ViT"] + ["CNN"] * 11), tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in first]
    assert b"/CIDFontType2" in first[1].read_bytes() and b"/Type3" not in first[1].read_bytes()


def test_heatmap_marks_holes_and_writes_the_other_cells() -> None:
    s = random_scores(4)
    s[0, 1] = s[1, 0] = np.nan
    cells = heatmap_figure(s, list("abcd"), ["f"] * 4).axes[0]
    assert [p.get_hatch() for p in cells.patches] == ["////"] * 2
    texts = sorted(t.get_text() for t in cells.texts)
    assert texts == sorted(f"{v:.2f}" for v in s.flat if not np.isnan(v))


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
    with figure_width(width):
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


@pytest.mark.parametrize("width", [0, "wide", True, 31])
def test_a_width_that_no_figure_has_is_refused(width: object) -> None:
    with pytest.raises(UserError, match=r"^width must be null or inches"), figure_width(width):  # type: ignore[arg-type]
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
