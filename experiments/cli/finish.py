"""What every command prints: its answer, and the paths of its files."""

from collections.abc import Sequence

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.table import Table

from experiments.cli import stop
from experiments.cli.runs import used
from netkin.report.study import Outputs, Section
from netkin.report.text import cell_text, heading, left_out, split_command


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


def printed(table: pl.DataFrame, title: str | None = None, width: int = 80) -> Group:
    """A table for a terminal, with its numbers as on a page: in blocks of columns with the first
    one in front, where all are wider than `width`."""
    heads = [heading(name).replace("/", "\n") for name in table.columns]
    columns = [[cell_text(name, value) for value in table[name]] for name in table.columns]
    wide = [
        max(map(len, [*head.split("\n"), *"\n".join(column).split("\n")])) + 2
        for head, column in zip(heads, columns, strict=True)
    ]
    blocks: list[list[int]] = []
    for i in range(1, len(heads)):
        if not blocks or wide[0] + sum(wide[j] for j in blocks[-1]) + wide[i] > width + 2:
            blocks.append([])
        blocks[-1].append(i)
    tables = []
    for block in blocks or [[]]:
        shown = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for i in (0, *block):
            justify = "right" if table.dtypes[i].is_numeric() else "left"
            shown.add_column(heads[i], justify=justify, overflow="fold")
        for row in zip(*(columns[i] for i in (0, *block)), strict=True):
            shown.add_row(*row)
        tables += [shown, ""]
        title = None
    return Group(*tables[:-1])


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
    page they follow the verdict. Paragraphs are wrapped on a terminal, commands are not.
    """
    cautious = [*answer[:1], *printed, *answer[1:]]
    report = outputs.report(title, question, cautious, sections, config_text)
    if printed:
        console.print("\nSome members are suspect: see above, and the page.")
    for paragraph in answer:
        said, command = split_command(paragraph) if console.is_terminal else (paragraph, "")
        console.print(f"\n{said}", soft_wrap=not console.is_terminal)
        if command:
            console.print(f"  {command}")
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
