"""Which runs are there, what was typed, and what came out? Also the end of each sweep.

A run's folder has its numbers in summary.json (`netkin.tracking.track`) and what was typed in
.hydra. Nothing is computed again.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import yaml
from omegaconf import DictConfig

from experiments.cli.finish import Terminal, printed, terminal
from experiments.cli.values import own_overrides
from netkin.data.tables import guarded
from netkin.errors import OutputsError, UserError
from netkin.report.study import Section, render
from netkin.store.files import write
from netkin.store.lease import Holder

HEADLINES = (
    *("accuracy", "gain", "similarity", "similarity/mean", "similarity/within"),
    *("similarity/between", "clean_accuracy/mean", "white_box_success/least", "noise/mean"),
)
"""Numbers that are shown first, of those that a run has; others follow where there is room."""
SHOWN = 5
"""Headline numbers in a table."""
TEXTS = ("name", "job_type", "state", "began")
"""What each summary has in words."""


@dataclass(frozen=True)
class Entry:
    """A run: its folder, summary.json, and overrides as typed."""

    folder: Path
    summary: Mapping[str, Any]
    overrides: Sequence[str]

    @property
    def state(self) -> str:
        """Finished, failed, stopped, running, or "lost" of a run that is not running here."""
        state = str(self.summary["state"])
        if state == "running":
            with suppress(TypeError, KeyError):
                return state if Holder(**self.summary["holder"]).runs_here() else "lost"
        return state

    @property
    def numbers(self) -> Mapping[str, Any]:
        """The values of the run's summary, by name."""
        return self.summary["numbers"]


def runs(root: Path) -> list[Entry]:
    """The runs below a folder, the latest first; what is no run, or cannot be read, is left out."""
    found = []
    for file in root.rglob("summary.json"):
        with suppress(OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            # Other programs have files of this name.
            summary, typed = json.loads(file.read_text()), file.parent / ".hydra/overrides.yaml"
            numbers, texts = summary["numbers"], [summary[key] for key in TEXTS]
            if isinstance(numbers, dict) and all(isinstance(text, str) for text in texts):
                summary["seconds"] = float(summary["seconds"])
                overrides = yaml.safe_load(typed.read_text()) if typed.is_file() else []
                found.append(Entry(file.parent, summary, list(map(str, overrides))))
    return sorted(found, key=lambda run: run.summary["began"], reverse=True)


def headlines(entries: Sequence[Entry]) -> list[str]:
    """The names of the numbers to show of some runs, at most `SHOWN`."""
    names = dict.fromkeys(
        name
        for run in entries
        for name, value in run.numbers.items()
        if isinstance(value, int | float) and not name.startswith(("seconds", "images", "passes"))
    )
    return [*dict.fromkeys([name for name in HEADLINES if name in names] + [*names])][:SHOWN]


def print_jobs(folder: Path) -> None:
    """Print the jobs of a sweep with their headline numbers, unless none got far enough."""
    entries = sorted(runs(folder), key=lambda run: (len(run.folder.name), run.folder.name))
    if not entries:
        return
    names = headlines(entries)[:3]
    rows = [
        {
            "job": run.folder.name,
            "override": "\n".join(own_overrides(run.overrides, folder)),
            "state": run.state,
            **{name: run.numbers.get(name) for name in names},
            "time_seconds": run.summary["seconds"],
        }
        for run in entries
    ]
    console = Terminal()
    table = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    table = printed(table, width=console.width)
    console.print("", table, f"\nJobs     {folder}", sep="\n")


def run(config: DictConfig) -> None:
    """The study, from a composed config: write index.html and index.csv into a folder of runs."""
    root = Path(str(config.runs)).expanduser()
    if not root.is_dir():
        raise UserError(f"runs must be a folder of runs such as outputs, got {config.runs}")
    entries = runs(root)
    rows = [
        {
            "folder": str(run.folder.relative_to(root)),
            **{key: run.summary[key] for key in ("name", "job_type", "began")},
            "state": run.state,
            "seconds": run.summary["seconds"],
            "typed": " ".join(run.overrides),
            **run.numbers,
        }
        for run in entries
    ]
    table = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    links = {
        row["folder"]: f"./{quote(row['folder'])}/report.html"
        for row in rows
        if (root / row["folder"] / "report.html").is_file()
    }
    sections = []
    for kind in sorted({row["job_type"] for row in rows}):
        own = [run for run in entries if run.summary["job_type"] == kind]
        columns = ("folder", "name", "began", "state", "seconds", *headlines(own), "typed")
        shown = table.filter(job_type=kind).select(columns)
        sections.append(Section(kind, tables={"": shown}))
    counts = ", ".join(f"{n} {state}" for state, n in Counter(r.state for r in entries).items())
    html = render(
        "All runs",
        f"The runs below {root}, by experiment, with what was typed. Their results are in "
        f"{config.store.dir}.",
        [f"{len(entries)} runs{f': {counts}' if counts else ''}."],
        sections,
        "",
        ["index.csv"],
        links,
    )
    page = root / "index.html"
    write(page, lambda file: file.write_text(html, encoding="utf-8"), OutputsError, "folder")
    write(root / "index.csv", guarded(table).write_csv, OutputsError, "folder")
    terminal().print(
        f"{len(entries)} runs below {root}\n\nReport   {page}\nTables   {root}/index.csv"
    )
