"""Some images under several attacks, side by side."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from netkin.errors import OutputsError
from netkin.report.style import INK, SMALL, save, style, width_of
from netkin.store.files import write

WRONG = "#d55e00"  # Okabe and Ito's vermilion
CELL = 0.95  # inches, at most


def attack_strips(
    images: Tensor, attacks: Sequence[str], predictions: pl.DataFrame, stem: Path
) -> Path:
    """Write stem.png, stem.pdf, stem.svg and stem.csv; returns the first.

    Args:
        images: [A, I, 3, H, W] uint8: I images under each of A attacks.
        attacks: their A names.
        predictions: attack, image, label, prediction, and any other columns of the table; A * I
            rows, attack by attack. A prediction other than the label is written in red.
        stem: path without a suffix.
    """
    columns, rows = images.shape[:2]
    if len(attacks) != columns or predictions.height != columns * rows:
        raise ValueError(
            f"{len(attacks)} attacks, {predictions.height} rows and images {images.shape}"
        )
    png, *_ = save(_figure(images, attacks, predictions), stem)
    write(stem.with_name(stem.name + ".csv"), predictions.write_csv, OutputsError, "folder")
    return png


@style()
def _figure(images: Tensor, attacks: Sequence[str], predictions: pl.DataFrame) -> Figure:
    columns, rows = images.shape[:2]
    width = width_of(columns * CELL)
    figure = Figure(figsize=(width, rows * (width / columns + 0.15) + 0.2))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, row in enumerate(predictions.to_dicts()):
        column, line = divmod(i, rows)
        ax = grid[line][column]
        ax.imshow(images[column, line].permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
        if line == 0:
            ax.set_title(attacks[column], fontsize=SMALL, weight="normal", loc="center", pad=3)
        colour = INK if row["prediction"] == row["label"] else WRONG
        ax.set_xlabel(f"{row['prediction']}", fontsize=SMALL, color=colour, labelpad=1)
    return figure
