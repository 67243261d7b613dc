"""What every command prints: models that look wrong, its answer, and the paths of its files."""

from collections.abc import Mapping, Sequence

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.cli import stop
from experiments.cli.runs import used
from netkin.analysis.suspect import ORDERS, REMEDIES, Suspicion
from netkin.errors import UserError
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
    """Write report.html, print the answer, and name the files of the run.

    Args:
        outputs: the run's folder with its tables and figures.
        console: where the answer is printed.
        title: the question in one line.
        question: the question and how it was measured, in a sentence or two.
        answer: the findings in words, a paragraph each.
        sections: the evidence.
        config_text: the resolved config as YAML.
        printed: cautions after the verdict on the page, which the terminal has shown already.
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


class Suspects:
    """Takes the members that look wrong after the clean pass; a `netkin.run.Watch`.

    Attributes:
        reasons: in words, by member.
        sentences: what is wrong with which members, and what to do, for the page.

    Raises UserError, where `on_suspect` is stop, with all of the sentences.
    """

    def __init__(self, config: DictConfig, console: Console):
        self.config, self.console = config, console
        self.reasons: dict[str, str] = {}
        self.sentences: list[str] = []

    def __call__(self, suspects: Mapping[str, Sequence[Suspicion]]) -> None:
        """Print what is wrong with each member, and what to do, or stop."""
        self.reasons = {n: "; ".join(s.finding for s in found) for n, found in suspects.items()}
        findings: dict[str, list[str]] = {}  # by remedy: many members may need the same
        for name, suspicions in suspects.items():
            for suspicion in suspicions:
                remedy = REMEDIES.get(suspicion.kind) or self._reordering(suspicion.order)
                findings.setdefault(remedy, []).append(f"{name}: {suspicion.finding}")
        self.sentences = [
            f"Suspect: {'; '.join(found)}. {remedy}." for remedy, found in findings.items()
        ]
        if self.sentences and self.config.on_suspect == "stop":
            raise UserError(
                f"{len(suspects)} suspect member{'s' * (len(suspects) > 1)}, and "
                f"on_suspect=stop: {' '.join(self.sentences)} Nothing was attacked; clean "
                "predictions are kept. on_suspect=warn goes on"
            )
        for sentence in self.sentences:
            self.console.print(sentence)

    def _reordering(self, order: str) -> str:
        """How to get the classes into the order of a member's outputs."""
        dataset = self.config.dataset
        if order in ORDERS and "class_order" in dataset and not (dataset.classes or dataset.labels):
            setting = f"dataset.class_order={order}"
        elif "class_order" in dataset:
            setting = (
                "dataset.classes=FILE, with the names of the classes in the order of the outputs"
            )
        else:
            return "Reorder the outputs of its last layer: the order of these classes is fixed"
        return f"Use {setting} (for all members: outputs in two orders cannot be compared)"
