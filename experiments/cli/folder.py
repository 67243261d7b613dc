"""A run's own folder: one run at a time writes to it, and always of one config.

Hydra makes the folder and writes its config there before a study starts, so this is a callback of
Hydra's, which comes first (`hydra.callbacks` in conf/outputs.yaml).
"""

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments.cli.stop import fail
from netkin.store import differences

NOTE = ".run.json"
FREE = ("hardware", "logger", "hydra", "resume", "quiet", "figure")
"""Keys that results do not depend on."""
RESULTS = ("*.csv", "report.html", "[0-9]*/report.html")
"""What a run, or a job of a sweep, has written."""

_locks: list[int] = []
"""Open files, whose locks end with the process, however it ends."""
_sweeps: list[Path] = []
"""The folder of this process's sweep, if it is one."""


class Claim(Callback):
    """Ends a command, before it has written anything, whose folder is not free for it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Of a single run: of the config that results depend on, interpolations not resolved."""
        plain: Any = OmegaConf.to_container(config, resolve=False)
        values = {key: value for key, value in plain.items() if key not in FREE}
        claim(str(config.hydra.run.dir), values, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Of a sweep, whose jobs have folders in its own."""
        overrides = list(config.hydra.overrides.task)
        own = [text for text in overrides if text.lstrip("+~").split(".")[0] not in FREE]
        if os.environ.get("WANDB_RUN_ID"):
            fail("WANDB_RUN_ID is set, which all jobs of this sweep would share; unset it", 1)
        claim(str(config.hydra.sweep.dir), {"overrides": own}, "hydra.sweep.dir")
        _sweeps.append(Path(str(config.hydra.sweep.dir)))


def claim(folder: str, config: dict[str, Any], key: str) -> None:
    """Lock a folder until `release` or the end of this process, and note its config.

    Ends the command where another process has locked it, or where it holds results of another
    config. A folder that cannot be made is left to Hydra, which says so.
    """
    note, config = Path(folder) / NOTE, json.loads(json.dumps(config, default=str))
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        _locks.append(os.open(note, os.O_RDWR | os.O_CREAT, 0o666))
    except OSError:
        return
    try:
        fcntl.flock(_locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing to {folder}; choose another folder with {key}=PATH", 1)
    except OSError:  # a file system without locks
        pass
    earlier: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        earlier = json.loads(note.read_text() or "{}")
    has_results = any(any(note.parent.glob(pattern)) for pattern in RESULTS)
    if earlier and has_results and (found := next(differences(earlier, config), None)):
        what, theirs, ours = found
        fail(
            f"{folder} holds the results of a run with {what} = {theirs}, now it is {ours}; choose "
            f"another folder with {key}=PATH, or remove it",
            1,
        )
    with suppress(OSError):  # a full disk, which the run itself will meet
        note.write_text(json.dumps(config))


def print_jobs() -> None:
    """At the end of a sweep, print the table of its jobs."""
    while _sweeps:
        from experiments.cli import index  # slow to import, and of no use in other commands

        index.print_jobs(_sweeps.pop())


def release() -> None:
    """Unlock what this process has locked."""
    while _locks:
        os.close(_locks.pop())
