"""Metrics, tables and figures of a run: to W&B, to TensorBoard, to a CSV file, or nowhere.

What is logged mirrors what the run writes to disk; nothing is ever read back from here.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from netkin.errors import Stopped, UserError
from netkin.store.files import write_json
from netkin.store.lease import me
from netkin.store.unfinished import note
from netkin.tracking.base import RunInfo as RunInfo
from netkin.tracking.base import Tracker as Tracker
from netkin.tracking.files import CSV, TensorBoard
from netkin.tracking.wandb import WandB, quiet_at_exit


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
    began, clock, state = datetime.now(UTC), time.perf_counter(), "failed"
    with _tracker(logger, info) as tracker:

        def note_state(state: str) -> None:
            content = {
                **{"name": info.name, "group": info.group, "job_type": info.job_type},
                **{"state": state, "began": began.isoformat(timespec="seconds")},
                "seconds": round(time.perf_counter() - clock, 1),
                "numbers": tracker.numbers,
                "holder": asdict(me()),
            }
            with suppress(UserError, OSError):  # a full folder: the run says so, or has ended
                write_json(info.folder / "summary.json", content)

        note_state("running")
        try:
            yield tracker
            tracker.flush()
            state = "finished"
        except Stopped:
            state = "stopped"
            raise
        finally:
            if state != "finished":
                with suppress(UserError):  # the run ends for another reason
                    tracker.flush()
            note_state(state)


@contextmanager
def _tracker(logger: Mapping[str, Any], info: RunInfo) -> Iterator[Tracker]:
    kind = logger["kind"]
    if kind == "none":
        yield Tracker()
    elif kind == "csv":
        yield CSV(info.folder)
    elif kind == "tensorboard":
        tracker = TensorBoard(info)
        try:
            yield tracker
        finally:
            tracker.finish()
    elif kind != "wandb":
        raise UserError(f"kind must be wandb, tensorboard, csv or none, got {kind!r}")
    else:
        quiet_at_exit()
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
