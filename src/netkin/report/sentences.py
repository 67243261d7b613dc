"""Sentences of answers: templates in TOML files, filled with verdicts and numbers.

The package's own are in sentences.toml beside this file, and a study's in a file beside the study.
A template is a text with Python's replacement fields, or a table of texts by variant, such as the
verdict:

    [pairwise]
    most = "{a} and {b} are the most similar (s = {s:.2f}), in {n:,} pair{n:s}."

    [pairwise.families]
    Yes = "Yes: models of one family fool each other {factor:.1f} times as often."
    No = "No: models of one family fool each other less often."
    "Not certain" = "Not certain: ..."

`{n:s}` of a whole number is the plural's "s", or nothing for 1; `{n:is}` is "is" or "are".
"""

import string
import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

_PLURAL = {"s": ("", "s"), "is": ("is", "are"), "has": ("has", "have"), "does": ("does", "do")}


class _Formatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec in _PLURAL and isinstance(value, int):
            return _PLURAL[format_spec][value != 1]
        return super().format_field(value, format_spec)


class Sentences:
    """The templates of a TOML file.

        text = Sentences(Path(__file__).with_suffix(".toml"))
        text("pairwise.families", verdict(effect, interval), factor=5.4)

    Args:
        file: a path or a resource of a package.
    """

    def __init__(self, file: Traversable):
        self._file = file
        self._templates: dict[str, Any] | None = None

    def table(self, key: str) -> dict[str, Any]:
        """The table of a key of the top level."""
        if self._templates is None:
            self._templates = tomllib.loads(self._file.read_text(encoding="utf-8"))
        return self._templates[key]

    def __call__(self, key: str, variant: str | None = None, /, **values: Any) -> str:
        """The sentence of a key such as "pairwise.most", filled with values.

        `variant` chooses one of several texts. Raises KeyError for a key, variant or value that
        is missing.
        """
        first, *parts = key.split(".")
        template: Any = self.table(first)
        for part in [*parts, *([] if variant is None else [variant])]:
            template = template[part]
        return _Formatter().vformat(template, (), values)


text = Sentences(resources.files("netkin.report") / "sentences.toml")
"""A sentence of the package's own templates."""
