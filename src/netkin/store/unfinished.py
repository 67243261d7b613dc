"""Which earlier run a run goes on from: a note per command in the store, until one finishes it."""

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
    """Keep a note of a run while it is not finished; a failed or stopped one stays."""
    if file is None:
        yield
        return
    write_json(file, {"run": dict(run), "holder": asdict(me())})
    yield
    file.unlink(missing_ok=True)


def unfinished(file: Path | None) -> dict[str, Any] | None:
    """The run of a note, unless its process is still there."""
    if file is None:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text())
        if not Holder(**found["holder"]).runs_here():
            return found["run"]
    return None
