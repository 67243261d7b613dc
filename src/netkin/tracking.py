"""Metrics, tables and figures of a run: to W&B, to TensorBoard, to a CSV file, or nowhere.

What is logged mirrors what the run writes to disk; nothing is ever read back from here.
"""

import csv
import io
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import polars as pl

from netkin.data.tables import guarded
from netkin.errors import OutputsError, Stopped, UserError, first_line
from netkin.jobs.signals import without_trace
from netkin.store.files import write, write_json
from netkin.store.lease import me

log = logging.getLogger(__name__)
ONLINE, OFFLINE = ("online", "run", "shared"), ("offline", "dryrun", "disabled")
"""W&B's own modes; run and dryrun are former names of online and offline."""

CELLS = 100_000
"""Of a W&B table, a second's work: all pairs of 120 models."""

Value = float | int | str | None


@dataclass(frozen=True)
class RunInfo:
    """A run, as a dashboard over many runs sorts it.

    Attributes:
        folder: of the run's own outputs.
        config: its resolved config.
        group, job_type, name, tags: as W&B has them.
    """

    folder: Path
    config: Mapping[str, Any]
    group: str
    job_type: str
    name: str
    tags: tuple[str, ...]


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
        """Rows of a table that `flush` logs."""
        self._rows.setdefault(name, []).extend(rows)

    def flush(self) -> None:
        """Log the tables of `add`, at the end of the run."""
        while self._rows:
            name, rows = self._rows.popitem()
            self.table(name, pl.DataFrame(rows, infer_schema_length=None))

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A table."""

    def media(self, name: str, file: Path) -> None:
        """A figure or another image (a PNG), or a page (HTML)."""

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Files to keep as they are, under a name and a type."""

    def finish(self, exit_code: int) -> None:
        """End the run: 0 where it has succeeded."""


class CSV(Tracker):
    """One long table, metrics.csv: name, step, value, and a file for each table."""

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

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A CSV file, which a study has written already, unless its rows came from `add`."""
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

    def media(self, name: str, file: Path) -> None:
        """An image; a page is ignored."""
        if file.suffix == ".png":
            import numpy as np
            from PIL import Image

            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.logger.experiment.add_image(name, pixels, dataformats="HWC")

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

    W&B works in a thread, beside the run, which waits for it at its end. Offline it starts with
    the first series or when the page is made: a short run need not wait for its imports. W&B's own
    process may die at any time: SLURM sends the signals for a job to it, too. The run goes on
    without it, and ends as it would have ended.
    """

    def __init__(self, logger: Mapping[str, Any], info: RunInfo):
        super().__init__()
        quiet_at_exit()
        if not os.environ.get("WANDB_MODE", "mode").strip():
            del os.environ["WANDB_MODE"]  # which W&B would refuse
        mode: Any = os.environ.get("WANDB_MODE") or logger["mode"]
        for value in (logger["mode"], mode):  # also one that is not used
            if value not in (*ONLINE, *OFFLINE):
                raise UserError(f"mode must be online or offline, got {value!r}")
        self.failed = self._started = False
        self._defined: set[str] = set()
        with ExitStack() as stack:
            stack.callback(_tear_down, _prepare(info.folder / "wandb", mode in OFFLINE))
            if mode in ONLINE and not logged_in():
                raise UserError(
                    f"mode={mode} needs an API key of W&B; run `wandb login`, set WANDB_API_KEY, "
                    "or use mode=offline"
                )
            tags = map(str, [*info.tags, *logger["tags"]])
            self._settings: dict[str, Any] = {
                "project": logger["project"],
                "entity": logger["entity"],
                "run_group": _short(logger["group"] or info.group, 128),
                "run_job_type": _short(info.job_type, 64),
                "run_name": _short(info.name, 128),
                "run_tags": tuple({_short(tag, 64): None for tag in tags if tag}),
                "root_dir": str(info.folder),
                "mode": mode,
                "silent": True,
                "console": "off",
                "disable_git": True,
            }
            self._config = dict(info.config)
            self._thread = ThreadPoolExecutor(1, "wandb")
            stack.callback(self._thread.shutdown)
            try:  # W&B itself says what is wrong with a project's name
                if mode in ONLINE or not re.fullmatch(r"[\w.-]{1,128}", str(logger["project"])):
                    self._started = True
                    self._thread.submit(lambda: self.run).result()
            except Exception as error:
                raise UserError(
                    f"W&B did not start ({type(error).__name__}: {first_line(error)}); log in with "
                    "`wandb login`, or use mode=offline or kind=csv"
                ) from None
            self._end = stack.pop_all()

    @cached_property
    def run(self) -> Any:
        """The W&B run, which starts here. Raises what W&B raises where it does not."""
        import wandb

        self.wandb = wandb
        run = wandb.init(config=self._config, settings=wandb.Settings(**self._settings))
        run.summary.update(dict(self.numbers))
        return run

    def finish(self, exit_code: int) -> None:
        """End the W&B run, and W&B's process.

        W&B prints a message where its process has died; what matters of it is in the log.
        """
        self._thread.shutdown()
        with self._end:
            if "run" not in vars(self) and (self.failed or (exit_code and not self.numbers)):
                return  # it has nothing to tell
            try:  # also after a failure: what is left is done at the interpreter's exit, in traces
                with redirect_stderr(io.StringIO()):
                    self.run.finish(exit_code=exit_code)
                if not self.run.disabled:
                    _check_files(Path(self.run.dir).parent)
            except Exception as error:
                self._warn(error)

    def _try(self, action: Callable[[], object]) -> None:
        """Do something after all that came before."""
        self._started = True
        self._thread.submit(self._now, action)

    def _now(self, action: Callable[[], object]) -> None:
        if not self.failed:
            try:
                action()
            except Exception as error:
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.failed:
            log.warning(
                "W&B has failed, and this run goes on without it (%s): metrics are not recorded "
                "in full, results are kept",
                first_line(error),
            )
        self.failed = True

    def curve(self, rows: Sequence[Mapping[str, float]], step: str) -> None:
        """Rows of the run's history, whose x axis is the series `step`."""

        def send() -> None:
            for name in sorted({name for row in rows for name in row} - self._defined):
                self.run.define_metric(name, step_metric=None if name == step else step)
                self._defined.add(name)
            for row in rows:
                self.run.log(dict(row))

        self._try(send)

    def summary(self, values: Mapping[str, Value]) -> None:
        """Values in the run's summary, none of which makes a chart."""
        super().summary(values)
        numbers = {key: self.numbers[key] for key in values}
        if self._started:
            self._try(lambda: self.run.summary.update(numbers))

    def table(self, name: str, table: pl.DataFrame) -> None:
        """A W&B table of the first rows, up to CELLS cells; the run's CSV file has all."""
        shown = table.head(max(CELLS // max(table.width, 1), 1))
        content: Any = {"columns": shown.columns, "data": list(map(list, shown.iter_rows()))}
        self._try(lambda: self.run.log({f"tables/{name}": self.wandb.Table(**content)}))

    def media(self, name: str, file: Path) -> None:
        """A W&B image, or a panel with the page in it."""

        def send() -> None:
            run, path = self.run, str(file)
            html = file.suffix != ".png"
            run.log({name: self.wandb.Html(path, inject=False) if html else self.wandb.Image(path)})

        self._try(send)

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        def send() -> None:
            plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:128]
            artifact = self.wandb.Artifact(plain, type=kind)
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)

        self._try(send)


def _prepare(folder: Path, offline: bool) -> list[str]:
    """Set what W&B reads from the environment, unless the user has; returns the variables' names.

    What W&B stages for an upload lies in the run's folder, and an offline run sends nothing.
    """
    given = {"WANDB_DATA_DIR": str(folder / "data")}
    # Where a home cannot be written, as in containers and on compute nodes, W&B fails late.
    if not os.access(os.path.expanduser("~"), os.W_OK):
        given |= {f"WANDB_{part.upper()}_DIR": str(folder / part) for part in ("cache", "config")}
    if offline:
        given["WANDB_ERROR_REPORTING"] = "false"  # to W&B's makers
    names = [name for name in given if not os.environ.get(name)]
    os.environ |= {name: given[name] for name in names}
    return names


def _tear_down(variables: Iterable[str]) -> None:
    """End W&B's process, close its debug.log, which it leaves open, and unset variables."""
    with suppress(Exception), redirect_stderr(io.StringIO()):
        sys.modules["wandb"].teardown()
    logger = logging.getLogger("wandb")
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    for name in variables:
        os.environ.pop(name, None)


def _check_files(folder: Path) -> None:
    """Raise OSError where W&B's process could not write what it was told, as on a full disk: it
    notes that in its own log, if there is room, and goes on."""
    if "failed to save record" in (folder / "logs" / "debug-internal.log").read_text():
        raise OSError(f"it could not write to {folder}")
    room = folder / "room"
    try:
        room.write_bytes(bytes(4096))
    finally:
        room.unlink(missing_ok=True)


def _short(text: str, limit: int) -> str:
    """A text within W&B's limit."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


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
    kinds: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandB(logger, info),
        "tensorboard": lambda: TensorBoard(info),
        "csv": lambda: CSV(info.folder),
        "none": Tracker,
    }
    if logger["kind"] not in kinds:
        raise UserError(f"kind must be wandb, tensorboard, csv or none, got {logger['kind']!r}")
    began, clock, tracker = datetime.now(UTC), time.perf_counter(), kinds[logger["kind"]]()

    def write_summary(state: str) -> None:
        run = {"name": info.name, "group": info.group, "job_type": info.job_type, "state": state}
        seconds = round(time.perf_counter() - clock, 1)
        when = {"began": began.isoformat(timespec="seconds"), "seconds": seconds}
        content = {**run, **when, "numbers": tracker.numbers, "holder": asdict(me())}
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
