"""Which earlier run a run continues: a note per command in the store, until a run finishes it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from netkin.store.files import write_json
from netkin.store.lease import Holder, me


@contextmanager
def note(file: Path | None, run: Mapping[str, Any]) -> Iterator[None]:
    """Write a note of a run, and remove it once the block has ended without an error."""
    if file is None:
        yield
        return
    write_json(file, {"run": dict(run), "holder": asdict(me())})
    yield
    file.unlink(missing_ok=True)


def unfinished(file: Path | None) -> dict[str, Any] | None:
    """The run of a note; None without one, and while that run's process is still running."""
    if file is None:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(file.read_text())
        if not Holder(**content["holder"]).runs_here():
            return content["run"]
    return None
