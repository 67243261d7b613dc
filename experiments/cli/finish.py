"""What every command prints: its answer, and the paths of its files."""

from collections.abc import Sequence

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.cli import stop
from experiments.cli.runs import used
from netkin.report.study import Outputs, Section
from netkin.report.text import cell_text, heading, left_out


class Terminal(Console):
    """A console of text as it is, without markup or colours of numbers.

    Where the reader of its lines leaves, as `| head` does, the command goes on without printing.
    """

    def __init__(self, width: int | None = None, soft_wrap: bool = False):
        super().__init__(width=width, soft_wrap=soft_wrap, markup=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Print nothing from here on. rich itself would exit, in the middle of the work."""
        self.quiet = True
        stop.silence()


def terminal() -> Terminal:
    """The console of a command, whose lines are not wrapped."""
    return Terminal(soft_wrap=True)


def printed(table: pl.DataFrame, title: str | None = None) -> Table:
    """A table for a terminal, with its numbers as on a page."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, kind in table.schema.items():
        justify = "right" if kind.is_numeric() else "left"
        shown.add_column(heading(name).replace("/", "\n"), justify=justify, overflow="fold")
    for row in table.iter_rows():
        shown.add_row(*map(cell_text, table.columns, row))
    return shown


def finish(
    outputs: Outputs,
    console: Console,
    title: str,
    question: str,
    answer: Sequence[str],
    sections: Sequence[Section],
    config_text: str,
    printed: Sequence[str] = (),
) -> None:
    """Write report.html, print the answer, a paragraph each, and name the files of the run.

    `title` is the question in one line, `question` says how it was measured, too; `config_text` is
    the resolved config as YAML, and `printed` cautions that the terminal has shown already: on the
    page they follow the verdict.
    """
    cautious = [*answer[:1], *printed, *answer[1:]]
    report = outputs.report(title, question, cautious, sections, config_text)
    if printed:
        console.print("\nSome members are suspect: see above, and the page.")
    for paragraph in answer:
        console.print(f"\n{paragraph}")
    console.print(f"\nReport   {report}")
    for kind, suffix in (("Tables", ".csv"), ("Figures", ".png")):
        if names := sorted(file for file in outputs.files if file.endswith(suffix)):
            text = f"{kind:<8} {outputs.folder}/{', '.join(names)}"
            console.print(text)


def described(config: DictConfig) -> str:
    """The config as YAML, resolved, without keys that were not used."""
    return OmegaConf.to_yaml(used(config), resolve=True)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print notes on how the images were read (`netkin.data.images.Images.notes`)."""
    for note in left_out((), list(dict.fromkeys(notes))):
        console.print(note)
