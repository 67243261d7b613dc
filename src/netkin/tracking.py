"""Metrics, tables and figures of a run: to W&B, to a CSV file, or nowhere.

What is logged mirrors what the run writes to disk; nothing is ever read back from here.
"""

import csv
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from netkin.errors import UserError, first_line
from netkin.store.unfinished import note, unfinished

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled", "shared")


class Tracker:
    """Logs what a study computes. What a kind of tracker does not log, it ignores."""

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """A series of metrics over the column `step`, as name/<column>."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Single numbers, by name."""

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A table."""

    def figure(self, name: str, png: Path) -> None:
        """A figure, from its PNG file."""

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


@contextmanager
def track(logger: Mapping[str, Any], info: RunInfo) -> Iterator[Tracker]:
    """A tracker for the block; a W&B run ends as failed where the block raises.

    Args:
        logger: `kind` ("wandb", "csv" or "none"), and for W&B `mode`, `project`, `entity`, `group`
            and `tags`.
        info: the run.

    Raises UserError for an unknown kind or mode, and where W&B does not start.
    """
    kind = logger["kind"]
    if kind == "none":
        yield NullTracker()
    elif kind == "csv":
        yield CSV(info.folder / "metrics.csv")
    elif kind != "wandb":
        raise UserError(f"kind must be wandb, csv or none, got {kind!r}")
    else:
        _quiet_at_exit()
        try:
            tracker, code = WandB(logger, info), 1
        except BaseException:
            with suppress(Exception):
                sys.modules["wandb"].teardown()
            raise
        try:
            with note(info.note, {"wandb": tracker.run.id, "folder": str(info.folder)}):
                yield tracker
            code = 0
        finally:
            tracker.finish(code)


def _quiet_at_exit() -> None:
    """What W&B does at the interpreter's exit prints no trace when its process was killed."""
    usual = sys.unraisablehook

    def hook(failed: Any) -> None:
        if not str(getattr(failed.object, "__module__", "")).startswith("wandb."):
            usual(failed)

    if usual.__module__ != __name__:
        sys.unraisablehook = hook


class WandB(Tracker):
    """Weights & Biases, in the mode of WANDB_MODE or else of `logger`; see `Tracker`.

    W&B's own process may die at any time: SLURM sends the signals for a job to it, too. The run
    goes on without it, and ends as it would have ended.
    """

    def __init__(self, logger: Mapping[str, Any], info: RunInfo):
        if not os.environ.get("WANDB_MODE", "mode").strip():
            del os.environ["WANDB_MODE"]  # which W&B would refuse, too
        chosen, mode = logger["mode"], os.environ.get("WANDB_MODE") or logger["mode"]
        if chosen not in MODES:  # also where not used
            raise UserError(f"mode must be online or offline, got {chosen!r}")
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # W&B's former names
        if mode not in MODES:
            raise UserError(f"WANDB_MODE must be online or offline, got {mode!r}")
        if found := re.search(r"[/\\#?%:]", str(logger["project"])):
            raise UserError(
                f"project must be a name without / \\ # ? % and :, got {logger['project']!r} "
                f"(with {found[0]})"
            )
        # Where a home cannot be written, as in containers and on compute nodes, W&B fails late.
        if not os.access(os.path.expanduser("~"), os.W_OK):
            for part in ("data", "cache", "config"):
                folder = str(info.folder / "wandb" / part)
                os.environ.setdefault(f"WANDB_{part.upper()}_DIR", folder)
        import wandb

        self.wandb, self.failed = wandb, False
        # W&B's own resuming needs the server, while most runs are offline.
        earlier = unfinished(info.note)
        try:
            self.run = wandb.init(
                project=logger["project"],
                entity=logger["entity"],
                group=_short(logger["group"] or info.group, 128),
                job_type=_short(info.job_type, 64),
                name=_short(info.name, 128),
                tags=_tags([*info.tags, *logger["tags"], *(["resumed"] if earlier else [])]),
                notes=f"Goes on from run {earlier['wandb']}." if earlier else None,
                config={**info.config, **({"resumes": earlier} if earlier else {})},
                dir=info.folder,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B did not start ({first_line(error)}); log in with `wandb login`, or "
                "use mode=offline or kind=csv"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"W&B did not start ({type(error).__name__}: {first_line(error)}); use kind=csv to "
                "run without it"
            ) from None

    def finish(self, exit_code: int) -> None:
        """End the W&B run, and W&B's process.

        W&B prints on its own account where its process has died; what matters of it is in the log.
        """
        with redirect_stderr(io.StringIO()):
            try:  # also after a failure: what is left is done at the interpreter's exit, in traces
                self.run.finish(exit_code=exit_code)
            except Exception as error:
                self._warn(error)
            with suppress(Exception):
                self.wandb.teardown()

    def _try(self, action: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            action()
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.failed:
            log.warning("W&B has failed, and this run goes on without it: %s", first_line(error))
        self.failed = True

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Rows over a step metric of their own."""

        def send() -> None:
            self.run.define_metric(f"{name}/*", step_metric=f"{name}/{step}")
            for row in rows:
                self.run.log({f"{name}/{key}": value for key, value in row.items()})

        self._try(send)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Numbers of one W&B step."""
        self._try(lambda: self.run.log(dict(values)))

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A W&B table."""
        rows: Any = [list(row) for row in table.iter_rows()]
        columns = list[Any](table.columns)
        self._try(lambda: self.run.log({name: self.wandb.Table(columns=columns, data=rows)}))

    def figure(self, name: str, png: Path) -> None:
        """A W&B image."""
        self._try(lambda: self.run.log({name: self.wandb.Image(str(png))}))

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """A W&B artifact of this type."""

        def send() -> None:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:128]
            artifact = self.wandb.Artifact(plain, type=kind)
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)

        self._try(send)


def _short(text: str, limit: int) -> str:
    """A text within W&B's limit."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _tags(names: Iterable[Any]) -> list[str]:
    """Names as tags: each once, of 1 to 64 characters."""
    return list(dict.fromkeys(_short(str(name), 64) for name in names if str(name)))


class CSV(Tracker):
    """One long table, metrics.csv: name, step, value. Tables and figures are files already.

    See `Tracker`.
    """

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as out:
            csv.writer(out).writerow(["name", "step", "value"])

    def _add(self, rows: Sequence[Sequence[Any]]) -> None:
        with self.file.open("a", newline="") as out:
            csv.writer(out).writerows(rows)

    def curve(self, name: str, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Rows of name/<column>, step and value."""
        self._add(
            [
                [f"{name}/{key}", row[step], value]
                for row in rows
                for key, value in row.items()
                if key != step
            ]
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Rows of name and value, without a step."""
        self._add([[name, "", value] for name, value in values.items()])


class NullTracker(Tracker):
    """A tracker that discards everything."""
