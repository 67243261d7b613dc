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

from experiments.cli.finish import described, finish, printed, terminal
from experiments.cli.values import run_folder
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs, Section
from netkin.report.text import and_more, settings_text, size
from netkin.store import inventory
from netkin.store.inventory import Damage

MANY = 8
"""The most paths that are listed."""


def run(config: DictConfig) -> None:
    root = Path(config.store.dir).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"there is no store {root}; choose another with store.dir=PATH")
    remove = config.remove if isinstance(config.remove, ListConfig) else [config.remove]
    console, outputs = terminal(), Outputs(run_folder())
    if remove:
        _remove(root, list(map(str, remove)), config.confirm, console)
        return
    parts = outputs.table("store", inventory.parts(root))
    tables = _by_folder(root, parts)
    for title, table in tables.items():
        console.print(printed(table, title, console.width))
    command = f"python evaluate.py experiment=store store.dir={shlex.quote(str(root))}"
    answer = [f"{root} holds {size(int(parts['bytes'].sum()))} in {parts.height} parts."]
    for process, product in inventory.at_work(root):
        answer.append(f"In progress: {process}: {product.relative_to(root)}.")
    sections = [Section("Parts", (), tables)]
    damage = _damage(root, console) if config.check else []
    count = f"{len(damage)} file{'s are' if len(damage) > 1 else ' is'} damaged"
    if config.check:
        rows = [(str(d.path.relative_to(root)), d.problem) for d in damage]
        schema = {"path": pl.String, "problem": pl.String}
        table = outputs.table("damage", pl.DataFrame(rows, schema, orient="row"))
        listed = and_more((f"{d.path.name} ({d.problem})" for d in damage), MANY)
        answer.append(f"{count}: {listed}." if damage else "No file is damaged.")
        sections[:0] = [Section("Damage", (), {"": table})] * bool(damage)
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
        raise UserError(
            f"{count}, such as {damage[0].path} ({damage[0].problem}); `{command} remove=damaged "
            "confirm=true` removes what is damaged, and the next run computes it again"
        )


def _by_folder(root: Path, parts: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """A table for each folder of parts, by its kind, path, and attack."""
    tables = {}
    path, member = pl.col("path"), pl.col("member")
    name = pl.when(member == "").then(path.str.extract("([^/]*)$")).otherwise(member)
    parts = parts.with_columns(part=name, folder=path.str.replace("/[^/]*$", ""))
    for (kind, folder), table in parts.group_by("kind", "folder", maintain_order=True):
        attack = settings_text(inventory.identity((root / folder).parent).get("attack", {}))
        title = f"{kind}: {folder}{f'  ({attack})' if attack else ''}"
        tables[title] = table.select(
            "part", "done", "total", complete_rate="complete", size_bytes="bytes"
        )
    return tables


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
    held = size(inventory.size_of(*paths))
    if confirmed:
        inventory.remove(root, paths)
    verb = "Removed" if confirmed else "Would remove"
    for path in paths[:MANY]:
        console.print(f"{verb} {path.relative_to(root)}")
    parts = "1 part" if len(paths) == 1 else f"{len(paths)} parts"
    console.print(f"{verb} {parts} in all ({held}).")
    if not confirmed:
        console.print("Nothing was removed: add confirm=true to do so.")
