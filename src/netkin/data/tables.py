"""Tables that users bring as CSV files."""

from pathlib import Path

import polars as pl

from netkin.errors import UserError, first_line


def read_text(path: str | Path, header: bool = True) -> pl.DataFrame:
    """A CSV file's cells as text, without spaces around them; empty rows are left out.

    Args:
        path: of the file.
        header: whether its first row names the columns.

    Raises UserError with the reason, which does not name the file.
    """
    if Path(path).is_dir():
        raise UserError("it is a folder")
    try:
        table = pl.read_csv(path, has_header=header, infer_schema=False, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(first_line(error)) from None
    table = table.fill_null("").with_columns(pl.all().str.strip_chars())
    table = table.rename({name: name.strip() for name in table.columns if name.strip()})
    return table.filter(pl.any_horizontal(pl.all() != "")) if table.width else table
