"""The layout of the store: weights, clean predictions, adversarial images and outcomes.

    <root>/weights/<dataset>/<member>.safetensors + .json + .curves.csv
    <root>/training/<dataset>/<member>/                   last.safetensors (to go on), best, ema
    <root>/<dataset>/<subset>-<hash>/
        manifest.json                                     the image ids and labels
        views/<hash>/              identity.json, 00000.safetensors, ...: images, resized
        clean/<member>/            identity.json, logits.safetensors
        measures/<kind>-<hash>/<member>/  identity.json, 00000.safetensors, ...
        <attack>-<hash>/           identity.json
            adversarial/<source>/  identity.json, execution.json, 00000.safetensors, ...
            outcomes/              identity.json, source=<A>/target=<B>.parquet, or, compacted,
                                   source=<A>/targets.parquet (`netkin.store.compact`)
            outcomes-<precision>/  likewise, of targets evaluated in another precision than float32

A file under its own name is complete: it is written under a temporary name in the same folder,
flushed to the disk and renamed, which is atomic on a POSIX file system. Each folder has an
identity, the settings that its contents were computed with; other settings under the same name are
an error, and nothing is reused. Tensors and outcomes have a checksum (XXH3, 128 bits), which is
verified at each read. `views/` only saves time and may be removed at any moment. `.leases/` lists
the work in progress (`netkin.store.lease`), `.runs/` the unfinished runs
(`netkin.store.unfinished`).
"""

import errno
import json
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from netkin.data.subset import Subset
from netkin.errors import DamagedFile, OtherContents, StoreError, UserError
from netkin.store import compact
from netkin.store.files import (
    check_seal,
    create_json,
    damaged,
    digest,
    write_json,
    write_table,
)
from netkin.store.identity import differences
from netkin.store.names import FLOAT32, folder, outcomes_folder


@dataclass(frozen=True)
class Entry:
    """A folder whose contents depend on one identity, which its `identity.json` holds."""

    path: Path
    identity: Mapping[str, Any]

    def claim(self) -> "Entry":
        """Make the folder, or check that it has this identity; returns itself.

        Raises OtherContents where it has another, StoreError where its identity cannot be read.
        """
        file = self.path / "identity.json"
        if not file.exists() and create_json(file, self.identity):
            return self
        try:
            stored = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{file} cannot be read ({error}); remove the folder {self.path}"
            ) from None
        differ = next(differences(stored, json.loads(json.dumps(self.identity))), None)
        if differ:
            key, theirs, ours = differ
            raise OtherContents(
                f"{self.path} was made with {key} = {theirs}, now it is {ours}: give the model "
                "another name, choose another store, or remove that folder"
            )
        return self


class Store:
    """The folder that all runs share. Raises UserError where it cannot be made.

    One that exists and cannot be written, such as an archive or another user's, can be read: runs
    work as far as it holds all that they need.

    Attributes:
        root: the folder.
        writable: whether this process may write there.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().resolve()
        self.writable, filled = True, self.root.is_dir() and any(self.root.iterdir())
        probe = self.root / f".write-{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            if filled and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                self.writable = False
                return
            raise UserError(
                f"root={self.root} cannot be written ({error.strerror}); choose another folder"
            ) from None

    def weights(self, dataset: str, member: str) -> Path:
        """The path of a member's trained weights."""
        return self.root / "weights" / folder(dataset) / f"{folder(member)}.safetensors"

    def training(self, dataset: str, member: str) -> Path:
        """The folder of a member's training: its checkpoint and its best weights."""
        return self.root / "training" / folder(dataset) / folder(member)

    def subset(self, dataset: str, subset: Subset) -> "SubsetStore":
        """The folder of a subset, made if need be. Raises DamagedFile for a damaged manifest."""
        path = self.root / folder(dataset) / f"{folder(subset.name)}-{subset.digest[:8]}"
        manifest = path / "manifest.json"
        if not manifest.is_file():
            write_json(manifest, {"dataset": dataset, **subset.manifest()})
        elif problem := manifest_problem(manifest, subset.digest):
            raise damaged(manifest, problem)
        return SubsetStore(path, {"dataset": dataset, "subset_sha256": subset.digest})


def manifest_problem(file: Path, digest: str | None = None) -> str | None:
    """What is wrong with a manifest, in words; None where it fits its own hash and `digest`."""
    try:
        content = json.loads(file.read_text())
        ids, labels = tuple(content["ids"]), tuple(content["labels"])
        classes, stamps = tuple(content["classes"]), tuple(content["stamps"])
        actual = Subset("", ids, labels, (), classes, stamps).digest
        if actual != content["sha256"]:
            return "its images do not fit its own hash"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {type(error).__name__}: {error}"
    if digest is not None and actual != digest:
        return "it lists other images than its folder is for"
    return None


@dataclass(frozen=True)
class SubsetStore:
    """The folder of one subset of a dataset."""

    path: Path
    identity: Mapping[str, Any]

    def view(self, view: Mapping[str, Any], shard_size: int) -> Entry:
        """The folder of the images after one resize and crop."""
        identity = {**self.identity, "view": view, "shard_size": shard_size}
        return Entry(self.path / "views" / digest(identity)[:12], identity)

    def clean(self, member: str, model: Mapping[str, Any]) -> Entry:
        """The folder of a member's logits on the clean images."""
        return Entry(self.path / "clean" / folder(member), {**self.identity, "model": model})

    def measure(
        self, kind: str, measure: Mapping[str, Any], member: str, model: Mapping[str, Any]
    ) -> Entry:
        """The folder of a member's data for another measure of similarity, such as features."""
        identity = {**self.identity, "measure": measure, "model": model}
        path = self.path / "measures" / f"{kind}-{digest(measure)[:8]}" / folder(member)
        return Entry(path, identity)

    def attack(self, name: str, attack: Mapping[str, Any]) -> "AttackStore":
        """The folder of an attack with these settings. Raises OtherContents as `Entry.claim`."""
        identity = {**self.identity, "attack": attack}
        path = self.path / f"{folder(name)}-{digest(attack)[:8]}"
        return AttackStore(path, Entry(path, identity).claim().identity)


@dataclass(frozen=True)
class AttackStore:
    """The folder of one attack on one subset: adversarial images and outcomes."""

    path: Path
    identity: Mapping[str, Any]

    def adversarial(self, source: str, model: Mapping[str, Any], shard_size: int) -> Entry:
        """The folder of a source's adversarial images."""
        identity = {**self.identity, "model": model, "shard_size": shard_size}
        return Entry(self.path / "adversarial" / folder(source), identity)

    def outcomes(self, transfer: Mapping[str, Any]) -> "OutcomeStore":
        """The table of outcomes, for one way of resizing between models.

        Those of another `precision` than float32 have a folder of their own.
        """
        path = self.path / outcomes_folder(transfer.get("precision", FLOAT32))
        return OutcomeStore(Entry(path, {**self.identity, "transfer": transfer}).claim().path)


def shard_path(source: Entry, shard: int) -> Path:
    """The path of a shard, by its number from 0."""
    return source.path / f"{shard:05d}.safetensors"


ALL = sys.maxsize
"""Images of a file of outcomes that is complete."""
COLUMNS = ("target", "image_id", "label", "prediction", "fooled")
"""Of a file of outcomes."""


@dataclass(frozen=True)
class OutcomeStore:
    """A hive-partitioned table that polars, DuckDB or pandas read as one.

    Columns: source, target, image_id, label, prediction (the target's, on the source's
    adversarial image), fooled; a row for each image that source and target classify correctly.
    A file of a run that stopped early has the rows of the subset's first images, and their number
    in its metadata (`images`); a later run adds the others.
    """

    path: Path

    def file(self, source: str, target: str) -> Path:
        """The path of one pair's outcomes."""
        return self.path / f"source={folder(source)}" / f"target={folder(target)}.parquet"

    def compacted(self, source: str) -> Path:
        """The path of a source's compacted file."""
        return self.file(source, "").with_name(compact.NAME)

    def metadata(self, source: str, target: str) -> Mapping[str, str] | None:
        """What is stored with a pair's outcomes, such as made_by; None where there are none.

        Raises DamagedFile where a file was cut or altered.
        """
        path = self.file(source, target)
        # In this order: a pair that is being compacted is in both for a while.
        if path.is_file():
            return compact.notes(path)
        return compact.index(self.compacted(source)).get(target)

    def covered(self, source: str, target: str, made_by: str | None = None) -> int:
        """How many of the subset's images, from the first on, a pair's outcomes cover.

        0 where there are none, ALL where they are complete. Raises OtherContents where other models
        made them than `made_by`.
        """
        found = self.metadata(source, target)
        if found is None:
            return 0
        if made_by is not None and found.get("made_by") != made_by:
            path = self.file(source, target)
            where = path if path.is_file() else f"{target} in {self.compacted(source)}"
            raise OtherContents(
                f"{where} was made by other models of these names, or another version of them; "
                "remove it, or choose another store"
            )
        return int(found.get("images", ALL))

    def rows(self, source: str, target: str) -> pl.DataFrame:
        """A pair's image_id, label and prediction of each image, as `write` takes them.

        Raises DamagedFile where the file was cut or altered.
        """
        return self._rows(source, [target], ("image_id", "label", "prediction"))

    def write(
        self, source: str, target: str, made_by: str, rows: pl.DataFrame, images: int = ALL
    ) -> None:
        """Write a pair's outcomes.

        Args:
            source, target: names of models.
            made_by: hashes of both models, with the source's attack.
            rows: image_id, label and prediction of each image.
            images: of the subset, from the first on, that the rows are of.

        Raises StoreError where the file cannot be written.
        """
        table = rows.select(
            pl.lit(target).alias("target"),
            "image_id",
            "label",
            "prediction",
            (pl.col("prediction") != pl.col("label")).alias("fooled"),
        )
        part = {} if images == ALL else {"images": str(images)}
        write_table(self.file(source, target), table, made_by=made_by, **part)

    def read(self, sources: Iterable[str], targets: Iterable[str] | None = None) -> pl.DataFrame:
        """The outcomes of targets (the sources, unless given) on the sources' images, as above.

        Raises DamagedFile, naming the file, where one was cut or altered.
        """
        sources = list(sources)
        targets = sources if targets is None else list(targets)
        return pl.concat(
            self._rows(source, targets).with_columns(pl.lit(source).alias("source"))
            for source in sources
        )

    def fooled(self, source: str, targets: Iterable[str]) -> pl.DataFrame:
        """Of one source the columns target, image_id and fooled alone: a quarter of the time."""
        return self._rows(source, list(targets), ("target", "image_id", "fooled"))

    def _rows(
        self, source: str, targets: list[str], columns: Sequence[str] = COLUMNS
    ) -> pl.DataFrame:
        """The rows of targets. Raises DamagedFile where a file was cut, altered or is missing."""
        whole = self.compacted(source)
        index = compact.index(whole)
        single = [t for t in targets if t not in index or self.file(source, t).is_file()]
        rest = sorted({target for target in targets if target in index} - set(single))
        try:
            rows = [_read([self.file(source, t) for t in single], columns)] if single else []
            if rest:
                found = _read([whole], columns)
                # After reading: a filter while reading takes fifty times as long.
                every = len(rest) == len(index)
                rows.append(found if every else found.filter(pl.col("target").is_in(rest)))
            return pl.concat(rows)
        except (DamagedFile, OSError):
            if compact.index(whole) == index:
                raise
            return self._rows(source, targets, columns)  # compacted in the meantime


def _read(files: list[Path], columns: Sequence[str]) -> pl.DataFrame:
    """The rows of some files of outcomes. Raises DamagedFile where one was cut or altered."""
    for file in files:
        check_seal(file)
    # Paths as they are: as globs or hive partitions, [, *, ? or = anywhere in the store's path
    # would be read as patterns or columns.
    return pl.scan_parquet(files, glob=False, hive_partitioning=False).select(columns).collect()
