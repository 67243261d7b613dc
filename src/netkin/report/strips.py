"""Some images under several attacks, side by side: what each does to an image, at a glance."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from netkin.report.figures import _INK, _SAVING
from netkin.store import write

WRONG = "#d55e00"  # Okabe and Ito's vermilion


def attack_strips(images: Tensor, attacks: Sequence[str], said: pl.DataFrame, stem: Path) -> Path:
    """Write stem.png, stem.pdf and stem.csv; returns the first.

    Args:
        images: [A, I, 3, H, W] uint8: I images under each of A attacks.
        attacks: their A names.
        said: attack, image, label, prediction, and whatever else the table is to keep; the A * I
            rows go attack by attack. A prediction other than the label is shown in red.
        stem: path without a suffix.
    """
    columns, rows = images.shape[:2]
    if len(attacks) != columns or said.height != columns * rows:
        raise ValueError(f"{len(attacks)} attacks, {said.height} rows and images {images.shape}")
    cell = 0.95  # inches
    figure = Figure(figsize=(columns * cell, rows * (cell + 0.15) + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)  # type: ignore[union-attr]
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, row in enumerate(said.to_dicts()):
        column, line = divmod(i, rows)
        ax = grid[line][column]
        ax.imshow(images[column, line].permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
        if line == 0:
            ax.set_title(attacks[column], fontsize=8, color=_INK, pad=3, parse_math=False)
        right = row["prediction"] == row["label"]
        colour = _INK if right else WRONG
        ax.set_xlabel(f"{row['prediction']}", fontsize=8, color=colour, labelpad=1)
    png = stem.with_name(stem.name + ".png")
    with _SAVING, mpl.rc_context({"pdf.fonttype": 42}):
        box = {"bbox_inches": "tight", "pad_inches": 0.03}
        figure.savefig(png, dpi=300, **box)
        figure.savefig(stem.with_name(stem.name + ".pdf"), metadata={"CreationDate": None}, **box)
    write(stem.with_name(stem.name + ".csv"), said.write_csv)
    return png
