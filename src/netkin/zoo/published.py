"""Published weights: the config of a model, and the file in a cache of this machine."""

import hashlib
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse

import timm
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)
from timm.models import load_model_config_from_hf, split_model_name_tag
from timm.models._factory import parse_model_name
from timm.models._hub import (
    _EXT_PRIORITY,
    _PREFERRED_FILES,
    _get_safe_alternatives,
    download_cached_file,
    get_cache_dir,
    hf_split,
    load_model_config_from_path,
)
from timm.models._registry import get_deprecated_models

from netkin.errors import UserError, first_line, near
from netkin.store.files import file_sha256
from netkin.zoo import from_torchvision, from_transformers

HUB_FILE = "pytorch_model.bin"
"""timm's name for a repository's weights; it prefers safetensors of the same name stem."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and the hash of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Origin:
    """A name resolved: architecture, config in the words of timm's pretrained_cfg, and arguments
    that come with the model. Other libraries' configs have `family` besides."""

    architecture: str
    config: dict[str, Any]
    arguments: dict[str, Any]


def model_page(source: str) -> str | None:
    """The address of the hub's page about a name that `origin` takes; None where there is none.

    Names that timm has renamed are found, too. Nothing is read from a network.
    """
    library, _, rest = source.partition(":")
    if library in ("hf-hub", "transformers") and rest.count("/") == 1:
        return f"https://huggingface.co/{rest}"
    if library == "torchvision":
        return "https://docs.pytorch.org/vision/stable/models.html"
    name = get_deprecated_models().get(source) or source
    config = timm.get_pretrained_cfg(name) if timm.is_model(split_model_name_tag(name)[0]) else None
    return f"https://huggingface.co/{config.hf_hub_id}" if config and config.hf_hub_id else None


@cache
def origin(name: str) -> Origin:
    """What is known of `architecture.tag`, `hf-hub:org/name` or `local-dir:folder` of timm's, of
    `torchvision:name` or `transformers:name`.

    Raises UserError when there is no such name, or its config.json cannot be read.
    """
    library, _, rest = name.partition(":")
    try:
        if library == "torchvision":
            return Origin(rest, from_torchvision.config(rest), {})
        if library == "transformers":
            with _quiet_hub():
                return Origin(rest, from_transformers.config(rest), {})
        source, rest = parse_model_name(name)
        if source is None:
            rest = get_deprecated_models().get(rest) or rest
            config = timm.get_pretrained_cfg(rest)
            assert config is not None
            return Origin(split_model_name_tag(rest)[0], config.to_dict(), {})
        load = load_model_config_from_hf if source == "hf-hub" else load_model_config_from_path
        with _quiet_hub():
            config, architecture, arguments = load(rest)
        resolved = Origin(str(architecture), dict(config or {}), dict(arguments or {}))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EntryNotFoundError) as error:
        owner = "transformers'" if library == "transformers" else "timm's"
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{name}: its config.json cannot be read ({reason}); "
            f"expected a model in {owner} format, on the hub or in a local folder"
        ) from None
    if not timm.is_model(resolved.architecture):
        raise UserError(
            f"{name}: timm has no architecture {resolved.architecture!r}, which its config.json "
            f"names{near(resolved.architecture, timm.list_models())}"
        )
    if "num_classes" not in resolved.config:
        raise UserError(f"{name}: its config.json lacks num_classes in pretrained_cfg")
    return resolved


def cached(name: str) -> Path | None:
    """The weights file of a name, if it is on this machine."""
    library, _, rest = name.partition(":")
    if library == "transformers":
        return from_transformers.cached(rest)
    config = origin(name).config
    if config.get("source") == "local-dir":
        return _in_folder(Path(config["file"]))
    if repository := config.get("hf_hub_id"):
        repo, revision = hf_split(repository)
        for file in _hub_files(config):
            path = try_to_load_from_cache(repo, file, revision=revision)
            if isinstance(path, str):
                return Path(path)
    if url := config.get("url"):
        path = Path(get_cache_dir()) / _url_file(url)
        return path if path.is_file() else None
    return None


def download(name: str) -> Path:
    """Fetch a name's weights into the cache of the hub's client or of torch.

    Raises what those libraries raise: OSError and its kin.
    """
    library, _, rest = name.partition(":")
    if library == "transformers":
        with _quiet_hub():
            return from_transformers.download(rest)
    config = origin(name).config
    if config.get("source") == "local-dir":
        raise FileNotFoundError(
            f"{config['file']} holds no weights, such as {_PREFERRED_FILES[0]} or {HUB_FILE}"
        )
    if repository := config.get("hf_hub_id"):
        repo, revision = hf_split(repository)
        *first, last = _hub_files(config)
        with _quiet_hub():
            for file in first:
                try:
                    return Path(hf_hub_download(repo, file, revision=revision))
                except LocalEntryNotFoundError:  # no network: another file's name will not help
                    raise
                except EntryNotFoundError:
                    continue
            return Path(hf_hub_download(repo, last, revision=revision))
    if url := config.get("url"):
        return Path(download_cached_file(url, check_hash=True))
    raise FileNotFoundError("timm knows no published weights of it")


def custom_load(config: dict[str, Any], file: Path) -> bool | str:
    """The value of timm's `custom_load` that is right for a file of a model's published weights.

    A config's own value describes the file at its url, an array archive of the original authors
    that the model's `load_pretrained` reads. The hub holds the same weights as timm's state dict,
    but where the value is "hf".
    """
    custom = config.get("custom_load", False)
    if custom == "hf" and file.name == config.get("hf_hub_filename"):
        return custom
    return custom if custom and holds_arrays(file) else False


def holds_arrays(file: Path) -> bool:
    """Whether a file is an .npz archive of numpy arrays, whatever its name."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def sha256(path: Path) -> str:
    """The hash of a file, which the hub's cache names large files by; of an index of several files
    the hash of their hashes."""
    parts = from_transformers.files(path)
    if parts != [path]:
        return hashlib.sha256(" ".join(map(sha256, parts)).encode()).hexdigest()
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else file_sha256(path)


def fetch(names: dict[str, str]) -> Iterator[tuple[str, WeightsFile]]:
    """The weights of many members (member's name to that of its model), one after another.

    Raises one UserError at the end that lists all members whose weights cannot be had. After one
    download has failed without a network, only the caches are searched.
    """
    missing: dict[str, str] = {}
    offline = None
    for member, name in names.items():
        path = cached(name)
        if path is None and offline is None:
            try:
                path = download(name)
            except Exception as error:  # the hub's client, urllib and the disk have their own
                missing[member] = first_line(error)
                offline = error if _no_network(error) else None
                continue
        if path is None:
            missing[member] = "not tried: the network failed before"
            continue
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


def _hub_files(config: dict[str, Any]) -> tuple[str, ...]:
    """What a repository of the hub may call its weights, in the order in which timm looks."""
    named = config.get("hf_hub_filename")
    if named and config.get("custom_load") == "hf":
        return (named,)
    file = named or HUB_FILE
    return (*_get_safe_alternatives(file), file)


def _in_folder(folder: Path) -> Path | None:
    """The weights that timm takes from a folder."""
    for name in _PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    for extension in _EXT_PRIORITY:
        if files := sorted(folder.glob(f"*{extension}")):
            return files[0]
    return None


def _url_file(url: str | tuple[str, str]) -> str:
    """What the file of a url is called in torch's cache."""
    return Path(urlparse(url).path).name if isinstance(url, str) else url[1]


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub client's warnings about its retries, for the block's time."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _no_network(error: BaseException) -> bool:
    """Whether an error means that nothing can be fetched, rather than that one file is missing."""
    if isinstance(error, LocalEntryNotFoundError):
        return True
    return not isinstance(error, HfHubHTTPError | HTTPError | FileNotFoundError)
