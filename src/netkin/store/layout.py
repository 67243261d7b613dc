"""What is kept between runs: weights, clean predictions, adversarial images and outcomes.

    <root>/weights/<dataset>/<member>.safetensors + .json + .curves.csv
    <root>/training/<dataset>/<member>/                   last.safetensors (to go on), best, ema
    <root>/<dataset>/<subset>-<hash>/
        manifest.json                                     the image ids and labels
        views/<hash>/              identity.json, 00000.safetensors, ...: images as models see them
        clean/<member>/            identity.json, logits.safetensors
        measures/<kind>-<hash>/<member>/  identity.json, 00000.safetensors, ...
        <attack>-<hash>/           identity.json
            adversarial/<source>/  identity.json, execution.json, 00000.safetensors, ...
            outcomes/              identity.json, source=<A>/target=<B>.parquet

A file under its own name is complete: it is written under a temporary name in the same folder,
flushed to the disk and renamed, which is atomic on a POSIX file system. Every folder carries the
identity of what made it; something else under the same name is an error, never a reuse. Tensors and
outcomes carry a checksum (XXH3, 128 bits) of their own content, which is checked whenever they are
read. `views/` only saves time: it may be removed at any moment. `.leases/` says who is at work
(`netkin.store.lease`), `.runs/` which runs are not finished (`netkin.store.unfinished`).
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import polars as pl

from netkin.data.subset import Subset
from netkin.errors import StoreError, UserError
from netkin.store.files import (
    check_seal,
    create_json,
    damaged,
    digest,
    parquet_metadata,
    write_json,
    write_table,
)


def folder(name: str) -> str:
    """A model's name as one path component: "/", a leading "." and the like are percent-encoded."""
    quoted = quote(name, safe=" @+,()[]")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def unfolded(component: str) -> str:
    """The name that `folder` made a path component of."""
    return unquote(component)


@dataclass(frozen=True)
class Entry:
    """A folder that belongs to one identity."""

    path: Path
    identity: Mapping[str, Any]

    def claim(self) -> "Entry":
        """Make the folder, or check that it is of this identity; returns itself."""
        file = self.path / "identity.json"
        if not file.exists() and create_json(file, self.identity):
            return self
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{file} cannot be read ({error}); remove the folder {self.path}"
            ) from None
        differ = next(differences(found, json.loads(json.dumps(self.identity))), None)
        if differ:
            key, theirs, ours = differ
            raise UserError(
                f"{self.path} was made with {key} = {theirs}, now it is {ours}: give the model "
                "another name, choose another store.dir, or remove that folder"
            )
        return self


def differences(a: Any, b: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) wherever two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted({*a, *b}):
            yield from differences(
                a.get(name, "nothing"), b.get(name, "nothing"), f"{key}.{name}".strip(".")
            )
    elif a != b:
        yield key, a, b


class Store:
    """The folder shared by every run. Raises UserError when it cannot be made or written."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().resolve()
        probe = self.root / f".write-{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"store.dir={self.root} cannot be written ({error.strerror}); choose a folder of "
                "yours with store.dir=PATH"
            ) from None

    def weights(self, dataset: str, member: str) -> Path:
        return self.root / "weights" / folder(dataset) / f"{folder(member)}.safetensors"

    def training(self, dataset: str, member: str) -> Path:
        """The folder of a member's training: where it stands, and its best weights."""
        return self.root / "training" / folder(dataset) / folder(member)

    def subset(self, dataset: str, subset: Subset) -> "SubsetStore":
        path = self.root / folder(dataset) / f"{folder(subset.name)}-{subset.digest[:8]}"
        manifest = path / "manifest.json"
        if not manifest.is_file():
            write_json(manifest, {"dataset": dataset, **subset.manifest()})
        elif problem := manifest_problem(manifest, subset.digest):
            raise damaged(manifest, problem)
        return SubsetStore(path, {"dataset": dataset, "subset_sha256": subset.digest})


def manifest_problem(file: Path, digest: str | None = None) -> str | None:
    """What is wrong with a manifest, if anything: by its own hash, and the one that is expected."""
    try:
        content = json.loads(file.read_text())
        ids, labels = tuple(content["ids"]), tuple(content["labels"])
        classes, stamps = tuple(content["classes"]), tuple(content["stamps"])
        found = Subset("", ids, labels, (), classes, stamps).digest
        if found != content["sha256"]:
            return "its images do not fit its own hash"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {type(error).__name__}: {error}"
    if digest is not None and found != digest:
        return "it lists other images than its folder is for"
    return None


@dataclass(frozen=True)
class SubsetStore:
    """What is known of one subset of one dataset."""

    path: Path
    identity: Mapping[str, Any]

    def view(self, view: Mapping[str, Any], shard_size: int) -> Entry:
        """The folder of the images as one resize and crop shows them."""
        identity = {**self.identity, "view": view, "shard_size": shard_size}
        return Entry(self.path / "views" / digest(identity)[:12], identity)

    def clean(self, member: str, model: Mapping[str, Any]) -> Entry:
        """The folder of a member's logits on the clean images."""
        return Entry(self.path / "clean" / folder(member), {**self.identity, "model": model})

    def measure(
        self, kind: str, measure: Mapping[str, Any], member: str, model: Mapping[str, Any]
    ) -> Entry:
        """The folder of what another measure of similarity needs of a member."""
        identity = {**self.identity, "measure": measure, "model": model}
        path = self.path / "measures" / f"{kind}-{digest(measure)[:8]}" / folder(member)
        return Entry(path, identity)

    def attack(self, name: str, attack: Mapping[str, Any]) -> "AttackStore":
        identity = {**self.identity, "attack": attack}
        path = self.path / f"{folder(name)}-{digest(attack)[:8]}"
        return AttackStore(path, Entry(path, identity).claim().identity)


@dataclass(frozen=True)
class AttackStore:
    """What one attack made of one subset."""

    path: Path
    identity: Mapping[str, Any]

    def adversarial(self, source: str, model: Mapping[str, Any], shard_size: int) -> Entry:
        """The folder of a source's adversarial images."""
        identity = {**self.identity, "model": model, "shard_size": shard_size}
        return Entry(self.path / "adversarial" / folder(source), identity)

    def outcomes(self, transfer: Mapping[str, Any]) -> "OutcomeStore":
        """The table of outcomes, for one way of resizing between models."""
        identity = {**self.identity, "transfer": transfer}
        return OutcomeStore(Entry(self.path / "outcomes", identity).claim().path)


def shard_path(source: Entry, shard: int) -> Path:
    return source.path / f"{shard:05d}.safetensors"


@dataclass(frozen=True)
class OutcomeStore:
    """A hive-partitioned table that polars, DuckDB or pandas read as one.

    Columns: source, target, image_id, label, prediction (the target's, on the source's
    adversarial image), fooled; a row for each image that source and target classify correctly.
    """

    path: Path

    def file(self, source: str, target: str) -> Path:
        return self.path / f"source={folder(source)}" / f"target={folder(target)}.parquet"

    def has(self, source: str, target: str, made_by: str) -> bool:
        """Whether the outcomes are there; an error when other models made them."""
        path = self.file(source, target)
        if not path.is_file():
            return False
        if parquet_metadata(path).get("made_by") != made_by:
            raise UserError(
                f"{path} was made by other models of these names, or another version of them; "
                f"remove it with `python evaluate.py experiment=store remove=[{folder(target)}]`, "
                "or choose another store.dir"
            )
        return True

    def write(self, source: str, target: str, made_by: str, rows: pl.DataFrame) -> None:
        table = rows.select(
            pl.lit(target).alias("target"),
            "image_id",
            "label",
            "prediction",
            (pl.col("prediction") != pl.col("label")).alias("fooled"),
        )
        write_table(self.file(source, target), table, made_by)

    def read(self, sources: Iterable[str], targets: Iterable[str] | None = None) -> pl.DataFrame:
        """The outcomes of targets (the sources, if not given) on sources' images, as above.

        Raises StoreError, naming the file, where one was cut or altered.
        """
        sources = list(sources)
        targets = sources if targets is None else list(targets)
        files = [self.file(source, target) for source in sources for target in targets]
        for file in files:
            check_seal(file)
        rows = pl.scan_parquet(files, hive_partitioning=True, hive_schema={"source": pl.String})
        return rows.collect()
