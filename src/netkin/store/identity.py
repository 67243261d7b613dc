"""How two identities differ. Imports no large library, so that commands can ask it first."""

from collections.abc import Iterator
from typing import Any


def differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) wherever two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted({*a, *b}):
            yield from differences(
                a.get(name, "nothing"), b.get(name, "nothing"), f"{key}.{name}".strip(".")
            )
    elif a != b:
        yield key, a, b
