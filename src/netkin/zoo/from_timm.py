"""timm's models: their names, published weights, and networks (see `netkin.zoo.sources`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
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
from torch import nn

from netkin.errors import UserError, near
from netkin.zoo import xception as xception  # it registers gluon_xception65 with timm
from netkin.zoo.checkpoints import holds_arrays
from netkin.zoo.task import Task

if TYPE_CHECKING:
    from netkin.zoo.member import Member

HUB_FILE = "pytorch_model.bin"
"""timm's name for a repository's weights; it prefers safetensors of the same name stem."""


def config(name: str) -> dict[str, Any]:
    """Of `architecture.tag`, `hf-hub:org/name` or `local-dir:folder`. Beside what all sources have:
    `architecture`, and the `arguments` that come with the model."""
    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return _registered(get_deprecated_models().get(name) or name)
    source, rest = parse_model_name(name)
    load = load_model_config_from_hf if source == "hf-hub" else load_model_config_from_path
    found, architecture, arguments = load(rest)
    found = dict(found or {})
    if not timm.is_model(str(architecture)):
        raise UserError(
            f"{name}: timm has no architecture {architecture!r}, which its config.json "
            f"names{near(str(architecture), timm.list_models())}"
        )
    if "num_classes" not in found:
        raise UserError(f"{name}: its config.json lacks num_classes in pretrained_cfg")
    return _described(found, str(architecture), dict(arguments or {}))


def _registered(name: str) -> dict[str, Any]:
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        advice = "; a class of your own is {name: ..., _target_: my_pkg.MyNet}" if tag else ""
        raise UserError(
            f"timm has no model {name!r}{near(architecture, timm.list_models())} "
            f"(all names: timm.list_models(){advice})"
        )
    tags = [split_model_name_tag(n)[1] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"timm's {architecture} has no weights tagged {tag!r}{near(tag, tags)} "
            f"(tags: {', '.join(tags) or 'none'})"
        )
    found = timm.get_pretrained_cfg(name)
    return _described(found.to_dict() if found else {}, architecture, {})


def _described(config: dict[str, Any], architecture: str, arguments: dict) -> dict[str, Any]:
    family = timm.model_entrypoint(architecture).__module__.split(".")[-1]
    return config | {"family": family, "architecture": architecture, "arguments": arguments}


def file(name: str, config: Mapping[str, Any], fetch: bool) -> Path | None:
    """In the folder of a local model, the hub's cache, or torch's."""
    if config.get("source") == "local-dir":
        folder = Path(config["file"])
        if fetch:
            raise FileNotFoundError(
                f"{folder} holds no weights, such as {_PREFERRED_FILES[0]} or {HUB_FILE}"
            )
        others = (path for ext in _EXT_PRIORITY for path in sorted(folder.glob(f"*{ext}")))
        preferred = (path for n in _PREFERRED_FILES if (path := folder / n).is_file())
        return next(preferred, None) or next(others, None)
    url, repository = config.get("url"), config.get("hf_hub_id")
    if repository and (path := _on_hub(repository, config, fetch)):
        return path
    if url:
        if fetch:
            return Path(download_cached_file(url, check_hash=True))
        in_cache = Path(urlparse(url).path).name if isinstance(url, str) else url[1]
        path = Path(get_cache_dir()) / in_cache
        return path if path.is_file() else None
    if fetch:
        raise FileNotFoundError("timm knows no published weights of it")
    return None


def _on_hub(repository: str, config: Mapping[str, Any], fetch: bool) -> Path | None:
    """The weights of a repository by the first of the names that timm takes, in its order."""
    repo, revision = hf_split(repository)
    named = config.get("hf_hub_filename")
    names = [*_get_safe_alternatives(named or HUB_FILE), named or HUB_FILE]
    if named and config.get("custom_load") == "hf":
        names = [named]
    missing = None
    for name in names:
        path = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return Path(path)
        try:
            if fetch:
                return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError:  # no network: another file's name will not help
            raise
        except EntryNotFoundError as error:
            missing = error
    if missing:
        raise missing
    return None


def ways(
    member: "Member", config: Mapping[str, Any], task: Task, size: int
) -> list[dict[str, Any]]:
    """As published, or with the task's arguments that suit its images, in order."""
    channels = {} if member.in_chans in (None, 3) else {"in_chans": member.in_chans}
    kwargs = {**channels, **member.kwargs}
    if not config:
        return [{"num_classes": task.num_classes, **fit, **kwargs} for fit in task.fit]
    kwargs = {**config["arguments"], **kwargs}
    if member.input_size in (None, config.get("input_size", [None])[-1]):
        return [kwargs]
    return [{"img_size": size, **kwargs}, kwargs]  # most convolutional networks take any size


def build(
    member: "Member", config: Mapping[str, Any], kwargs: Mapping[str, Any], file: Path | None
) -> nn.Module:
    """See `netkin.zoo.sources.Source`."""
    if not config:
        return timm.create_model(member.timm, pretrained=False, **kwargs)
    trained = {
        "num_classes": config.get("num_classes"),
        "in_chans": (config.get("input_size") or [3])[0],
        **config["arguments"],  # timm exports both
    }
    for key in ("num_classes", "in_chans"):
        if file and kwargs.get(key, trained[key]) != trained[key]:
            raise UserError(
                f"{member.name}: kwargs.{key}={kwargs[key]} would put a layer of random weights "
                f"into the published {member.timm}; leave it out, or give a checkpoint"
            )
    # The file is the only source of weights, so that timm fetches nothing.
    only = {"source": "", "hf_hub_id": None, "url": "", "file": file and str(file)}
    if file is not None:
        only["custom_load"] = _custom_load(config, file)
    ours = ("family", "architecture", "arguments")
    return timm.create_model(
        config["architecture"],
        pretrained=file is not None,
        pretrained_cfg={k: v for k, v in config.items() if k not in ours} | only,
        **kwargs,
    )


def _custom_load(config: Mapping[str, Any], file: Path) -> bool | str:
    """The value of timm's `custom_load` that is right for a file of published weights.

    A config's own value describes the file at its url, an array archive of the original authors
    that the model's `load_pretrained` reads. The hub holds the same weights as timm's state dict,
    but where the value is "hf".
    """
    custom = config.get("custom_load", False)
    if custom == "hf" and file.name == config.get("hf_hub_filename"):
        return custom
    return custom if custom and holds_arrays(file) else False
