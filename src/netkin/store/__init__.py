"""The store of results; `netkin.store.layout` describes it.

What is here imports nothing slow: a command reads names and rates before its first line.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

RATES = ".rates.json"


def folder(name: str) -> str:
    """A model's name as one path component: "/", a leading "." and the like are percent-encoded;
    `urllib.parse.unquote` is the inverse."""
    quoted = quote(name, safe=" @+,()[]")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) wherever two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted({*a, *b}):
            yield from differences(
                a.get(name, "nothing"), b.get(name, "nothing"), f"{key}.{name}".strip(".")
            )
    elif a != b:
        yield key, a, b


def rates(root: Path) -> dict[str, dict[str, float]]:
    """How long work took on this store: seconds a unit, by stage and model; empty where unknown.

    Units: an epoch in train, an image in clean and noise, an image and step in craft, an image of
    one source in transfer.
    """
    with suppress(OSError, ValueError):
        content = json.loads((root / RATES).read_text())
        if isinstance(content, dict):
            return content
    return {}


def note_rates(root: Path, stage: str, seconds: Mapping[str, float]) -> None:
    """Note a stage's seconds a unit by model, over what was noted before.

    Of two processes at once one may be lost, which costs nothing but a poorer estimate.
    """
    known = rates(root)
    temporary = root / f"{RATES}.{os.getpid()}.tmp"
    with suppress(OSError):  # a store that cannot be written
        temporary.write_text(json.dumps({**known, stage: {**known.get(stage, {}), **seconds}}))
        temporary.replace(root / RATES)
