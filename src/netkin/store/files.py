"""Files that are complete or absent, with checksums: JSON, tensors and parquet tables."""

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from netkin.errors import DamagedFile, StoreError
from netkin.store.lease import token

METADATA = "netkin"
"""The one key of a safetensors file's metadata (JSON): of several the order would be random."""
REPAIR = (
    "remove it, or all that is damaged: `python evaluate.py experiment=store remove=damaged "
    "confirm=true`; then run the same command again"
)


def damaged(path: Path, problem: object) -> DamagedFile:
    """The error of a file that is not what was written; `problem` says what is wrong."""
    return DamagedFile(f"{path} is damaged ({problem}); {REPAIR}", str(problem))


def digest(identity: Mapping[str, Any]) -> str:
    """A hash of a JSON identity, whatever the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Have `save` write a temporary file beside `path`, then rename it: all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{token()}-{uuid.uuid4().hex[:4]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        _flush(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise StoreError(
            f"cannot write {path} ({reason(error)}); what was finished before is kept: "
            "make room or permission, or choose another store.dir, and run the same command again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None


def _flush(file: Path) -> None:
    """To the disk, before the rename: so it outlives a power cut, and a full disk shows now."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: Exception) -> str:
    """The operating system's word for an error, also where a library wraps it in its own."""
    text = getattr(error, "strerror", None) or str(error)
    known = re.search(r"I/?O error: (.*?)(?: \(os error \d+\))?$", text, re.IGNORECASE)
    return known.group(1) if known else text


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write(path, lambda temporary: temporary.write_text(text))


def create_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a file unless it exists; whether it did not. Of several at once, one succeeds."""
    temporary = path.with_name(f".{path.name}.{token()}-{uuid.uuid4().hex[:4]}.new")
    write_json(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Tensors with their checksum; `read_tensors` checks it, `read_metadata` has the metadata."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    notes = {**metadata, "xxh3": checksum(content, metadata)}
    header = {METADATA: json.dumps(notes, sort_keys=True)}

    def save(temporary: Path) -> None:
        temporary.touch()  # with the permissions of any new file: safetensors makes its own 0600
        mode = temporary.stat().st_mode
        save_file(content, temporary, header)
        temporary.chmod(mode)

    write(path, save)


def read_tensors(path: Path, ours: bool = True) -> dict[str, Tensor]:
    """Raises StoreError where the file is cut, altered or not there.

    Not `ours`: the file may be another library's, which has no checksum.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            notes = _notes(header) if ours or METADATA in header else {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        wanted = notes.pop("xxh3", None)  # which files of netkin's first days lack
        if wanted is not None and checksum(tensors, notes) != wanted:
            raise ValueError("its bytes do not fit their checksum")
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from None
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What `write_tensors` was given beside the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return _notes(file.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from None


def _notes(header: Mapping[str, str] | None) -> dict[str, str]:
    """The metadata in a file's header. Raises ValueError where it is not ours."""
    header = dict(header or {})
    if METADATA not in header:
        if header.keys() - {"params"}:
            raise ValueError(f"its header holds {', '.join(header)}")
        return header
    notes = json.loads(header[METADATA])
    if not isinstance(notes, dict) or "xxh3" not in notes:
        raise ValueError("its header lacks the checksum")
    return notes


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """XXH3 (128 bits) of names, types, shapes, bytes and metadata: fast, not against malice."""
    state = xxhash.xxh3_128(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def parquet_metadata(path: Path) -> dict[str, str]:
    """An outcome file's made_by and xxh3. Raises StoreError where it was cut or altered."""
    try:
        found = pl.read_parquet_metadata(path)
        if found.keys() - {"made_by", "xxh3", "ARROW:schema"}:
            raise ValueError(f"its footer holds {', '.join(found)}")
        return found
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise damaged(path, error) from None


BLANK = b"xxh3:" + 32 * b"0"
"""Where a file's checksum goes; it is taken while this stands there, so no byte is left out."""


def _seal(data: bytes) -> bytes:
    """A file's bytes with their checksum in the place of BLANK."""
    assert data.count(BLANK) == 1
    return data.replace(BLANK, b"xxh3:" + xxhash.xxh3_128_hexdigest(data).encode())


def check_seal(file: Path) -> None:
    """Raise StoreError where a sealed file was cut or altered."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise damaged(file, reason(error)) from None
    seal = re.search(rb"xxh3:[0-9a-f]{32}", data)
    if seal is None:
        if "xxh3" in parquet_metadata(file):  # which files of netkin's first days lack
            raise damaged(file, "its checksum cannot be read")
    elif _seal(data.replace(seal.group(), BLANK)) != data:
        raise damaged(file, "its bytes do not fit their checksum")


def write_table(path: Path, table: pl.DataFrame, made_by: str) -> None:
    """A parquet table with a note of what made it and its checksum (`check_seal`)."""
    data = io.BytesIO()
    table.write_parquet(data, metadata={"made_by": made_by, "xxh3": BLANK.decode()})
    sealed = _seal(data.getvalue())
    write(path, lambda temporary: temporary.write_bytes(sealed))
