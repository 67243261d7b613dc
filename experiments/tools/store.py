"""What does the store hold, is it whole, and what can go?

    python evaluate.py experiment=store                               lists it
    python evaluate.py experiment=store check=true                    and reads every byte
    python evaluate.py experiment=store remove=damaged confirm=true   what fails that check
    python evaluate.py experiment=store remove=leftovers confirm=true half-written files
    python evaluate.py experiment=store remove=[vit_ti] confirm=true  a member, but its weights

What was removed is made again when it is needed. Writes store.csv, and damage.csv after a check.
"""

from pathlib import Path

import polars as pl
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table

from experiments.common.values import run_folder
from experiments.tools.plan import size
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.page import fraction_text
from netkin.store import inventory
from netkin.store.files import write
from netkin.store.inventory import Damage, Part

MANY = 8
"""Paths that are named one by one."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    for name in ("check", "confirm"):
        if not isinstance(config[name], bool):
            raise UserError(f"{name} must be true or false, got {config[name]!r}")
    root = Path(config.store.dir).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"there is no store {root}; choose another with store.dir=PATH")
    wanted = config.remove if isinstance(config.remove, ListConfig) else [config.remove]
    wanted = [str(name) for name in wanted]
    console, folder = Console(soft_wrap=True), run_folder()
    if wanted:
        _remove(root, wanted, config.confirm, console)
        return
    parts = inventory.parts(root)
    _show(root, parts, console)
    write(folder / "store.csv", _table(root, parts).write_csv)
    for line in inventory.at_work(root):
        console.print(f"At work: {line}", highlight=False)
    if config.check:
        _check(root, folder, console)
    console.print(f"Table    {folder / 'store.csv'}", highlight=False)


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


def _show(root: Path, parts: list[Part], console: Console) -> None:
    console.print(f"{root}: {size(sum(part.size for part in parts))}", highlight=False)
    groups: dict[Path, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.path.parent, []).append(part)
    for folder, members in groups.items():
        shown = Table(
            members[0].kind,
            title=f"{folder.relative_to(root)}{_attack(folder)}",
            title_justify="left",
        )
        for name in ("there", "complete", "size"):
            shown.add_column(name, justify="right")
        for part in members:
            whole = f"{part.done} of {part.total}" if part.total else ""
            rate = f"{part.done / part.total:.0%}" if part.total else ""
            shown.add_row(part.member or part.path.name, whole, rate, size(part.size))
        console.print(shown)


def _attack(folder: Path) -> str:
    """The settings of the attack that a folder belongs to, in words."""
    identity = inventory.identity(folder.parent).get("attack", {})
    words = ", ".join(
        f"{key} {fraction_text(value) if isinstance(value, float) else value}"
        for key, value in identity.items()
        if not key.startswith("_")
    )
    return f"  ({words})" if words else ""


def _check(root: Path, folder: Path, console: Console) -> None:
    found = _damage(root, console)
    rows = [{"path": str(d.path.relative_to(root)), "problem": d.problem} for d in found]
    table = pl.DataFrame(rows, schema={"path": pl.String, "problem": pl.String})
    write(folder / "damage.csv", table.write_csv)
    if not found:
        console.print("Every file is what was written.", highlight=False)
        return
    for row in rows:
        console.print(f"damaged: {row['path']}: {row['problem']}", highlight=False)
    raise UserError(
        f"{len(found)} file{'s are' if len(found) > 1 else ' is'} damaged, such as "
        f"{found[0].path} ({found[0].problem}); `python evaluate.py experiment=store "
        f"store.dir={root} remove=damaged confirm=true` removes what is damaged, and the next run "
        "makes it again"
    )


def _damage(root: Path, console: Console) -> list[Damage]:
    files = inventory.checked(root)
    with Bars(console) as bars:
        bars.start("check", ["files"], len(files), unit="files")
        found = inventory.damage(root, lambda n: bars.advance("check", n))
        bars.end("check")
    console.print(f"Checked {len(files)} files.", highlight=False)
    return found


def _remove(root: Path, wanted: list[str], confirmed: bool, console: Console) -> None:
    paths: list[Path] = []
    if "damaged" in wanted:
        paths += dict.fromkeys(damage.remove for damage in _damage(root, console))
    if "leftovers" in wanted:
        paths += inventory.leftovers(root)
    paths += inventory.selected(root, [n for n in wanted if n not in ("damaged", "leftovers")])
    if not paths:
        console.print("There is nothing to remove.", highlight=False)
        return
    held = size(inventory.size_of(paths))
    if confirmed:
        inventory.remove(root, paths)
    verb = "Removed" if confirmed else "Would remove"
    for path in paths[:MANY]:
        console.print(f"{verb} {path.relative_to(root)}", highlight=False)
    more = f" and {len(paths) - MANY} more" if len(paths) > MANY else ""
    console.print(f"{verb} {len(paths)} parts{more and ','}{more} ({held}).", highlight=False)
    if not confirmed:
        console.print("Nothing was removed: add confirm=true to do so.", highlight=False)
