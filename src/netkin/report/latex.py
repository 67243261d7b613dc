"""Tables for LaTeX papers, in the style of booktabs."""

import re

import polars as pl

from netkin.report.text import UNKNOWN, cell_text, heading

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
