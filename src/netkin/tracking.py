"""Metrics, tables and figures of a run: to W&B, to a CSV file, or nowhere.

What is logged mirrors what the run writes to disk; nothing is ever read back from here.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from netkin.errors import UserError
from netkin.store import unfinished as resume


class Tracker(Protocol):
    """Where a study reports to."""

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """A series of metrics over the column `step`, as name/<column>."""
        ...

    def metrics(self, values: Mapping[str, float]) -> None:
        """Single numbers, by name."""
        ...

    def table(self, name: str, table: pl.DataFrame) -> None: ...
    def figure(self, name: str, png: Path) -> None: ...
    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None: ...


@dataclass(frozen=True)
class RunInfo:
    """What a dashboard over many runs sorts by; `note` tells a run which one it goes on from."""

    folder: Path
    config: Mapping[str, Any]
    group: str
    job_type: str
    name: str
    tags: tuple[str, ...]
    note: Path | None = None


@contextmanager
def track(logger: Mapping[str, Any], info: RunInfo) -> Iterator[Tracker]:
    """A tracker of the kind that `logger` names; it is told the block's exit state."""
    kind = logger["kind"]
    if kind == "none":
        yield NullTracker()
    elif kind == "csv":
        yield CSV(info.folder / "metrics.csv")
    elif kind != "wandb":
        raise UserError(f"logger.kind must be wandb, csv or none, got {kind!r}")
    else:
        import wandb

        tracker = WandB(logger, info)
        mine = {"wandb": tracker.run.id, "folder": str(info.folder)}
        try:
            with resume.note(info.note, mine):
                yield tracker
        except BaseException:
            tracker.run.finish(exit_code=1)
            raise
        tracker.run.finish(exit_code=0)
        wandb.teardown()


class WandB:
    """Weights & Biases; offline unless `logger.mode` or WANDB_MODE says otherwise."""

    def __init__(self, logger: Mapping[str, Any], info: RunInfo):
        import wandb

        mode = os.environ.get("WANDB_MODE") or logger["mode"]
        if mode not in ("online", "offline", "disabled", "shared"):
            raise UserError(f"logger.mode must be online or offline, got {mode!r}")
        self.wandb = wandb
        # Not W&B's own resuming, which needs the server, while most runs are offline.
        earlier = resume.unfinished(info.note)
        try:
            self.run = wandb.init(
                project=logger["project"],
                entity=logger["entity"],
                group=logger["group"] or info.group,
                job_type=info.job_type,
                name=info.name,
                tags=[*info.tags, *logger["tags"], *(["resumed"] if earlier else [])],
                notes=f"Goes on from run {earlier['wandb']}." if earlier else None,
                config={**info.config, **({"resumes": earlier} if earlier else {})},
                dir=info.folder,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B did not start ({str(error).splitlines()[0]}); log in with `wandb login`, or "
                "use logger.mode=offline or logger=csv"
            ) from None

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None:
        self.run.define_metric(f"{name}/*", step_metric=f"{name}/{step}")
        for row in rows:
            self.run.log({f"{name}/{key}": value for key, value in row.items()})

    def metrics(self, values: Mapping[str, float]) -> None:
        self.run.log(dict(values))

    def table(self, name: str, table: pl.DataFrame) -> None:
        rows: Any = [list(row) for row in table.iter_rows()]
        self.run.log({name: self.wandb.Table(columns=list[Any](table.columns), data=rows)})

    def figure(self, name: str, png: Path) -> None:
        self.run.log({name: self.wandb.Image(str(png))})

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        artifact = self.wandb.Artifact(name, type=kind)
        for file in files:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)


class CSV:
    """One long table, metrics.csv: name, step, value. Tables and figures are files already."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as out:
            csv.writer(out).writerow(["name", "step", "value"])

    def _add(self, rows: Sequence[Sequence[Any]]) -> None:
        with self.file.open("a", newline="") as out:
            csv.writer(out).writerows(rows)

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None:
        self._add(
            [
                [f"{name}/{key}", row[step], value]
                for row in rows
                for key, value in row.items()
                if key != step
            ]
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        self._add([[name, "", value] for name, value in values.items()])

    def table(self, name: str, table: pl.DataFrame) -> None: ...
    def figure(self, name: str, png: Path) -> None: ...
    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None: ...


class NullTracker:
    """Logs nothing."""

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None: ...
    def metrics(self, values: Mapping[str, float]) -> None: ...
    def table(self, name: str, table: pl.DataFrame) -> None: ...
    def figure(self, name: str, png: Path) -> None: ...
    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None: ...
