"""Displays progress: bars with time left on a terminal, lines elsewhere, or nothing."""

import time
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from netkin.errors import Stopped

SHARE = 0.1
"""Of an item's units, after which a line says how far its stage is, where there is no terminal."""
OFTEN, RARELY = 10.0, 60.0
"""Seconds between such lines: at least, and at most while the work advances."""
IMAGES = "check decode clean noise resize craft ensemble features gradients"
UNITS = {
    **dict.fromkeys(IMAGES.split(), "images"),
    **{"weights": "files", "train": "epochs", "transfer": "pairs", "eps": "attacks"},
    "plan": "models",
}
"""By stage."""


class Bars:
    """A bar a stage. Use as a context manager; with Console(quiet=True) nothing is displayed.

    Attributes:
        quiet: whether nothing is displayed, for all instances.
    """

    quiet = False

    def __init__(self, console: Console):
        self.console = console
        self._live = console.is_terminal and not (self.quiet or console.quiet)
        self._bars = Progress(
            TextColumn("{task.description}", table_column=_fixed(9)),
            BarColumn(12, table_column=_fixed(12)),
            MofNCompleteColumn(table_column=_fixed(13, "right")),
            TextColumn("{task.fields[unit]}", table_column=_fixed(6)),
            TimeElapsedColumn(table_column=_fixed(7)),
            TextColumn("left", table_column=_fixed(4)),
            TimeRemainingColumn(table_column=_fixed(7)),
            TextColumn(
                "{task.fields[last]}",
                style="dim",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            disable=not self._live,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._waiting: set[str] = set()

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, Stopped):
            error.done = self.done()
        self._bars.stop()

    def done(self) -> str:
        """How far the last stage has got, in words; empty before the first."""
        if not self._tasks:
            return ""
        stage = list(self._tasks)[-1]
        bar = self._bar(stage)
        unit, done, items = (bar.fields[name] for name in ("unit", "done", "items"))
        text, some = f"during {stage}, with {done} of {items} done", bool(unit and bar.total)
        return f"{text} ({bar.completed:.0f} of {bar.total:.0f} {unit})" if some else text

    def start(self, stage: str, names: Sequence[str], units: int, unit: str | None = None) -> None:
        """Begin a stage on named items, of `units` in all; `unit` names those of a new stage."""
        if stage in self._tasks:  # again, for other images: its finished bar makes room
            self._bars.update(self._tasks[stage], visible=False)
        now = time.perf_counter()
        self._tasks[stage] = self._bars.add_task(
            stage,
            total=units,
            unit=unit or UNITS.get(stage, ""),
            last="",
            began=now,
            done=0,
            items=len(names),
            line=None,  # when there was one, and at how many units
        )

    def advance(self, stage: str, units: int) -> None:
        """Some more units are done. Without a terminal, a line says so now and then."""
        self._bars.advance(self._tasks[stage], units)
        if self._live:
            return
        bar, now = self._bar(stage), time.perf_counter()
        when, before = bar.fields["line"] = bar.fields["line"] or (now, bar.completed)
        total = bar.total or 0
        much = bar.completed - before >= SHARE * total / (bar.fields["items"] or 1)
        if 0 < bar.completed < total and now - when >= (OFTEN if much else RARELY):
            done = f"{stage}: {bar.completed:.0f} of {total:.0f} {bar.fields['unit']}"
            self._line(bar, done, bar.completed / total)

    def finish(self, stage: str, name: str, note: str = "") -> None:
        """An item is done. Without a terminal, a line says so, with the time left."""
        bar = self._bar(stage)
        bar.fields["done"] += 1
        self._bars.update(self._tasks[stage], last=name)
        if not self._live:
            done, items = bar.fields["done"], bar.fields["items"]
            self._line(bar, f"{stage} {done}/{items}: {name}{note}", done / items)

    def wait(self, stage: str, name: str) -> None:
        """Another process on the store has taken the rest of an item."""
        self._bars.update(self._tasks[stage], last=f"{name}: waiting for another process")
        if not self._live and stage not in self._waiting:
            self._print(
                f"{stage}: waiting for another process on this store, which is working on {name}"
            )
        self._waiting.add(stage)

    def end(self, stage: str) -> None:
        """Fill a stage's bar: what the store already held was not counted."""
        self._bars.update(self._tasks[stage], completed=self._bar(stage).total, last="")

    def _bar(self, stage: str) -> Task:
        return next(bar for bar in self._bars.tasks if bar.id == self._tasks[stage])

    def _print(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False)

    def _line(self, bar: Task, text: str, share: float) -> None:
        """A line on a stage of which a share is done, in (0, 1]."""
        now = time.perf_counter()
        bar.fields["line"] = (now, bar.completed)
        seconds = now - bar.fields["began"]
        self._print(f"{text} ({seconds:.0f} s, about {seconds * (1 / share - 1):.0f} s left)")


def _fixed(width: int, justify: Literal["left", "right"] = "left") -> Column:
    """A column that neither wraps nor moves with its contents; all leave 15 of 80 for the last."""
    return Column(width=width, min_width=width, no_wrap=True, justify=justify)
