"""All runs of a folder, with what differs between them and their headline numbers.

A run's folder has its numbers in summary.json (`netkin.tracking.track`) and its config in .hydra.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import yaml
from markupsafe import Markup
from rich.table import Table

from experiments.cli.finish import Terminal
from experiments.cli.values import own_overrides
from netkin.errors import OutputsError
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


def jobs_table(folder: Path) -> Table | None:
    """The jobs of a sweep with their headline numbers, for the terminal; None without any."""
    entries = sorted(runs(folder), key=lambda run: _number(run.folder.name))
    if not entries:
        return None
    names = headlines(entries)[:3]
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
    return table


def _number(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isdigit() else (0, name)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return UNKNOWN
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_jobs(folder: Path) -> None:
    """Print the jobs of a sweep, unless none got far enough, and where they are."""
    console, table = Terminal(), jobs_table(folder)
    if table is not None:
        console.print("", table, f"\nJobs     {folder}", sep="\n")


def write_index(root: Path, store: str) -> tuple[Path, list[Entry]]:
    """Write index.html and index.csv into a folder of runs; returns the page's path and the runs.

    Args:
        root: the folder, such as outputs.
        store: the folder of the runs' results, in words.
    """
    entries = runs(root)
    groups: dict[str, list[Entry]] = {}
    for run in entries:
        groups.setdefault(str(run.summary.get("job_type")), []).append(run)
    sections = [
        Section(kind, blocks=[_table(root, members)]) for kind, members in sorted(groups.items())
    ]
    states = [run.state for run in entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
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
    rows = [
        {
            "folder": str(run.folder.relative_to(root)),
            **{key: run.summary.get(key) for key in ("name", "job_type", "began")},
            "state": run.state,
            "seconds": run.summary.get("seconds"),
            "overrides": " ".join(run.overrides),
            **{name: value for name, value in run.numbers.items()},
        }
        for run in entries
    ]
    table = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    write(root / "index.csv", table.write_csv, OutputsError, "folder")
    return page, entries


def _table(root: Path, entries: Sequence[Entry]) -> Markup:
    """A sortable table of the runs of one experiment, each with a link to its page."""
    settings, numbers = differing(entries)[:MOST], headlines(entries)
    head = Markup("").join(
        Markup('<th scope="col"{}><button type="button">{}</button></th>').format(
            Markup(' class="n"') if numeric else "", name.replace("_", " ")
        )
        for name, numeric in (
            *(("run", False), ("began", False), ("state", False), ("seconds", True)),
            *((name, True) for name in numbers),
            *((name, False) for name in settings),
        )
    )
    rows = []
    for run in entries:
        page, name = run.folder / "report.html", str(run.summary.get("name"))
        link = quote(str(page.relative_to(root)))
        cells = [
            Markup('<td class="name"><a href="./{}">{}</a></td>').format(link, name)
            if page.is_file()
            else Markup('<td class="name">{}</td>').format(name),
            _cell(str(run.summary.get("began", ""))[:16].replace("T", " ")),
            _cell(run.state),
            _cell(run.summary.get("seconds"), "n"),
            *(_cell(run.numbers.get(key), "n") for key in numbers),
            *(_cell(run.settings.get(key)) for key in settings),
        ]
        rows.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    return Markup(
        '<div class="scroll"><table class="sortable"><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, Markup("").join(rows))


def _cell(value: Any, style: str = "name") -> Markup:
    text = _text(value) if style == "n" else (UNKNOWN if value is None else str(value))
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return Markup('<td class="{}" data-value="{}">{}</td>').format(
        style, "" if value is None else value, short
    )
