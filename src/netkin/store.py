"""What is kept between runs: weights, clean predictions, adversarial images and outcomes.

    <root>/weights/<dataset>/<member>.safetensors + .json + .curves.csv
    <root>/<dataset>/<subset>-<hash>/
        manifest.json                                     the image ids and labels
        views/<hash>/              identity.json, 00000.safetensors, ...: images as models see them
        clean/<member>/            identity.json, logits.safetensors
        measures/<kind>-<hash>/<member>/  identity.json, 00000.safetensors, ...
        <attack>-<hash>/           identity.json
            adversarial/<source>/  identity.json, 00000.safetensors, 00001.safetensors, ...
            outcomes/              identity.json, source=<A>/target=<B>.parquet

A file under its own name is complete: it is written under a temporary name in the same folder and
renamed, which is atomic on a POSIX file system. Every folder carries the identity of what made it;
something else under the same name is an error, never a reuse. `views/` only saves time: it may be
removed at any moment.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from netkin.data.subset import Subset
from netkin.errors import UserError


def digest(identity: Mapping[str, Any]) -> str:
    """A hash of a JSON identity, whatever the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Have `save` write a temporary file beside `path`, then rename it: all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}); what was finished before is kept: "
            "make room or permission, or choose another store.dir, and run the same command again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write(path, lambda temporary: temporary.write_text(text))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write(path, lambda temporary: save_file(content, temporary, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it and run the same command again"
        ) from None


def folder(name: str) -> str:
    """A model's name as one path component: "/", a leading "." and the like are percent-encoded."""
    quoted = quote(name, safe=" @+,()[]")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


@dataclass(frozen=True)
class Entry:
    """A folder that belongs to one identity."""

    path: Path
    identity: Mapping[str, Any]

    def claim(self) -> "Entry":
        """Make the folder, or check that it is of this identity; returns itself."""
        file = self.path / "identity.json"
        try:
            found = json.loads(file.read_text())
        except FileNotFoundError:
            write_json(file, self.identity)
            return self
        except (OSError, ValueError) as error:
            raise UserError(
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

    def subset(self, dataset: str, subset: Subset) -> "SubsetStore":
        path = self.root / folder(dataset) / f"{folder(subset.name)}-{subset.digest[:8]}"
        if not (path / "manifest.json").is_file():
            write_json(path / "manifest.json", {"dataset": dataset, **subset.manifest()})
        return SubsetStore(path, {"dataset": dataset, "subset_sha256": subset.digest})


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
        try:
            found = pl.read_parquet_metadata(path).get("made_by")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(
                f"{path} is damaged ({error}); remove it and run the same command again"
            ) from None
        if found != made_by:
            raise UserError(
                f"{path} was made by other models of these names, or another version of them; "
                "remove it and run the same command again, or choose another store.dir"
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
        write(
            self.file(source, target),
            lambda temporary: table.write_parquet(temporary, metadata={"made_by": made_by}),
        )

    def read(self, members: Iterable[str], sources: Iterable[str] | None = None) -> pl.DataFrame:
        """The outcomes of members on each other's images, or on those of some sources."""
        members = list(members)
        made_on = members if sources is None else sources
        files = [self.file(source, target) for source in made_on for target in members]
        return pl.scan_parquet(
            files, hive_partitioning=True, hive_schema={"source": pl.String}
        ).collect()
