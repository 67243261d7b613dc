"""How long work took on this store: seconds a unit by stage and model, to say how long is left.

Imports nothing slow: a command reads it before its first line.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FILE = ".rates.json"


def rates(root: Path) -> dict[str, dict[str, float]]:
    """Seconds a unit, by stage and model; empty where nothing has been noted.

    Units: an epoch in train, an image in clean and noise, an image and step in craft, an image of
    one source in transfer.
    """
    with suppress(OSError, ValueError):
        content = json.loads((root / FILE).read_text())
        if isinstance(content, dict):
            return content
    return {}


def note_rates(root: Path, stage: str, seconds: Mapping[str, float]) -> None:
    """Note a stage's seconds a unit by model, over what was noted before.

    Of two processes at once one may be lost, which costs nothing but a poorer estimate.
    """
    known = rates(root)
    temporary = root / f"{FILE}.{os.getpid()}.tmp"
    with suppress(OSError):  # a store that cannot be written
        temporary.write_text(json.dumps({**known, stage: {**known.get(stage, {}), **seconds}}))
        temporary.replace(root / FILE)
