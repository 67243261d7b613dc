"""Which runs are there, how do they differ, and what came out? Also the end of each sweep.

A run's folder has its numbers in summary.json (`netkin.tracking.track`) and its config in .hydra.
Nothing is computed again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import yaml
from omegaconf import DictConfig
from rich.table import Table

from experiments.cli.finish import Terminal, terminal
from experiments.cli.values import own_overrides
from netkin.data.tables import guarded
from netkin.errors import OutputsError, UserError
from netkin.report.study import Section, render
from netkin.report.text import UNKNOWN, duration
from netkin.store.files import write
from netkin.store.lease import Holder

HEADLINES = (
    *("accuracy", "gain", "similarity", "similarity/mean", "similarity/within"),
    *("similarity/between", "clean_accuracy/mean", "white_box_success/least", "noise/mean"),
)
"""Numbers that are shown first, of those that a run has; others follow where there is room."""
SHOWN, MOST = 5, 8
"""Headline numbers, and columns of settings, in a table."""
ANYWHERE = ("hydra", "logger", "quiet", "index", "hardware")
"""Groups whose settings do not count as differences of runs."""


@dataclass(frozen=True)
class Entry:
    """A run: its folder, summary.json, overrides as typed, and config as flat keys."""

    folder: Path
    summary: Mapping[str, Any]
    overrides: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def state(self) -> str:
        """Finished, failed, stopped, running, or "lost" of a run that is not running here."""
        state = str(self.summary.get("state"))
        if state == "running":
            with suppress(TypeError, KeyError):
                return state if Holder(**self.summary["holder"]).runs_here() else "lost"
        return state

    @property
    def numbers(self) -> Mapping[str, Any]:
        """The values of the run's summary, by name."""
        return self.summary.get("numbers", {})


def runs(root: Path) -> list[Entry]:
    """The runs below a folder, the latest first; what is no run, or cannot be read, is left out."""
    found = []
    for file in root.rglob("summary.json"):
        with suppress(OSError, ValueError):
            summary, hydra = json.loads(file.read_text()), file.parent / ".hydra"
            if not _is_run(summary):
                continue
            overrides, settings = [], {}
            with suppress(OSError, ValueError, AttributeError, yaml.YAMLError):
                overrides = list(map(str, yaml.safe_load((hydra / "overrides.yaml").read_text())))
                settings = dict(_flat(yaml.safe_load((hydra / "config.yaml").read_text())))
            found.append(Entry(file.parent, summary, overrides, settings))
    return sorted(found, key=lambda run: str(run.summary.get("began")), reverse=True)


def _is_run(summary: Any) -> bool:
    """Whether the content of a summary.json is a run's: other programs write files of this name."""
    return (
        isinstance(summary, dict)
        and all(isinstance(summary.get(key), str) for key in ("name", "job_type", "state", "began"))
        and isinstance(summary.get("seconds"), int | float)
        and isinstance(summary.get("numbers"), dict)
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if not prefix and key in ANYWHERE:
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(entries: Sequence[Entry]) -> list[str]:
    """The settings in which some runs differ, those that differ most first."""
    keys = dict.fromkeys(key for run in entries for key in run.settings)
    values = {key: {json.dumps(run.settings.get(key)) for run in entries} for key in keys}
    apart = [key for key in keys if len(values[key]) > 1]
    # An interpolation of another key, such as ${dataset.eps}, differs with it.
    apart = [k for k in apart if not all("${" in v for v in values[k])]
    return sorted(apart, key=lambda key: -len(values[key]))


def headlines(entries: Sequence[Entry]) -> list[str]:
    """The names of the numbers to show of some runs, at most `SHOWN`."""
    names = dict.fromkeys(
        name
        for run in entries
        for name, value in run.numbers.items()
        if isinstance(value, int | float)
    )
    first = [name for name in HEADLINES if name in names]
    rest = [
        n for n in names if n not in first and not n.startswith(("seconds", "images", "passes"))
    ]
    return [*first, *rest][:SHOWN]


def print_jobs(folder: Path) -> None:
    """Print the jobs of a sweep with their headline numbers, unless none got far enough."""
    entries = sorted(runs(folder), key=lambda run: _number(run.folder.name))
    if not entries:
        return
    names, console = headlines(entries)[:3], Terminal()
    table = Table("job", box=None, pad_edge=False)
    table.add_column("override", overflow="fold")
    table.add_column("state")
    for name in names:
        table.add_column(name.replace("/", "\n").replace("_", " "), justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for run in entries:
        table.add_row(
            run.folder.name,
            "\n".join(own_overrides(run.overrides, folder)),
            run.state,
            *(_text(run.numbers.get(name)) for name in names),
            duration(float(run.summary.get("seconds") or 0)),
        )
    console.print("", table, f"\nJobs     {folder}", sep="\n")


def _number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdigit() else (0, name)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return UNKNOWN
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def run(config: DictConfig) -> None:
    """The study, from a composed config: write index.html and index.csv."""
    root = Path(str(config.runs)).expanduser()
    if not root.is_dir():
        raise UserError(f"runs must be a folder of runs such as outputs, got {config.runs}")
    page, entries = write_index(root, str(config.store.dir))
    terminal().print(
        f"{len(entries)} runs below {root}\n\nReport   {page}\nTables   {root}/index.csv"
    )


def write_index(root: Path, store: str) -> tuple[Path, list[Entry]]:
    """Write index.html and index.csv into a folder of runs; returns the page's path and the runs.

    Args:
        root: the folder, such as outputs.
        store: the folder of the runs' results, in words.
    """
    entries = runs(root)
    rows = [
        {
            "folder": str(run.folder.relative_to(root)),
            **{key: run.summary[key] for key in ("name", "job_type", "began")},
            "state": run.state,
            "seconds": float(run.summary["seconds"]),
            "overrides": " ".join(run.overrides),
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
        columns = ("folder", "name", "began", "state", "seconds", *headlines(own))
        settings = [
            pl.Series(key, [_text(run.settings.get(key)) for run in own])
            for key in differing(own)[:MOST]
            if key not in columns
        ]
        shown = table.filter(job_type=kind).select(columns).with_columns(settings)
        sections.append(Section(kind, tables={"": shown}, links=links))
    counts = ", ".join(f"{n} {state}" for state, n in Counter(r.state for r in entries).items())
    html = render(
        "All runs",
        f"The runs below {root}, by experiment, with the settings in which they differ. Their "
        f"results are in {store}.",
        [f"{len(entries)} runs{f': {counts}' if counts else ''}."],
        sections,
        "",
        ["index.csv"],
    )
    page = root / "index.html"
    write(page, lambda file: file.write_text(html, encoding="utf-8"), OutputsError, "folder")
    write(root / "index.csv", guarded(table).write_csv, OutputsError, "folder")
    return page, entries
