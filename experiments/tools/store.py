"""What does the store hold, is any of it damaged, and what can be removed?

    python evaluate.py experiment=store                               list it
    python evaluate.py experiment=store check=true                    also read every byte
    python evaluate.py experiment=store remove=damaged confirm=true   remove what fails that check
    python evaluate.py experiment=store remove=leftovers confirm=true half-written files, and
                                      leases of processes that another machine has lost
    python evaluate.py experiment=store remove=[vit_ti] confirm=true  a member, except its weights

What is removed is computed again when it is needed. Writes store.csv, report.html and, after a
check, damage.csv.
"""

import shlex
from pathlib import Path

import polars as pl
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table

from experiments.cli.finish import finish, terminal
from experiments.cli.study import described
from experiments.cli.values import run_folder
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs, Section
from netkin.report.text import and_more, duration, settings_text, size
from netkin.store import inventory
from netkin.store.inventory import Damage, Part

MANY = 8
"""The most paths that are listed."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    for name in ("check", "confirm"):
        if not isinstance(config[name], bool):
            raise UserError(f"{name} must be true or false, got {config[name]!r}")
    root = Path(config.store.dir).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"there is no store {root}; choose another with store.dir=PATH")
    remove = config.remove if isinstance(config.remove, ListConfig) else [config.remove]
    names = [str(name) for name in remove]
    console, folder = terminal(), run_folder()
    if names:
        _remove(root, names, config.confirm, console)
        return
    parts, outputs = inventory.parts(root), Outputs(folder)
    _print(root, parts, console)
    outputs.table("store", _table(root, parts))
    sections = [Section("Parts", (), _page_tables(root, parts))]
    held = size(sum(part.size for part in parts))
    answer = [f"{root} holds {held} in {len(parts)} parts."]
    for process, product, unseen in inventory.at_work(root):
        if unseen is None:
            answer.append(f"In progress: {process}: {product}.")
        else:
            answer.append(
                f"Last seen {duration(unseen)} ago: {process}, at work on {product}. If it has "
                f"ended: python evaluate.py experiment=store store.dir={shlex.quote(str(root))} "
                "remove=leftovers confirm=true"
            )
    damage = _damage(root, console) if config.check else []
    if config.check:
        table = outputs.table("damage", _damage_table(root, damage))
        answer.append(_verdict(damage))
        if damage:
            sections.insert(0, Section("Damage", (), {"": table}))
    finish(
        outputs,
        console,
        "What does the store hold?",
        "The parts of the store by its files; no model or dataset was loaded.",
        answer,
        sections,
        described(config),
    )
    if damage:
        raise _damaged(root, damage)


def _table(root: Path, parts: list[Part]) -> pl.DataFrame:
    """One row a part: path, kind, member, done, total, complete (a rate, if known), bytes."""
    return pl.DataFrame(
        [
            {
                "path": part.path.relative_to(root).as_posix(),
                "kind": part.kind,
                "member": part.member,
                "done": part.done,
                "total": part.total or None,
                "complete": part.done / part.total if part.total else None,
                "bytes": part.size,
            }
            for part in parts
        ],
        schema={
            "path": pl.String,
            "kind": pl.String,
            "member": pl.String,
            "done": pl.Int64,
            "total": pl.Int64,
            "complete": pl.Float64,
            "bytes": pl.Int64,
        },
    )


def _page_tables(root: Path, parts: list[Part]) -> dict[str, pl.DataFrame]:
    """A table for each folder."""
    return {
        f"{members[0].kind}: {folder.relative_to(root)}{_attack(folder)}": pl.DataFrame(
            {
                "part": [part.member or part.path.name for part in members],
                "done": [part.done for part in members],
                "total": [part.total or None for part in members],
                "size_bytes": [part.size for part in members],
            },
            schema_overrides={"total": pl.Int64},
        )
        for folder, members in _by_folder(parts).items()
    }


def _by_folder(parts: list[Part]) -> dict[Path, list[Part]]:
    groups: dict[Path, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.path.parent, []).append(part)
    return groups


def _print(root: Path, parts: list[Part], console: Console) -> None:
    for folder, members in _by_folder(parts).items():
        table = Table(
            members[0].kind,
            title=f"{folder.relative_to(root)}{_attack(folder)}",
            title_justify="left",
        )
        for name in ("done", "complete", "size"):
            table.add_column(name, justify="right")
        for part in members:
            done = f"{part.done} of {part.total}" if part.total else ""
            rate = f"{part.done / part.total:.0%}" if part.total else ""
            table.add_row(part.member or part.path.name, done, rate, size(part.size))
        console.print(table)


def _attack(folder: Path) -> str:
    """The settings of the attack that a folder belongs to, in words."""
    words = settings_text(inventory.identity(folder.parent).get("attack", {}))
    return f"  ({words})" if words else ""


def _damage_table(root: Path, damage: list[Damage]) -> pl.DataFrame:
    rows = [{"path": str(d.path.relative_to(root)), "problem": d.problem} for d in damage]
    return pl.DataFrame(rows, schema={"path": pl.String, "problem": pl.String})


def _verdict(damage: list[Damage]) -> str:
    if not damage:
        return "No file is damaged."
    named = and_more((f"{d.path.name} ({d.problem})" for d in damage), MANY)
    return f"{len(damage)} file{'s are' if len(damage) > 1 else ' is'} damaged: {named}."


def _damaged(root: Path, damage: list[Damage]) -> UserError:
    return UserError(
        f"{len(damage)} file{'s are' if len(damage) > 1 else ' is'} damaged, such as "
        f"{damage[0].path} ({damage[0].problem}); `python evaluate.py experiment=store "
        f"store.dir={root} remove=damaged confirm=true` removes what is damaged, and the next run "
        "computes it again"
    )


def _damage(root: Path, console: Console) -> list[Damage]:
    files = inventory.checked(root)
    with Bars(console) as bars:
        bars.start("check", ["files"], len(files), unit="files")
        damage = inventory.damage(root, lambda n: bars.advance("check", n))
        bars.end("check")
    console.print(f"Checked {len(files)} files.")
    return damage


def _remove(root: Path, names: list[str], confirmed: bool, console: Console) -> None:
    paths: list[Path] = []
    if "damaged" in names:
        paths += dict.fromkeys(damage.remove for damage in _damage(root, console))
    if "leftovers" in names:
        paths += inventory.leftovers(root)
    paths += inventory.selected(root, [n for n in names if n not in ("damaged", "leftovers")])
    if not paths:
        console.print("There is nothing to remove.")
        return
    held = size(inventory.size_of(paths))
    if confirmed:
        inventory.remove(root, paths)
    verb = "Removed" if confirmed else "Would remove"
    for path in paths[:MANY]:
        console.print(f"{verb} {path.relative_to(root)}")
    parts = "1 part" if len(paths) == 1 else f"{len(paths)} parts"
    console.print(f"{verb} {parts} in all ({held}).")
    if not confirmed:
        console.print("Nothing was removed: add confirm=true to do so.")
