"""Outcomes: which adversarial images fool which target, in parquet files read as one table.

    outcomes/<target>/<hash>.parquet    what one pass of a target did, on the images of many sources

Columns: source, target, image_id, label, prediction (the target's, on the source's adversarial
image) and fooled; a row for each image that source and target classify correctly. polars, DuckDB
and pandas read `outcomes/**/*.parquet` as one table.

A file is never changed. Its metadata names its target and sources, the hashes of what made them,
and for each source the range of the subset's images that its rows are of: a run that stops early
covers the first images, and a later run adds a file with the others. Rows that two processes wrote
at once are read once.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash
from numpy.typing import NDArray

from netkin.errors import OtherContents, StoreError
from netkin.store import folder
from netkin.store.files import damaged, digest, reason, write

COLUMNS = ("source", "target", "image_id", "label", "prediction", "fooled")
FLOAT32 = "32-true"
"""The precision of outcomes whose folder and identity name none."""
BLANK = b"xxh3:" + 32 * b"0"
"""Placeholder of a file's checksum, which is computed with it in place: it covers every byte."""


def outcomes_folder(precision: str) -> str:
    """The folder, in an attack's, of the outcomes of targets evaluated in a precision."""
    return "outcomes" if precision == FLOAT32 else f"outcomes-{precision}"


@dataclass(frozen=True)
class Part:
    """A source's rows in a file.

    Attributes:
        made_by: the hash of the source and its attack.
        start, stop: the range of the subset's images, by position, that the rows are of.
    """

    made_by: str
    start: int
    stop: int


OF_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What polars raises for a damaged file; the second is no Exception."""


@dataclass(frozen=True)
class Contents:
    """A file's metadata: its target, the target's hash, and its sources by name."""

    target: str
    model: str
    parts: Mapping[str, Part]


def contents(file: Path) -> Contents:
    """What a file of outcomes holds. Raises DamagedFile where it was cut or altered."""
    try:
        stat = file.stat()
    except OSError as error:
        raise damaged(file, error.strerror) from None
    return _contents(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _contents(file: Path, _modified: int, _size: int) -> Contents:
    try:
        found = json.loads(pl.read_parquet_metadata(file)["made_by"])
        parts = {name: Part(*part) for name, part in found["sources"].items()}
        if folder(found["target"]) != file.parent.name:
            raise ValueError(f"it has outcomes of {found['target']}")
        return Contents(found["target"], found["model"], parts)
    except (*OF_POLARS, OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(file, error) from None


@dataclass(frozen=True)
class OutcomeStore:
    """A folder of outcomes."""

    path: Path

    def files(self, target: str) -> list[Path]:
        return sorted((self.path / folder(target)).glob("[!.]*.parquet"))

    def pair(self, source: str, target: str) -> Path:
        """A path that stands for a pair, such as in leases. There is no such file."""
        return self.path / folder(target) / folder(source)

    def has(self, source: str, target: str, model: str) -> bool:
        """Whether there are outcomes of a pair whose target has the hash `model`."""
        found = [contents(file) for file in self.files(target)]
        return any(source in each.parts and each.model == model for each in found)

    def covered(self, target: str, model: str, sources: Mapping[str, str]) -> dict[str, int]:
        """How many of the subset's images, from the first on, are evaluated: by source.

        Args:
            target: its name.
            model: the target's hash.
            sources: the hash of what crafted each source's images, by the source's name.

        Raises OtherContents where other models or attacks made the outcomes, DamagedFile where a
        file was cut or altered.
        """
        parts: dict[str, list[Part]] = {name: [] for name in sources}
        for file in self.files(target):
            found = contents(file)
            for name in found.parts.keys() & parts.keys():
                other = target if found.model != model else name
                if found.model != model or found.parts[name].made_by != sources[name]:
                    raise OtherContents(
                        f"{file} was made by another {other} than the model of this name is now; "
                        "remove it (what it held is computed again), or choose another store"
                    )
                parts[name].append(found.parts[name])
        return {name: _covered(found) for name, found in parts.items()}

    def write(
        self, target: str, model: str, parts: Mapping[str, Part], rows: Mapping[str, pl.DataFrame]
    ) -> None:
        """Write a file of outcomes.

        Args:
            target: its name.
            model: the target's hash.
            parts: what the rows of each source are, by the source's name.
            rows: image_id, label and prediction of each image, by the source's name.

        Raises StoreError where the file cannot be written.
        """
        table = pl.concat(
            rows[name].select(
                pl.lit(name).alias("source"),
                pl.lit(target).alias("target"),
                "image_id",
                "label",
                "prediction",
                (pl.col("prediction") != pl.col("label")).alias("fooled"),
            )
            for name in sorted(parts)
        )
        self._write(Contents(target, model, parts), table)

    def _write(self, of: Contents, table: pl.DataFrame) -> None:
        parts = {name: [p.made_by, p.start, p.stop] for name, p in sorted(of.parts.items())}
        made_by = {"target": of.target, "model": of.model, "sources": parts}
        file, data = self.path / folder(of.target) / f"{digest(made_by)[:16]}.parquet", io.BytesIO()
        text = json.dumps(made_by, separators=(",", ":"))
        table.write_parquet(data, metadata={"made_by": text, "xxh3": BLANK.decode()})
        sealed = _seal(data.getvalue())
        assert data.getvalue().count(BLANK) == 1
        write(file, lambda temporary: temporary.write_bytes(sealed))

    def read(
        self, target: str, sources: Iterable[str], columns: Sequence[str] = COLUMNS
    ) -> pl.DataFrame:
        """The rows of a target on the images of some sources, each once; `columns` with source and
        image_id.

        Raises DamagedFile where a file was cut or altered, StoreError where a pair is not stored.
        """
        wanted, tables = set(sources), []
        parts: dict[str, list[Part]] = {name: [] for name in wanted}
        for file in self.files(target):
            found = contents(file).parts
            here = found.keys() & wanted
            if here:
                rows = read_table(file, columns)
                # After reading: a filter while reading takes fifty times as long.
                every = len(here) == len(found)
                tables.append(rows if every else rows.filter(pl.col("source").is_in(here)))
            for name in here:
                parts[name].append(found[name])
        if missing := sorted(name for name, found in parts.items() if not found):
            raise StoreError(
                f"{self.path} has no outcomes of {target} on images of {', '.join(missing)}; "
                "run the same command again"
            )
        table = pl.concat(tables)
        twice = any(
            a.stop > b.start
            for found in parts.values()
            for a, b in pairwise(sorted(found, key=lambda part: part.start))
        )
        return table.unique(["source", "image_id"], keep="first") if twice else table

    def fooled(
        self, target: str, sources: Sequence[str], image_ids: Sequence[str]
    ) -> NDArray[np.bool_]:
        """Which images of each source fool a target, [sources, images].

        False where source or target is wrong on the clean image: there it was not evaluated.
        """
        fooled = np.zeros((len(sources), len(image_ids)), dtype=bool)
        self._fill(fooled, "fooled", target, sources, image_ids)
        return fooled

    def predictions(
        self, target: str, sources: Sequence[str], image_ids: Sequence[str]
    ) -> NDArray[np.int32]:
        """The classes that a target predicts on images of each source, [sources, images]; -1 where
        it was not evaluated. Raises DamagedFile where a file has no predictions."""
        classes = np.full((len(sources), len(image_ids)), -1, dtype=np.int32)
        self._fill(classes, "prediction", target, sources, image_ids)
        return classes

    def _fill(
        self,
        array: NDArray[Any],
        column: str,
        target: str,
        sources: Sequence[str],
        image_ids: Sequence[str],
    ) -> None:
        """Write a column of the rows of a target to an array [sources, images]."""
        row = {source: i for i, source in enumerate(sources)}
        at = {image: i for i, image in enumerate(image_ids)}
        table = self.read(target, sources, ("source", "image_id", column))
        array[
            table["source"].replace_strict(row, return_dtype=pl.Int64).to_numpy(),
            table["image_id"].replace_strict(at, return_dtype=pl.Int64).to_numpy(),
        ] = table[column].to_numpy()

    def remove(self, source: str, target: str) -> None:
        """Remove the rows of a pair: its files are written again without them.

        Raises StoreError where they cannot be written.
        """
        for file in self.files(target):
            found = contents(file)
            rest = {name: part for name, part in found.parts.items() if name != source}
            if len(rest) == len(found.parts):
                continue
            if rest:
                kept = read_table(file).filter(pl.col("source") != source)
                self._write(Contents(target, found.model, rest), kept)
            file.unlink()


def read_table(file: Path, columns: Sequence[str] = COLUMNS) -> pl.DataFrame:
    """The rows of a file. Raises DamagedFile where it was cut or altered."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise damaged(file, reason(error)) from None
    seal = re.search(rb"xxh3:[0-9a-f]{32}", data)
    if seal is None or _seal(data.replace(seal.group(), BLANK)) != data:
        raise damaged(file, "its bytes do not fit their checksum")
    try:
        return pl.read_parquet(io.BytesIO(data), columns=list(columns), glob=False)
    except (*OF_POLARS, OSError) as error:
        raise damaged(file, str(error).partition("\n")[0]) from None


def _seal(data: bytes) -> bytes:
    """A file's bytes with their checksum in the place of BLANK."""
    return data.replace(BLANK, b"xxh3:" + xxhash.xxh3_128_hexdigest(data).encode())


def _covered(parts: Iterable[Part]) -> int:
    """The end of the range from 0 that parts cover without a gap."""
    stop = 0
    for part in sorted(parts, key=lambda part: part.start):
        if part.start <= stop:
            stop = max(stop, part.stop)
    return stop
