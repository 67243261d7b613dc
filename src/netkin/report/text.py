"""Numbers and lists as tables, pages and messages write them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

# Messages of the lower layers list names, too, so this function lies below all of them.
from netkin.errors import and_more as and_more

UNKNOWN = "–"  # noqa: RUF001


MINUS = "\u2212"
RATES = {
    *("accuracy", "error", "errors", "err", "rate", "share", "success", "wrong", "fooled", "fools"),
    *("corrected", "noise", "measured", "expected"),
}
"""Words in the names of columns whose values are rates in [0, 1], or differences of rates."""
NOTHING = 1e-9
"""Numbers below it are errors of rounding, and written as 0."""
NO_RATES = {"seconds", "images", "sd"}


def is_rate(column: str) -> bool:
    """Whether a column of a table has rates, by the words of its name."""
    parts = {*column.split("_")}
    return bool(parts & RATES) and not parts & NO_RATES


def cell(column: str, value: float) -> str:
    """A number in a table: a rate in per cent, a p-value down to 0.0001, else three decimals.

    A number that three decimals would leave as 0 has two significant digits, without an exponent.
    """
    if math.isnan(value):
        return UNKNOWN
    if is_rate(column) and abs(value) <= 1:
        small = 0 < abs(value) < 0.001
        return minus(f"{100 * value:.2f}%" if small else f"{100 * value:.1f}%")
    if {"p"} & {*column.split("_")} and 0 <= value < 0.0001:
        return "< 0.0001"
    if not math.isfinite(value) or abs(value) >= 0.001 or abs(value) < NOTHING:
        return minus(f"{value:.3f}").replace(f"{MINUS}0.000", "0.000")
    return minus(f"{value:.{1 - math.floor(math.log10(abs(value)))}f}")


class Fact(NamedTuple):
    """A paragraph in parts: what it is about, its first sentence, the others, and the command that
    it ends with; empty where it has none."""

    label: str
    short: str
    more: str
    command: str


COMMAND = re.compile(r"(?:(?<=:)\s|^)(python (?:evaluate|train)\.py\b.*)$", re.DOTALL)
LABEL = re.compile(r"([A-Z][^.:;?,]{0,44}:|[A-Z][^.:;]{3,80}\?)(?:\s|$)")
SENTENCE = re.compile(r"(?<=[.?!])(?<!\b(?:Sec|App|Tab|Fig)\.)(?<!\b(?:Eq|al)\.)\s+(?=[A-Z(\d])")


def fact(paragraph: str) -> Fact:
    """The parts of a paragraph such as "Noise: it fools 9.9%. At most 49%. To see: python ...".

    A label is what stands before a first colon, or a question. A command is python evaluate.py or
    train.py after a colon, to the end.
    """
    text, command = split_command(paragraph)
    label = LABEL.match(text)
    text = text[label.end() :] if label else text
    short, *more = SENTENCE.split(text, maxsplit=1)
    return Fact(label[1] if label else "", short, "".join(more), command)


def split_command(paragraph: str) -> tuple[str, str]:
    """A paragraph, and the command that it ends with, empty where there is none."""
    found = COMMAND.search(paragraph)
    return (paragraph[: found.start()], found[1]) if found else (paragraph, "")


def minus(text: str) -> str:
    """A text whose negative numbers have a minus sign; commands and names stay as they are."""
    return re.sub(r"(?<![\w=.,/\[\u2212-])-(?=\.?\d)", MINUS, text)


def left_out(skipped: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> list[str]:
    """How the images were read (`netkin.data.images.Images.notes`), and which could not be read,
    (id, reason); a paragraph each."""
    sentences = [f"{note[:1].upper()}{note[1:]}." for note in notes]
    if not skipped:
        return sentences
    images = and_more(f"{image} ({reason})" for image, reason in skipped)
    return [*sentences, f"{len(skipped)} images could not be read and were left out: {images}."]


def number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals, or a dash where it is unknown (None or NaN)."""
    return UNKNOWN if value is None or math.isnan(value) else minus(f"{value:.{digits}f}")


def percent(value: float | None) -> str:
    """A rate in [0, 1] as a percentage with one decimal, or a dash where it is unknown."""
    return UNKNOWN if value is None or math.isnan(value) else minus(f"{100 * value:.1f}%")


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
    """A cell of a table; see `cell` for numbers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if column.endswith(SECONDS):
        return duration(value)
    if column.endswith(BYTES):
        return size(value)
    if isinstance(value, float):
        return cell(column, value)
    if isinstance(value, int):
        return minus(f"{value:,}" if abs(value) >= 10_000 else str(value))
    return str(value)


SPECIAL = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    UNKNOWN: "--",
    "\N{MINUS SIGN}": "$-$",
    "²": "$^2$",
    "ε": r"$\varepsilon$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "○": r"$\circ$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
}


def latex(table: pl.DataFrame) -> str:
    """A tabular with the numbers as a page writes them; it takes \\usepackage{booktabs}."""
    columns = "".join("r" if kind.is_numeric() else "l" for kind in table.dtypes)
    head = " & ".join(_escaped(heading(name)) for name in table.columns)
    numeric = [kind.is_numeric() for kind in table.dtypes]
    rows = [
        " & ".join(
            _escaped(cell_text(name, value), number)
            for name, value, number in zip(table.columns, row, numeric, strict=True)
        )
        for row in table.iter_rows()
    ]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{row} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str, number: bool = False) -> str:
    """Plain text for LaTeX; the minus of a number is one."""
    text = re.sub(r"\s+", " ", text)
    escaped = "".join(SPECIAL.get(c, c) for c in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped) if number else escaped
