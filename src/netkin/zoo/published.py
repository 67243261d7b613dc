"""Files of published weights, in the caches of this machine or fetched into them."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import timm
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.models import split_model_name_tag
from timm.models._hub import get_cache_dir
from timm.models._registry import get_deprecated_models

from netkin.errors import UserError, first_line
from netkin.store.files import file_sha256
from netkin.zoo import from_transformers, sources


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and the hash of its bytes."""

    path: Path
    sha256: str


def fetch(names: dict[str, str]) -> Iterator[tuple[str, WeightsFile]]:
    """The weights of many members (member's name to that of its model), one after another.

    Raises one UserError at the end that lists all members whose weights cannot be had. After one
    download has failed without a network, only the caches are searched.
    """
    missing: dict[str, str] = {}
    offline = False
    for member, name in names.items():
        try:
            path = sources.file(name) or (None if offline else sources.file(name, fetch=True))
            reason = "not tried: the network failed before"
        except Exception as error:  # the hub's client, urllib and the disk have their own
            path, reason, offline = None, first_line(error), offline or _no_network(error)
        if path is None:
            missing[member] = reason
        else:
            yield member, WeightsFile(path, sha256(path))
    if missing:
        reason = next(iter(missing.values()))
        raise UserError(
            f"the weights of {len(missing)} of {len(names)} members cannot be had: "
            f"{', '.join(f'{member} ({names[member]})' for member in missing)}; the first failed "
            f"with: {reason}. Fetch them on a machine with a network (they are then in "
            f"{constants.HF_HUB_CACHE} and {get_cache_dir()}; copy those, or set HF_HUB_CACHE and "
            "TORCH_HOME to them), or name local files: {name: ..., timm: ..., checkpoint: PATH}"
        )


def _no_network(error: BaseException) -> bool:
    """Whether an error means that nothing can be fetched, rather than that one file is missing."""
    if isinstance(error, LocalEntryNotFoundError):
        return True
    return not isinstance(error, HfHubHTTPError | HTTPError | FileNotFoundError | UserError)


def sha256(path: Path) -> str:
    """The hash of a file, which the hub's cache names large files by; of an index of several files
    the hash of their hashes."""
    parts = from_transformers.files(path)
    if parts != [path]:
        return hashlib.sha256(" ".join(map(sha256, parts)).encode()).hexdigest()
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else file_sha256(path)


def model_page(source: str) -> str | None:
    """The address of the page about a model, as `sources.config` takes its name; None where there
    is none. Names that timm has renamed are found, too. Nothing is read from a network."""
    library, _, rest = source.partition(":")
    if library in ("hf-hub", "transformers") and rest.count("/") == 1:
        return f"https://huggingface.co/{rest}"
    if library == "torchvision":
        return "https://docs.pytorch.org/vision/stable/models.html"
    name = get_deprecated_models().get(source) or source
    config = timm.get_pretrained_cfg(name) if timm.is_model(split_model_name_tag(name)[0]) else None
    return f"https://huggingface.co/{config.hf_hub_id}" if config and config.hf_hub_id else None
