"""Weights & Biases."""

import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from netkin.errors import UserError, first_line
from netkin.jobs.signals import without_trace
from netkin.store.files import write_json
from netkin.store.lease import Holder, me
from netkin.tracking import RunInfo, Tracker, Value

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""W&B's own; the last two are former names of offline and online."""


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
