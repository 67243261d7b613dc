"""Shared by all figures: sizes, colours that are safe for colour blindness, and saving."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#222222"
NO_SCORE = "#d9d9d9"
# Perceptually uniform, and readable with any colour blindness and in grey. Values outside the range
# are lighter or darker than its ends, so that they are not mistaken for them.
COLOURS = mpl.colormaps["viridis"].with_extremes(under="#1e0027", over="#fdf7b8")
DIVERGING = mpl.colormaps["RdBu_r"].with_extremes(under="#021326", over="#2e000c")
"""For signed quantities, with 0 in the middle."""
PALETTE = (  # Okabe and Ito's first, then Tol's "muted"
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"),
    *("#f0e442", "#332288", "#999933", "#882255", "#999999", "#000000"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
"""One for each colour, so that groups can be told apart in grey, too."""
BASES = {
    "CNN": PALETTE[0],
    "Transformer": PALETTE[1],
    "Hybrid": PALETTE[2],
    "MLP-Mixer": PALETTE[3],
    "NAS (CNN)": PALETTE[5],
    "NAS (TFM)": PALETTE[4],
    "RNN": PALETTE[6],
}
"""The colour of a base architecture, the same in every figure."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a name is text, not mathematics, even with a $ in it
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
}
_GLOBAL = RLock()


def base_colours(bases: Sequence[str]) -> dict[str, str]:
    """A colour for each base architecture or other group, the most frequent first; grey for those
    that the palette has none left for."""
    kinds = sorted(set(bases), key=lambda base: (-list(bases).count(base), base))
    free = iter([c for c in PALETTE if c not in {BASES.get(kind) for kind in kinds}])
    return {kind: BASES.get(kind) or next(free, "#bbbbbb") for kind in kinds}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib in the style of the figures, as a context manager or a decorator."""
    with _GLOBAL, mpl.rc_context(STYLE):
        yield


def panels(
    columns: int = 1, width: float = 3.4, height: float = 2.8, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of axes in rows, each `width` by `height` inches, row by row. Draw in `style()`.

    Unlike pyplot's figures it has no window and is in no global list: safe in any thread.
    """
    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png (300 dpi) and stem.pdf; the same figure gives the same bytes.

    A dot in the stem is kept. Fonts are TrueType in the PDF, as journals require.
    """
    png, pdf = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    box: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.05}
    # TrueType can only be chosen through matplotlib's global settings.
    with _GLOBAL, mpl.rc_context({"pdf.fonttype": 42}):
        figure.savefig(png, dpi=300, **box)
        figure.savefig(pdf, metadata={"CreationDate": None}, dpi=300, **box)
    return [png, pdf]
