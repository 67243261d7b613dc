"""Metrics, tables and figures of a run: to W&B, to TensorBoard, to a CSV file, or nowhere.

What is logged mirrors what the run writes to disk; nothing is ever read back from here.
"""

import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from netkin.errors import OutputsError, Stopped, UserError
from netkin.store.files import write, write_json
from netkin.store.lease import me

Value = float | int | str | None


@dataclass(frozen=True)
class RunInfo:
    """A run, as a dashboard over many runs sorts it.

    Attributes:
        folder: of the run's own outputs.
        config: its resolved config.
        group, job_type, name, tags: as W&B has them.
        note: the file in the store that names the earlier run which a run continues; None for a run
            that cannot be continued.
    """

    folder: Path
    config: Mapping[str, Any]
    group: str
    job_type: str
    name: str
    tags: tuple[str, ...]
    note: Path | None = None


class Tracker:
    """Logs what a study computes. What a kind of tracker does not log, it ignores.

    Single numbers go to the run's summary, which is a row in the table of runs; only what has a
    course over time is a series, which dashboards draw as a chart. What there is once a member goes
    into a table.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, Value] = {}
        self._rows: dict[str, list[Mapping[str, Any]]] = {}

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Points of series by name, over the one that is called `step`."""

    def summary(self, values: Mapping[str, Value]) -> None:
        """Single values of the run, by name."""
        self.numbers |= {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in values.items()
        }

    def add(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of a table that is logged when the run ends."""
        self._rows.setdefault(name, []).extend(rows)

    def flush(self) -> None:
        """Log the tables of `add`."""
        while self._rows:
            name = next(iter(self._rows))
            self._late(name, pl.DataFrame(self._rows.pop(name), infer_schema_length=None))

    def _late(self, name: str, table: pl.DataFrame) -> None:
        """A table of `add`, which the run has not written itself."""
        self.table(name, table)

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A table."""

    def figure(self, name: str, png: Path) -> None:
        """A figure or another image, from its PNG file."""

    def page(self, html: Path) -> None:
        """The run's page."""

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Files to keep as they are, under a name and a type."""

    def finish(self, exit_code: int) -> None:
        """End the run: 0 where it has succeeded."""


class CSV(Tracker):
    """One long table, metrics.csv: name, step, value, and a file for each table of `add`.

    Other tables, and figures, are files already.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.file = folder / "metrics.csv"
        folder.mkdir(parents=True, exist_ok=True)
        self.file.write_text("name,step,value\n")

    def _add(self, rows: Sequence[Sequence[Any]]) -> None:
        with self.file.open("a", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows(rows)

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Rows of name, step and value."""
        self._add([[k, row[step], value] for row in rows for k, value in row.items() if k != step])

    def summary(self, values: Mapping[str, Value]) -> None:
        """Rows of name and value, without a step."""
        super().summary(values)
        self._add([[name, "", self.numbers[name]] for name in values])

    def _late(self, name: str, table: pl.DataFrame) -> None:
        write(self.file.with_name(f"{name}.csv"), table.write_csv, OutputsError, "folder")


class TensorBoard(Tracker):
    """TensorBoard's files in the run's folder, by Lightning's logger: series, single numbers as
    metrics of the config, and figures.

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
        import numpy as np
        from PIL import Image

        with Image.open(png) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.logger.experiment.add_image(f"figures/{name}", pixels, dataformats="HWC")

    def finish(self, exit_code: int) -> None:
        """Write what single numbers there are, beside the config, and close the files."""
        numbers = {k: v for k, v in self.numbers.items() if isinstance(v, int | float)}
        self.logger.log_hyperparams(self.config, numbers)
        self.logger.finalize("failed" if exit_code else "success")


@contextmanager
def track(logger: Mapping[str, Any], info: RunInfo) -> Iterator[Tracker]:
    """A tracker for the block; a W&B run ends as failed where the block raises.

    It writes summary.json into the run's folder: name, group, job_type, state (running, and in the
    end finished, failed or stopped), began (ISO 8601, UTC), seconds, the process (see
    `netkin.store.lease.Holder`), and `numbers`, the values of `Tracker.summary`.

    Args:
        logger: `kind` ("wandb", "tensorboard", "csv" or "none"), and for W&B `mode`, `project`,
            `entity`, `group` and `tags`.
        info: the run.

    Raises UserError for an unknown kind or mode, and where W&B does not start.
    """
    began, clock, tracker = datetime.now(UTC), time.perf_counter(), _tracker(logger, info)

    def write_summary(state: str) -> None:
        content = {
            **{"name": info.name, "group": info.group, "job_type": info.job_type},
            **{"state": state, "began": began.isoformat(timespec="seconds")},
            "seconds": round(time.perf_counter() - clock, 1),
            "numbers": tracker.numbers,
            "holder": asdict(me()),
        }
        with suppress(UserError, OSError):  # a full folder: the run says so, or has ended
            write_json(info.folder / "summary.json", content)

    state = "failed"
    try:
        write_summary("running")
        yield tracker
        tracker.flush()
        state = "finished"
    except Stopped:
        state = "stopped"
        raise
    finally:
        try:
            if state != "finished":
                with suppress(UserError):  # the run ends for another reason
                    tracker.flush()
            write_summary(state)
        finally:
            tracker.finish(int(state != "finished"))


def _tracker(logger: Mapping[str, Any], info: RunInfo) -> Tracker:
    kind = logger["kind"]
    if kind == "none":
        return Tracker()
    if kind == "csv":
        return CSV(info.folder)
    if kind == "tensorboard":
        return TensorBoard(info)
    if kind == "wandb":
        from netkin.tracking.wandb import WandB

        return WandB(logger, info)
    raise UserError(f"kind must be wandb, tensorboard, csv or none, got {kind!r}")
