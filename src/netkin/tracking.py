"""Metrics, tables and figures of a run: to W&B, to TensorBoard, to a CSV file, or nowhere.

What is logged mirrors what the run writes to disk; nothing is ever read back from here.
"""

import csv
import io
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from netkin.data.tables import guarded
from netkin.errors import OutputsError, Stopped, UserError, first_line
from netkin.jobs.signals import without_trace
from netkin.store.files import write, write_json
from netkin.store.lease import Holder, me

log = logging.getLogger(__name__)
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""W&B's own; the last two are former names of offline and online."""

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
        write(self.file.with_name(f"{name}.csv"), guarded(table).write_csv, OutputsError, "folder")


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


@cache
def quiet_at_exit() -> None:
    """What W&B does at the interpreter's exit prints no trace when its process was killed."""
    without_trace(lambda failed: str(getattr(failed.object, "__module__", "")).startswith("wandb."))


def logged_in() -> bool:
    """Whether there is an API key for W&B. Never asks for one, as W&B itself does in a terminal.

    Raises UserError for one that cannot be any.
    """
    import wandb

    with redirect_stderr(io.StringIO()):
        try:
            return bool(wandb.login(prompt=False, verify=False))
        except wandb.Error as error:
            raise UserError(
                f"W&B does not take the API key ({first_line(error)}); run `wandb login`, or set "
                "WANDB_API_KEY to another one"
            ) from None


class WandB(Tracker):
    """Weights & Biases, in the mode of WANDB_MODE or else of `logger`.

    W&B's own process may die at any time: SLURM sends the signals for a job to it, too. The run
    goes on without it, and ends as it would have ended.
    """

    def __init__(self, logger: Mapping[str, Any], info: RunInfo):
        super().__init__()
        quiet_at_exit()
        if not os.environ.get("WANDB_MODE", "mode").strip():
            del os.environ["WANDB_MODE"]  # which W&B would refuse
        mode = os.environ.get("WANDB_MODE") or logger["mode"]
        for value in (logger["mode"], mode):  # also one that is not used
            if value not in MODES:
                raise UserError(f"mode must be online or offline, got {value!r}")
        # Where a home cannot be written, as in containers and on compute nodes, W&B fails late.
        if not os.access(os.path.expanduser("~"), os.W_OK):
            for part in ("data", "cache", "config"):
                folder = str(info.folder / "wandb" / part)
                os.environ.setdefault(f"WANDB_{part.upper()}_DIR", folder)
        self.failed, self.note = False, info.note
        self._defined: set[str] = set()
        if mode in ("online", "run", "shared") and not logged_in():
            raise UserError(
                f"mode={mode} needs an API key of W&B; run `wandb login`, set WANDB_API_KEY, "
                "or use mode=offline"
            )
        try:
            self._begin(logger, info, mode)
        except BaseException as error:
            with suppress(Exception):
                sys.modules["wandb"].teardown()
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise
            raise UserError(
                f"W&B did not start ({type(error).__name__}: {first_line(error)}); log in with "
                "`wandb login`, or use mode=offline or kind=csv"
            ) from None

    def _begin(self, logger: Mapping[str, Any], info: RunInfo, mode: Any) -> None:
        import wandb

        self.wandb = wandb
        earlier = unfinished(info.note)  # W&B's own resuming needs the server
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
        if self.note is not None:
            run = {"wandb": self.run.id, "folder": str(info.folder)}
            write_json(self.note, {"run": run, "holder": asdict(me())})

    def finish(self, exit_code: int) -> None:
        """End the W&B run, and W&B's process.

        W&B prints a message where its process has died; what matters of it is in the log.
        """
        if self.note is not None and not exit_code:
            self.note.unlink(missing_ok=True)
        with redirect_stderr(io.StringIO()):
            try:  # also after a failure: what is left is done at the interpreter's exit, in traces
                self.run.finish(exit_code=exit_code)
            except Exception as error:
                self._warn(error)
            with suppress(Exception):
                self.wandb.teardown()
        logger = logging.getLogger("wandb")
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)  # W&B's debug.log, which it leaves open
            handler.close()

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

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Rows of the run's history, whose x axis is the series `step`."""

        def send() -> None:
            for name in dict.fromkeys(name for row in rows for name in row):
                if name not in self._defined:
                    self._defined.add(name)
                    self.run.define_metric(name, step_metric=None if name == step else step)
            for row in rows:
                self.run.log(dict(row))

        self._try(send)

    def summary(self, values: Mapping[str, Value]) -> None:
        """Values in the run's summary, none of which makes a chart."""
        super().summary(values)
        self._try(lambda: self.run.summary.update({key: self.numbers[key] for key in values}))

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A W&B table."""
        rows: Any = [list(row) for row in table.iter_rows()]
        columns = list[Any](table.columns)
        self._try(
            lambda: self.run.log({f"tables/{name}": self.wandb.Table(columns=columns, data=rows)})
        )

    def figure(self, name: str, png: Path) -> None:
        """A W&B image."""
        self._try(lambda: self.run.log({f"figures/{name}": self.wandb.Image(str(png))}))

    def page(self, html: Path) -> None:
        """A panel with the page in it."""
        self._try(lambda: self.run.log({"report": self.wandb.Html(str(html), inject=False)}))

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """A W&B artifact of this type."""

        def send() -> None:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:128]
            artifact = self.wandb.Artifact(plain, type=kind)
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)

        self._try(send)


def unfinished(note: Path | None) -> dict[str, Any] | None:
    """The run of a note that a run left unfinished; None while that run's process still runs."""
    if note is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(note.read_text())
            if not Holder(**content["holder"]).runs_here():
                return content["run"]
    return None


def _short(text: str, limit: int) -> str:
    """A text within W&B's limit."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _tags(names: Iterable[Any]) -> list[str]:
    """Names as tags: each once, of 1 to 64 characters."""
    return list(dict.fromkeys(_short(str(name), 64) for name in names if str(name)))


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
        return WandB(logger, info)
    raise UserError(f"kind must be wandb, tensorboard, csv or none, got {kind!r}")
