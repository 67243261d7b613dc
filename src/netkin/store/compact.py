"""Outcomes in one file a source, instead of one a pair: a million small files take minutes to open.

`source=<A>/targets.parquet` has the rows of many targets on A's images, sorted by target, and in
its metadata what `target=<B>.parquet` has of each. Files of single targets may lie beside it, such
as those of later runs; where both have a target, the single file counts.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import polars as pl

from netkin.errors import DamagedFile, StoreError
from netkin.store.files import check_seal, damaged, parquet_metadata, write_table
from netkin.store.lease import holders, lease
from netkin.store.names import unfolded

NAME = "targets.parquet"
MANY = 10_000
"""Files of outcomes above which it is worth it to compact them."""

Notes = dict[str, str]
"""A table's metadata, such as made_by, without its checksum."""


def notes(file: Path) -> Notes:
    """The metadata of one pair's file. Raises DamagedFile where it was cut or altered."""
    found = parquet_metadata(file)
    return {key: found[key] for key in found if key not in ("xxh3", "ARROW:schema")}


def index(file: Path) -> Mapping[str, Notes]:
    """The targets in a source's compacted file, each with its notes; empty where there is none.

    Raises DamagedFile where the file was cut or altered.
    """
    try:
        stat = file.stat()
    except OSError:
        return {}
    return _index(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _index(file: Path, _modified: int, _size: int) -> Mapping[str, Notes]:
    """Of a file as it was last modified: a source's pairs are looked up one after another."""
    try:
        return json.loads(parquet_metadata(file)["made_by"])
    except ValueError as error:
        raise damaged(file, error) from None


def single_files(source: Path) -> list[Path]:
    """The files of single targets in a source's folder."""
    with suppress(OSError):
        names = [p for p in source.iterdir() if p.name[0] != "." and p.suffix == ".parquet"]
        return sorted(path for path in names if path.name.startswith("target="))
    return []


def target_of(file: Path) -> str:
    """The target of a single file, by its name."""
    return unfolded(file.stem.removeprefix("target="))


@dataclass(frozen=True)
class Compacted:
    """What became of one source's files.

    Attributes:
        source: its folder.
        files: single files that are now rows of the compacted one.
        damaged: single files that were left as they are.
        reason: why the source was left out; "" where it was not.
    """

    source: Path
    files: int = 0
    damaged: int = 0
    reason: str = ""


def sources(root: Path) -> list[Path]:
    """The folders of a store's sources with outcomes, below its root."""
    return sorted(p for p in root.glob("*/*/*/outcomes*/source=*") if p.is_dir())


def compact(root: Path, source: Path) -> Compacted:
    """Move the rows of a source's single files into its compacted one.

    The new file is written, flushed, renamed and read back before a single file is removed, so that
    a process that is killed at any moment leaves all rows readable.

    Args:
        root: of the store.
        source: one of `sources`.

    Raises StoreError where the new file cannot be written or does not have the rows.
    """
    if any(lives and source in (root / h.product).parents for h, lives, _ in holders(root) if h):
        return Compacted(source, reason="a run is at work on it")
    with lease(root, source / NAME) as held:
        if not held:
            return Compacted(source, reason="another process is compacting it")
        files = single_files(source)
        if not files:
            return Compacted(source)
        try:
            kept = read(source / NAME) if (source / NAME).is_file() else (None, {})
        except DamagedFile as error:
            return Compacted(source, reason=f"{NAME} is damaged ({error.problem})")
        return _merge(source, files, *kept)


def _merge(
    source: Path, files: list[Path], rows: pl.DataFrame | None, of: Mapping[str, Notes]
) -> Compacted:
    """Of single files, and the rows and notes of the compacted one."""
    moved, new = [], {}
    for file in files:
        stat = file.stat()
        with suppress(DamagedFile):
            check_seal(file)
            new[target_of(file)] = notes(file)
            moved.append((file, stat))
    if moved:
        tables = [_read([file for file, _ in moved])]
        if rows is not None:
            tables.append(rows.filter(~pl.col("target").is_in(new)))
        _write(source / NAME, pl.concat(tables), {**of, **new})
        for file, stat in moved:
            with suppress(FileNotFoundError):
                now = file.stat()  # one that was written again in the meantime is newer
                if (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns):
                    file.unlink()
    return Compacted(source, len(moved), len(files) - len(moved))


def read(file: Path) -> tuple[pl.DataFrame, dict[str, Notes]]:
    """A table of outcomes, and the notes of each target in it.

    Raises DamagedFile where its checksum fails.
    """
    check_seal(file)
    rows = _read([file])
    return rows, dict(index(file)) if file.name == NAME else {target_of(file): notes(file)}


def _read(files: list[Path]) -> pl.DataFrame:
    try:
        return pl.read_parquet(files, hive_partitioning=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged(files[0], str(error).partition("\n")[0]) from None


def _write(file: Path, rows: pl.DataFrame, of: Mapping[str, Notes]) -> None:
    """Write a compacted file, and read it back. Raises StoreError where it differs."""
    rows = rows.sort("target", maintain_order=True)
    of = {target: dict(of[target]) for target in sorted(of)}
    write_table(file, rows, made_by=json.dumps(of, sort_keys=True, separators=(",", ":")))
    found, known = read(file)
    if known != of or not found.equals(rows):
        raise StoreError(f"{file} does not have the rows that were written; is the disk sound?")


def discard(file: Path) -> None:
    """Remove one pair's outcomes, also where they are rows of the compacted file beside it.

    Raises StoreError where that cannot be written.
    """
    file.unlink(missing_ok=True)
    whole = file.with_name(NAME)
    if file.name.startswith("target=") and target_of(file) in index(whole):
        rows, of = read(whole)
        del of[target_of(file)]
        if of:
            _write(whole, rows.filter(pl.col("target") != target_of(file)), of)
        else:
            whole.unlink()


def pair_files(table: Path, target: str) -> Iterator[Path]:
    """The path of each pair with a target in a table of outcomes, except with its own images.

    Args:
        table: the folder of the sources' folders.
        target: its name as a folder. A pair has a file of that path, or rows of a compacted one.
    """
    for source in sorted(table.glob("source=*")):
        file = source / f"target={target}.parquet"
        if source.name != f"source={target}" and (
            file.is_file() or unfolded(target) in index(source / NAME)
        ):
            yield file
