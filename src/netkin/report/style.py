"""Shared by all figures: sizes, colours that are safe for colour blindness, and saving."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from netkin.errors import UserError

INK = "#222222"
SMALL = 7.0
"""Points: the smallest text in a figure, such as names."""
OTHER = "#bbbbbb"
"""Of groups for which the palette has no colour left."""
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
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
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
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "netkin",  # the same figure gives the same bytes
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
NARROW, FULL, WIDEST = 2.5, 6.75, 30.0
"""Inches: the least width of a figure, that of a page, and the largest."""
PANEL = 1.9
"""Inches that a panel with labels takes at least."""
PAD = 0.04
FORMATS = ("png", "pdf", "svg")
DPI = 300
SHARP = 200
"""Dots an inch of figures within a page, which shows 120 pixels an inch."""
_GLOBAL = RLock()
_BEFORE: WeakKeyDictionary[Figure, list[Callable[[], object]]] = WeakKeyDictionary()
_SETTINGS: ContextVar[tuple[float | None, tuple[str, ...]]] = ContextVar(
    "settings", default=(None, ("png", "pdf"))
)


def base_colours(bases: Sequence[str]) -> dict[str, str]:
    """A colour for each base architecture or other group, the most frequent first; grey for those
    that the palette has none left for."""
    kinds = sorted(set(bases), key=lambda base: (-list(bases).count(base), base))
    free = iter([c for c in PALETTE if c not in {BASES.get(kind) for kind in kinds}])
    return {kind: BASES.get(kind) or next(free, OTHER) for kind in kinds}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib in the style of the figures, as a context manager or a decorator."""
    with _GLOBAL, mpl.rc_context(STYLE):
        yield


@contextmanager
def figure_settings(
    width: float | None = None, formats: Sequence[str] = ("png", "pdf")
) -> Iterator[None]:
    """Draw and save figures in this block at a width and in some formats.

    Raises UserError for a width or a format that figures do not have.

    Args:
        width: in inches; None leaves each figure its own, up to `FULL`. Text has 7 to 9 pt at any
            width.
        formats: of `FORMATS`; a PNG is always written, for the page.
    """
    if width is not None and not NARROW <= width <= WIDEST:
        raise UserError(
            f"width must be null or inches from {NARROW} to {WIDEST}, such as 3.25 or 6.75 for a "
            f"column or a page, got {width!r}"
        )
    if not formats or set(formats) - set(FORMATS):
        raise UserError(f"formats must be a list of {', '.join(FORMATS)}, got {formats!r}")
    token = _SETTINGS.set((width, tuple(f for f in FORMATS if f == "png" or f in formats)))
    try:
        yield
    finally:
        _SETTINGS.reset(token)


def width_of(natural: float) -> float:
    """The width of a figure in inches: as set by `figure_settings`, or its own, up to `FULL`."""
    return _SETTINGS.get()[0] or min(natural, FULL)


def panels(
    columns: int = 1, width: float = 3.4, height: float = 2.8, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of axes in rows, each about `width` by `height` inches, row by row.

    At a given width (see `figure_settings`) the panels are narrower or wider, and there are fewer
    in a row where they would be too narrow. Draw in `style()`. Unlike pyplot's figures it has no
    window and is in no global list: safe in any thread.
    """
    total, count = width_of(width * columns), columns * rows
    across = max(1, min(columns, int(total / PANEL)))
    rows = -(-count // across)
    # Panels that are stacked, so that they fit a column, are lower.
    scale = 0.75 if across < columns else float(np.clip(total / across / width, 0.85, 1.15))
    tall = height * scale
    figure = Figure(figsize=(total, tall * rows))
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, across, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[Any]) -> None:
    """A legend above all axes, in as many columns as the figure has room for."""
    longest = max(map(len, labels), default=1) * 0.055 + 0.4  # inches, about
    columns = max(1, min(len(labels), int(figure.get_figwidth() / longest)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handletextpad=0.4)


def before_saving(figure: Figure, function: Callable[[], object]) -> None:
    """Call a function, which pickle must know, when the figure is saved and its layout final."""
    _BEFORE.setdefault(figure, []).append(function)


class Saved(NamedTuple):
    """A figure's files, the PNG first, and its picture on a page.

    Attributes:
        paths: of the files.
        axes: the left, top, right and bottom edge of axes by their label, as shares of the
            picture's width and height; with `+names`, those of the axes with what is written
            around them.
        webp: the picture, of `SHARP` dots an inch.
        size: its width and height on a page, in CSS pixels, 120 an inch.
    """

    paths: list[Path]
    axes: dict[str, tuple[float, ...]]
    webp: bytes
    size: tuple[int, int]


class Job(NamedTuple):
    """A figure to be saved, here or by another process: what `save` needs to know."""

    figure: Figure
    before: list[Callable[[], object]]
    paths: list[Path]
    width: float | None


def job(figure: Figure, stem: Path) -> Job:
    """The figure as stem.png and the other formats of `figure_settings`. A dot in the stem is
    kept."""
    width, formats = _SETTINGS.get()
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    return Job(figure, _BEFORE.pop(figure, []), paths, width)


def save(job: Job) -> Saved:
    """Write the files of a figure; the same figure gives the same bytes.

    They are as wide as the figure and as high as what is drawn; wider only where something is
    drawn beyond its sides. Fonts are TrueType in the PDF, as journals require.
    """
    figure = job.figure
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    # TrueType, the ids of an SVG, and images that stay images of their own can only be chosen
    # through matplotlib's global settings.
    chosen: Any = {"pdf.fonttype": 42, "image.composite_image": False}
    with _GLOBAL, mpl.rc_context(chosen | {"svg.hashsalt": STYLE["svg.hashsalt"]}):
        figure.set_dpi(DPI)  # the size of text depends on it a little, and so does the layout
        figure.draw_without_rendering()
        # "none" would leave a placeholder, for which each format is drawn twice.
        setattr(figure, "_layout_engine", None)  # noqa: B010
        for function in job.before:
            function()
        drawn, width = figure.get_tightbbox(), figure.get_figwidth()
        edges = (min(0.0, drawn.x0), max(width, drawn.x1))
        if job.width is None:
            edges = (drawn.x0 - PAD, drawn.x1 + PAD)
        box = Bbox([[edges[0], drawn.y0 - PAD], [edges[1], drawn.y1 + PAD]])
        for path in job.paths:
            about = undated.get(path.suffix[1:])
            figure.savefig(path, dpi=DPI, metadata=about, bbox_inches=box)

        def edges_of(extent: Bbox) -> tuple[float, ...]:
            x0, y0, x1, y1 = extent.transformed(figure.dpi_scale_trans.inverted()).extents
            corners = (x0 - box.x0, box.y1 - y1, x1 - box.x0, box.y1 - y0)
            return tuple(np.round(np.divide(corners, (*box.size, *box.size)), 5).tolist())

        axes = {}
        for ax in figure.axes:
            if label := ax.get_label():
                axes[str(label)] = edges_of(ax.get_window_extent())
                axes[f"{label}+names"] = edges_of(ax.get_tightbbox() or ax.bbox)
    return Saved(job.paths, axes, *_picture(job.paths[0]))


def png(figure: Figure) -> bytes:
    """The figure as a PNG for a notebook."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    return out.getvalue()


def _picture(file: Path) -> tuple[bytes, tuple[int, int]]:
    """`webp` and `size` of `Saved`."""
    with Image.open(file) as image:
        # The page needs no 300 dpi, and figures have few colours: a third of the bytes.
        width, height = (round(pixels * SHARP / DPI) for pixels in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    # Maximum coverage keeps colours that few pixels have, such as those of a legend. Of
    # photographs it takes 4 s with all 8 bits a channel: they have 450,000 colours.
    bits = 6 if small.resize((256, 256), Image.Resampling.NEAREST).getcolors(1 << 12) else 5
    steps = [value >> 8 - bits << 8 - bits | value >> bits for value in range(256)]
    coarse, out = small.point(steps * 3), io.BytesIO()
    few = coarse.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(out, format="WEBP", lossless=True, method=2)  # two thirds of a PNG
    shown = round(image.width * 120 / DPI)  # 9 pt text reads as 15 pixels
    return out.getvalue(), (shown, round(shown * height / width))
