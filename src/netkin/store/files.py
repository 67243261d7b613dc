"""Files that are complete or absent, and tensors with checksums."""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import xxhash
import zstandard
from safetensors import SafetensorError, safe_open

from netkin.errors import DamagedFile, StoreError, UserError
from netkin.store.lease import me

if TYPE_CHECKING:  # tables are written without torch
    from torch import Tensor

METADATA = "netkin"
"""The only key of a safetensors file's metadata (JSON): several keys would have a random order."""
LEVEL = 1
"""Of zstandard's 1 to 22: the others take longer and gain little on differences."""


def damaged(path: Path, problem: object) -> DamagedFile:
    """The error of a file that was changed or cut; `problem` describes how."""
    return DamagedFile(f"{path} is damaged ({problem}); remove it and run again", str(problem))


def digest(identity: Mapping[str, Any]) -> str:
    """A hash of a JSON identity, whatever the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(
    path: Path,
    save: Callable[[Path], object],
    error_type: type[UserError] = StoreError,
    kind: str = "store",
    place: Callable[[Path, Path], object] = os.replace,
) -> None:
    """Call `save` on a temporary path beside `path`, then rename the file: all of it or nothing.

    Raises an error of a type, StoreError by default, where the file cannot be written; it advises
    to choose another `kind` of folder.
    """
    temporary = path.with_name(f".{path.name}.{me().token}-{uuid.uuid4().hex[:4]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        # Before the rename: the file survives a power cut, and a full disk fails here.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        place(temporary, path)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise error_type(
            f"cannot write {path} ({reason(error)}); what was finished before is kept: "
            f"make room or permission, or choose another {kind}, and run again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None


def reason(error: Exception) -> str:
    """The operating system's message of an error, also where a library wraps it in its own."""
    text = getattr(error, "strerror", None) or str(error)
    known = re.search(r"I/?O error: (.*?)(?: \(os error \d+\))?$", text, re.IGNORECASE)
    return known.group(1) if known else text


def write_json(
    path: Path, content: Mapping[str, Any], place: Callable[[Path, Path], object] = os.replace
) -> None:
    """Write JSON with sorted keys; see `write`. Raises StoreError where that is not possible."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write(path, lambda temporary: temporary.write_text(text), place=place)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON mapping; empty where the file holds none, or is not there."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def create_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a file unless it exists, and return whether it was written. Of several processes that
    write it at once, one succeeds."""
    written = True

    def link(temporary: Path, path: Path) -> None:
        nonlocal written
        try:
            os.link(temporary, path)
        except FileExistsError:
            written = False
        except OSError:  # a file system without hard links
            os.replace(temporary, path)

    write_json(path, content, link)
    return written


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", owner: str, **metadata: str) -> None:
    """Write tensors and metadata with their checksum; see `read_tensors` and `read_metadata`.

    Args:
        path: of the file.
        tensors: by name.
        owner: a hash of what they are of, which `read_tensors` compares.
        metadata: further texts.

    Raises StoreError where the file cannot be written.
    """
    from safetensors.torch import save_file

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    notes = {**metadata, "owner": owner}
    header = {METADATA: json.dumps({**notes, "xxh3": checksum(content, notes)}, sort_keys=True)}

    def save(temporary: Path) -> None:
        temporary.touch()  # with the permissions of any new file: safetensors makes its own 0600
        mode = temporary.stat().st_mode
        save_file(content, temporary, header)
        temporary.chmod(mode)

    write(path, save)


def read_tensors(path: Path, owner: str | None = None, ours: bool = True) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, by name.

    Args:
        path: of the file.
        owner: what they must be of; anything where None.
        ours: whether it must be netkin's. Another library's has no checksum.

    Raises DamagedFile where the file is cut, altered, missing, or of another owner.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            notes = _notes(header, owner) if ours or METADATA in header else None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if notes is not None and notes.pop("xxh3") != checksum(tensors, notes):
            raise ValueError("its bytes do not fit their checksum")
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from None
    return tensors


def pack(images: "Tensor", clean: "Tensor") -> "Tensor":
    """The difference of images from others, compressed: [bytes] uint8; see `unpack`.

    It has few values where images are attacked within a small eps, and no bit of it is lost.

    Args:
        images, clean: uint8, of one shape, on the CPU.
    """
    import torch

    difference = images.numpy() - clean.numpy()  # modulo 256
    packed = zstandard.compress(difference.tobytes(), LEVEL)
    return torch.from_numpy(np.frombuffer(packed, np.uint8).copy())


def unpack(packed: "Tensor", clean: "Tensor") -> "Tensor":
    """The images that `pack` made a difference of.

    Raises ValueError where it is no such difference, or of images of another number or size. From
    other `clean` images of the same size it makes other images: compare them with a checksum.
    """
    import torch

    try:
        difference = zstandard.decompress(packed.numpy().data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    differences = np.frombuffer(difference, np.uint8)
    return torch.from_numpy(clean.numpy() + differences.reshape(clean.shape))


def read_metadata(path: Path, owner: str | None = None) -> dict[str, str]:
    """The metadata that `write_tensors` stored with the tensors, with "owner" and "xxh3".

    Raises DamagedFile where the file is cut, missing, not netkin's, or of another owner.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _notes(file.metadata() or {}, owner)
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from None


def _notes(header: Mapping[str, str], owner: str | None) -> dict[str, str]:
    """The metadata in a file's header. Raises ValueError where it is not netkin's, or another's."""
    notes = json.loads(header.get(METADATA, "{}"))
    if not isinstance(notes, dict) or "xxh3" not in notes:
        raise ValueError("its header lacks the checksum")
    if owner is not None and notes.get("owner") != owner:
        raise ValueError("it is of another model, attack or part than its place")
    return notes


def checksum(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> str:
    """XXH3 (128 bits) of names, types, shapes, bytes and metadata: fast, but not cryptographic."""
    import torch

    state = xxhash.xxh3_128(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
