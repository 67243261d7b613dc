"""Metrics as files: a CSV table, or TensorBoard's."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from netkin.errors import OutputsError, UserError
from netkin.store.files import write
from netkin.tracking.base import RunInfo, Tracker


class CSV(Tracker):
    """One long table, metrics.csv: name, step, value, and a file for each table of `add`.

    Other tables, and figures, are files already. See `Tracker`.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.file = folder / "metrics.csv"
        folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("w", newline="") as out:
            csv.writer(out).writerow(["name", "step", "value"])

    def _add(self, rows: Sequence[Sequence[Any]]) -> None:
        with self.file.open("a", newline="") as out:
            csv.writer(out).writerows(rows)

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Rows of name, step and value."""
        self._add(
            [
                [name, row[step], value]
                for row in rows
                for name, value in row.items()
                if name != step
            ]
        )

    def summary(self, values: Mapping[str, float | int | str | None]) -> None:
        """Rows of name and value, without a step."""
        super().summary(values)
        self._add([[name, "", self.numbers[name]] for name in values])

    def _late(self, name: str, table: pl.DataFrame) -> None:
        write(self.file.with_name(f"{name}.csv"), table.write_csv, OutputsError, "folder")


class TensorBoard(Tracker):
    """TensorBoard's files in the run's folder, by Lightning's logger: series, single numbers as
    metrics of the config, and figures. See `Tracker`.

    Raises UserError where TensorBoard is not installed.
    """

    def __init__(self, info: RunInfo):
        super().__init__()
        try:
            from pytorch_lightning.loggers import TensorBoardLogger

            self.logger = TensorBoardLogger(info.folder, name="", version="tensorboard")
        except ModuleNotFoundError:
            raise UserError(
                "TensorBoard is not installed; run `pip install tensorboard`, or use kind=csv"
            ) from None
        self.config = dict(info.config)

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Scalars over whole steps."""
        for row in rows:
            values = {name: value for name, value in row.items() if name != step}
            self.logger.log_metrics(values, step=int(row[step]))

    def figure(self, name: str, png: Path) -> None:
        """An image."""
        with Image.open(png) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.logger.experiment.add_image(f"figures/{name}", pixels, dataformats="HWC")

    def finish(self) -> None:
        """Write what single numbers there are, beside the config, and close the files."""
        numbers = {k: v for k, v in self.numbers.items() if isinstance(v, int | float)}
        self.logger.log_hyperparams(self.config, numbers)
        self.logger.finalize("success")
