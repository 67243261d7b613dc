"""The store of results; `netkin.store.layout` describes it.

What is here imports nothing slow: a command reads names before its first line.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote


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
