"""The layout of the store: weights, clean predictions, adversarial images and outcomes.

    <root>/weights/<dataset>/<member>.safetensors + .json + .curves.csv
    <root>/training/<dataset>/<member>/                   last.safetensors (to go on), best, ema
    <root>/<dataset>/<subset>-<hash>/
        manifest.json                                     the image ids and labels
        views/<hash>/              identity.json, 00000.safetensors, ...: clean images, resized
        clean/<member>/            identity.json, logits.safetensors; components-<rules>.safetensors
        measures/<kind>-<hash>/<member>/  identity.json, 00000.safetensors, ...
        <attack>-<hash>/           identity.json
            adversarial/<source>/  identity.json, 00000.safetensors, ...: images, or on the 8-bit
                                   grid their difference from the clean ones (`files.pack`)
            outcomes/              identity.json, <target>/<hash>.parquet (`netkin.store.outcomes`)
            outcomes-<precision>/  likewise, of targets evaluated in another precision than float32

A file under its own name is complete: it is written under a temporary name in the same folder,
flushed to the disk and renamed, which is atomic on a POSIX file system. Each folder has an
identity, the settings that its contents were computed with; other settings under the same name are
an error, and nothing is reused. Tensors and outcomes have a checksum (XXH3, 128 bits) over their
bytes and over what they are of, which is verified at each read: a file that was changed, or moved
to another's place, is refused by name. `views/` only saves time and may be removed at any moment.
`.leases/` lists the work in progress (`netkin.store.lease`).
"""

import errno
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netkin.errors import OtherContents, StoreError, UserError
from netkin.store import differences, folder
from netkin.store.files import (
    create_json,
    damaged,
    digest,
    read_tensors,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from netkin.data.subset import Subset


@dataclass(frozen=True)
class Folder:
    """A folder whose contents depend on one identity, which its `identity.json` holds."""

    path: Path
    identity: Mapping[str, Any]

    def claim(self) -> "Folder":
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
            way = "give the model another name"
            if key == "shard_size":
                way = f"use the same shard_size, {theirs}"
            raise OtherContents(
                f"{self.path} was made with {key} = {theirs}, now it is {ours}: {way}, choose "
                "another store, or remove that folder"
            )
        return self

    def owner(self, file: Path) -> str:
        """What a tensor file of this folder is of, as a hash."""
        return owner(file, self.identity)

    def write(self, file: Path, tensors: "Mapping[str, Tensor]", **metadata: str) -> None:
        """Write a tensor file of this folder. Raises StoreError where that is not possible."""
        write_tensors(file, tensors, self.owner(file), **metadata)

    def read(self, file: Path) -> "dict[str, Tensor]":
        """Its tensors. Raises DamagedFile where the file is cut, altered or another's."""
        return read_tensors(file, self.owner(file))


def owner(file: Path, identity: Mapping[str, Any]) -> str:
    """What a tensor file in a folder of an identity is of, as a hash: that and its place, which are
    kind, model and shard."""
    place = [file.parents[1].name, file.parent.name, file.name]
    return digest({"identity": identity, "place": place})


def weights_owner(made_of: Mapping[str, Any]) -> str:
    """What weights that were trained here are of, as a hash: the training in the notes beside."""
    return digest({"weights": made_of})


def check_weights(file: Path) -> None:
    """Raises DamagedFile where weights that were trained here are cut, altered or another's."""
    notes = file.with_suffix(".json")
    try:
        made_of = json.loads(notes.read_text())["made_of"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(notes, error) from None
    read_tensors(file, weights_owner(made_of))


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
                f"store={self.root} cannot be written ({error.strerror}); choose another folder"
            ) from None

    def weights(self, dataset: str, member: str) -> Path:
        """The path of a member's trained weights."""
        return self.root / "weights" / folder(dataset) / f"{folder(member)}.safetensors"

    def training(self, dataset: str, member: str) -> Path:
        """The folder of a member's training: its checkpoint and its best weights."""
        return self.root / "training" / folder(dataset) / folder(member)

    def subset(self, dataset: str, subset: "Subset") -> Path:
        """The folder of a subset, made if need be. Raises DamagedFile for a damaged manifest."""
        path = self.root / folder(dataset) / f"{folder(subset.name)}-{subset.digest[:8]}"
        manifest = path / "manifest.json"
        if not manifest.is_file():
            write_json(manifest, {"dataset": dataset, **subset.manifest()})
        elif problem := manifest_problem(manifest, subset.digest):
            raise damaged(manifest, problem)
        return path


def manifest_problem(file: Path, digest: str | None = None) -> str | None:
    """What is wrong with a manifest, in words; None where it fits its own hash and `digest`."""
    from netkin.data.subset import Subset

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


def shard_file(folder: Folder, shard: int) -> Path:
    """The path of a shard, by its number from 0."""
    return folder.path / f"{shard:05d}.safetensors"
