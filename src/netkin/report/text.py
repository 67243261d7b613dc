"""Numbers and lists as tables, pages and messages write them."""

import math
from collections.abc import Mapping
from typing import Any

# Messages of the lower layers list names, too, so this function lies below all of them.
from netkin.errors import and_more as and_more

UNKNOWN = "–"  # noqa: RUF001


def number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals, or a dash where it is unknown (None or NaN)."""
    return UNKNOWN if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A rate in [0, 1] as a percentage with one decimal, or a dash where it is unknown."""
    return UNKNOWN if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def count(value: int | None) -> str:
    """A number of parameters with three significant figures: 25.6M, 950, 1.23G."""
    if value is None:
        return UNKNOWN
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= factor:
            scaled = value / factor
            return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:.0f}{unit}"
    return str(value)


def fraction_text(eps: float) -> str:
    """A bound in pixels of [0, 1] as the field writes it: 8/255 where it is one, or a decimal."""
    steps = 255 * eps
    return f"{round(steps)}/255" if abs(steps - round(steps)) < 1e-6 else f"{eps:.3g}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """An attack's settings: "eps = 48/255, steps = 50"; keys that start with _ are left out."""
    return ", ".join(
        f"{key} = {fraction_text(value) if isinstance(value, float) else value}"
        for key, value in settings.items()
        if not key.startswith("_")
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "0.3 s", "12.0 min", "3.4 h", "2.1 days"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(number_of_bytes: float) -> str:
    """Bytes in the unit that suits them: "12.0 MB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number_of_bytes >= factor:
            return f"{number_of_bytes / factor:.1f} {unit}"
    return f"{number_of_bytes / 1e3:.1f} kB"


SECONDS, BYTES = "_seconds", "_bytes"


def heading(column: str) -> str:
    """A column's name as a heading."""
    return column.removesuffix(SECONDS).removesuffix(BYTES).replace("_", " ")


def cell_text(column: str, value: Any) -> str:
    """A cell: three decimals for a number, more digits where that would leave none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.endswith(SECONDS):
        return duration(value)
    if column.endswith(BYTES):
        return size(value)
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.001 else f"{value:.3f}"
    return str(value)
