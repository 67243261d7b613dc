"""What a run is, and what it logs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl


class Tracker:
    """Logs what a study computes. What a kind of tracker does not log, it ignores.

    Single numbers go to the run's summary, which is a row in the table of runs; only what has a
    course over time is a series, which dashboards draw as a chart. What there is once a member goes
    into a table.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, float | int | str | None] = {}
        self._rows: dict[str, list[Mapping[str, Any]]] = {}

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Points of series by name, over the one that is called `step`."""

    def summary(self, values: Mapping[str, float | int | str | None]) -> None:
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


@dataclass(frozen=True)
class RunInfo:
    """A run, as a dashboard over many runs sorts it.

    Attributes:
        folder: of the run's own outputs.
        config: its resolved config.
        group, job_type, name, tags: as W&B has them.
        note: the file in the store that tells a run which earlier one it continues; None for a run
            that cannot be continued.
    """

    folder: Path
    config: Mapping[str, Any]
    group: str
    job_type: str
    name: str
    tags: tuple[str, ...]
    note: Path | None = None
