"""Tables as CSV files: those that users bring, and those that commands write."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from netkin.errors import UserError, first_line

FORMULA = r"('*[=+\-@])"
"""The start of a text that spreadsheets run as a formula, after any apostrophes."""


def read_text(
    path: str | Path, columns: Sequence[str] = (), header: bool = True, expected: str = ""
) -> pl.DataFrame:
    """A CSV file's cells as text, without spaces around them, and without the apostrophes of
    `guarded`; empty rows are left out.

    Args:
        path: of the file.
        columns: that it must have.
        header: whether its first row names the columns.
        expected: what it should hold, for errors; the columns, unless given.

    Raises UserError where it cannot be read, or lacks a column.
    """
    expected = expected or f"a CSV file with the columns {' and '.join(columns)}"
    try:
        table = pl.read_csv(path, has_header=header, infer_schema=False, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = "it is a folder" if Path(path).is_dir() else first_line(error)
        raise UserError(f"{path} cannot be read ({reason}); expected {expected}") from None
    plain = pl.all().str.strip_chars().str.replace(f"^'{FORMULA}", "$1")
    table = table.fill_null("").with_columns(plain)
    names = {name: re.sub(f"^'{FORMULA}", r"\1", name.strip()) for name in table.columns}
    table = table.rename({name: new for name, new in names.items() if new})
    if lacking := [name for name in columns if name not in table.columns]:
        raise UserError(
            f"{path} has no column {' and no column '.join(lacking)}; expected {expected}, got "
            f"{','.join(table.columns[:5])}"
        )
    return table.filter(pl.any_horizontal(pl.all() != "")) if table.width else table


def guarded(table: pl.DataFrame) -> pl.DataFrame:
    """A table for a CSV file: texts that a spreadsheet would run as formulas, such as a model named
    =1+1, have an apostrophe before them. Numbers stay."""
    texts, start = pl.col(pl.String), f"^{FORMULA}"
    formula = texts.str.contains(start) & texts.cast(pl.Float64, strict=False).is_null()
    guard = pl.when(formula).then(texts.str.replace(start, "'$1")).otherwise(texts)
    return table.with_columns(guard).rename(lambda name: re.sub(start, r"'\1", name))
