"""The one kind of error that is shown to a user as a single line, without a stack trace."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something a user gave is wrong: says what was expected, what came and what to do."""


def near(name: str, known: Iterable[str], n: int = 3) -> str:
    """A hint such as ``; did you mean resnet50, resnet51q?``, or nothing when no name is near."""
    matches = difflib.get_close_matches(name, list(known), n=n, cutoff=0.6)
    return f"; did you mean {', '.join(matches)}?" if matches else ""
