"""What a store holds, which of its files are damaged, and how parts of it are removed.

Only the files are read: no config, model or dataset is needed.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from netkin.errors import DamagedFile, UserError, near
from netkin.store import folder
from netkin.store.files import digest, read_json, read_tensors
from netkin.store.layout import check_weights, manifest_problem, owner
from netkin.store.lease import holders, sweep
from netkin.store.outcomes import OutcomeStore, contents, read_table

YOUNG = 3600.0
"""Seconds for which a temporary file, or a lease that is not touched, may belong to a running
process of another machine."""


PARTS = {
    **dict.fromkeys(("path", "kind", "member"), pl.String),
    **dict.fromkeys(("done", "total", "bytes"), pl.Int64),
}
Row = tuple[Path, str, str, int, int | None, int]
"""A part of a store by its path, as `parts` describes it."""


def subsets(root: Path) -> list[Path]:
    """The folders of all subsets of a store, <dataset>/<subset>-<hash>."""
    kinds = ("manifest.json", "views", "clean")
    return sorted({path.parent for kind in kinds for path in root.glob(f"*/*/{kind}")})


def _attacks(subset: Path) -> list[Path]:
    return sorted(p for p in subset.glob("*-*") if p.is_dir())


def parts(root: Path) -> pl.DataFrame:
    """Everything that a store holds, a row a part, in the order of its folders.

    Columns: path, of its file or folder, below the root; kind: views, clean, adversarial, outcomes,
    or a folder of the root such as weights; member: the model, of outcomes the target, "" where
    there is none; done and total: pieces that are stored, and of the complete part: shards of
    images, sources that a target was evaluated on, files of clean logits; complete, the share that
    is done; and bytes. total and complete are null where they are unknown.
    """
    known = subsets(root)
    datasets = {subset.parent for subset in known}
    rows: list[Row] = [
        (path, other.name, unquote(path.stem), 1, None, size_of(path))
        for other in sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        for path in sorted(other.glob("*/*"))
        if other not in datasets and (path.is_dir() or path.suffix == ".safetensors")
    ]
    rows += [row for subset in known for row in _parts_of(subset)]
    named = [(path.relative_to(root).as_posix(), *row) for path, *row in rows]
    table = pl.DataFrame(named, PARTS, orient="row")
    return table.insert_column(5, (table["done"] / table["total"]).alias("complete"))


def _parts_of(subset: Path) -> Iterator[Row]:
    images = len(read_json(subset / "manifest.json").get("ids", ()))

    def shards(path: Path, kind: str, member: str = "") -> Row:
        shard_size = identity(path).get("shard_size", 0)
        total = math.ceil(images / shard_size) if shard_size and images else None
        return path, kind, member, len(_files(path, "*.safetensors")), total, size_of(path)

    for path in sorted(subset.glob("views/*")):
        yield shards(path, "views")
    for path in sorted(subset.glob("clean/*")):
        done = (path / "logits.safetensors").is_file()
        yield path, "clean", unquote(path.name), int(done), 1, size_of(path)
    for attack in _attacks(subset):
        sources = sorted(attack.glob("adversarial/*"))
        for path in sources:
            yield shards(path, "adversarial", unquote(path.name))
        for path in sorted(p for p in attack.glob("outcomes*/*") if p.is_dir()):
            evaluated: set[str] = set()
            for file in path.glob("[!.]*.parquet"):
                with suppress(DamagedFile):  # which `damage` finds
                    evaluated |= contents(file).parts.keys()
            total, size = len(sources) or None, size_of(path)
            yield path, "outcomes", unquote(path.name), len(evaluated), total, size


@dataclass(frozen=True)
class Damage:
    """A damaged file, and what to remove so that a run computes it again."""

    path: Path
    problem: str
    remove: Path


def checked(root: Path) -> list[Path]:
    """The files that `damage` checks."""
    names = ("manifest.json", "identity.json", "*.safetensors", "*.parquet")
    return sorted({file for name in names for file in _files(root, f"**/{name}")})


def damage(root: Path, advance: Callable[[int], None]) -> list[Damage]:
    """All damaged files of a store; `advance` is called with 1 after each of `checked`.

    Each is compared with its own checksum, with the identity of its folder, or with the hash in its
    folder's name. Whether that is the identity of a run's model is checked by that run.
    """
    damages, known = [], subsets(root)
    for file in checked(root):
        if problem := _problem(root, file, known):
            # The identity of these entries is lost with the file; others' is in the folder's name.
            above = file.parents[1].name
            entire = file.name == "identity.json" and above in ("adversarial", "clean")
            damages.append(Damage(file, problem, file.parent if entire else file))
        advance(1)
    return damages


def _problem(root: Path, file: Path, subsets: Sequence[Path]) -> str | None:
    """What is wrong with a file, in words; None where it is whole."""
    hashed = file.parent.name.rpartition("-")[2]
    try:
        if file.name == "manifest.json":
            fits = str(read_json(file).get("sha256", "")).startswith(hashed)
            other = None if fits else "it lists other images than its folder is for"
            return manifest_problem(file) or other
        if file.name == "identity.json":
            content, above = read_json(file), file.parents[1]
            named = content.get("attack") if above in subsets else None
            named = content if above.name == "views" else named
            if named is not None and not digest(named).startswith(hashed):
                return "it does not fit its folder's name"
            return None if content else "it cannot be read"
        if file.suffix == ".parquet":
            rows, of = read_table(file), contents(file)
            fits = set(rows["source"]) <= of.parts.keys() and set(rows["target"]) <= {of.target}
            return None if fits else "it has rows of other models than it lists"
        kind = file.relative_to(root).parts[0]
        if kind == "weights":
            check_weights(file)
        else:
            within = any(subset in file.parents for subset in subsets)
            of = owner(file, identity(file.parent)) if within else None
            read_tensors(file, of, ours=within or kind == "training")
    except DamagedFile as error:
        return error.problem
    return None


def leftovers(root: Path) -> list[Path]:
    """Half-written files and leases of processes that have ended: a running one touches its leases
    every few seconds."""
    sweep(root)
    patterns = ("**/.*.tmp", "**/.*.new", ".leases/*")
    return [file for each in patterns for file in root.glob(each) if _age(file) > YOUNG]


def _age(file: Path) -> float:
    """Seconds since a file was written or touched; 0 for one that is gone."""
    try:
        return time.time() - file.stat().st_mtime
    except OSError:
        return 0.0


def at_work(root: Path) -> list[tuple[str, Path]]:
    """Which processes work on a store: (process in words, the path that each makes)."""
    return [
        (f"process {holder.pid} on {holder.host}", root / holder.product)
        for holder, lives, file in holders(root)
        if holder is not None and lives and _age(file) <= YOUNG
    ]


def selected(root: Path, names: Sequence[str]) -> list[Path]:
    """The paths of names: paths below the root, or members (everything but their weights).

    Raises UserError for a name of nothing in the store.
    """
    chosen: dict[Path, None] = {}
    for name in names:
        path = (root / name).resolve()
        if name and path != root and root in path.parents and path.exists():
            chosen[path] = None
        elif member := [path for subset in subsets(root) for path in _of_member(subset, name)]:
            chosen |= dict.fromkeys(member)
        else:
            members = set(parts(root)["member"]) - {""}
            raise UserError(
                f"the store {root} holds nothing named {name!r}, which may be damaged, leftovers, "
                f"a member, or a path below the store{near(name, members)}"
            )
    return list(chosen)


def _of_member(subset: Path, member: str) -> Iterator[Path]:
    """The folders of a member, and its pairs with other targets: paths that stand for these."""
    name, attacks = folder(member), _attacks(subset)
    tables = [table for attack in attacks for table in attack.glob("outcomes*")]
    for within in (subset / "clean", *(attack / "adversarial" for attack in attacks), *tables):
        if (within / name).exists():
            yield within / name
    for table in map(OutcomeStore, tables):
        for target in sorted(unquote(path.name) for path in table.path.glob("*/")):
            if target != member and any(member in contents(f).parts for f in table.files(target)):
                yield table.pair(member, target)


def remove(root: Path, paths: Sequence[Path]) -> None:
    """Remove files, folders and pairs. Raises UserError while a running process writes to one."""
    for process, product in at_work(root):
        for path in paths:
            if path == product or path in product.parents:
                raise UserError(f"{path} is being made by {process}; wait, or stop it")
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            elif path.parents[1].name.startswith("outcomes") and not path.exists():
                table = OutcomeStore(path.parents[1])
                table.remove(unquote(path.name), unquote(path.parent.name))
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be removed ({error.strerror})") from None


def size_of(*paths: Path) -> int:
    """Bytes of files and folders."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def _files(root: Path, pattern: str) -> list[Path]:
    return [path for path in root.glob(pattern) if path.is_file() and path.name[0] != "."]


def identity(entry: Path) -> dict[str, Any]:
    """The identity in an entry's folder; empty where it cannot be read."""
    return read_json(entry / "identity.json")
