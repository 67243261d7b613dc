"""Where networks and their published weights come from.

timm, torchvision, transformers, or a class of one's own: each is a `Source`. Another one needs such
a class, a line in SOURCES, and a field of `netkin.zoo.member.Member`.
"""

import hashlib
import importlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlparse

import timm
import torchvision
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
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
from torch.nn import Module
from torchvision.models import get_model_builder, get_model_weights, list_models

from netkin.errors import UserError, check_known, first_line, near, reading
from netkin.store.files import file_sha256
from netkin.zoo import xception as xception  # it registers gluon_xception65 with timm
from netkin.zoo.families import timm_family
from netkin.zoo.from_transformers import Config, Transformers, crop_pct, files, on_hub
from netkin.zoo.member import Member, Task

HUB_FILE = "pytorch_model.bin"
"""timm's name for a repository's weights; it prefers safetensors of the same name stem."""


class Source(Protocol):
    """What a source of networks does with a name of its own."""

    def config(self, name: str) -> dict[str, Any]:
        """What is published under a name, in the words of timm's pretrained_cfg: preprocessing,
        num_classes, and where the weights are. Beside these: `family`, the group of architectures.

        Raises UserError where there is no such architecture.
        """
        ...

    def file(self, name: str, config: Config, fetch: bool) -> Path | None:
        """The file of the published weights; None where it is not on this machine.

        With `fetch` it is downloaded then. Raises what the library's client raises.
        """
        return None

    def ways(self, member: Member, config: Config, task: Task, size: int) -> list[Config]:
        """The arguments to build a network with, in the order in which they are tried.

        Args:
            member: whose own arguments have precedence.
            config: of its published weights, if the network is to be as published; else empty.
            task: the dataset.
            size: pixels a side of its images.
        """
        return [dict(member.kwargs)]

    def build(self, member: Member, config: Config, kwargs: Config, file: Path | None) -> Module:
        """The network, with the published weights of `file` unless that is None.

        Raises what the library raises.
        """
        ...


class Timm(Source):
    """Names of timm's registry, `hf-hub:org/name` and `local-dir:folder`."""

    def config(self, name: str) -> dict[str, Any]:
        """Beside what all sources have: `architecture`, and the `arguments` of the model."""
        if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            return self._registered(get_deprecated_models().get(name) or name)
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
        return self._described(found, str(architecture), dict(arguments or {}))

    def _registered(self, name: str) -> dict[str, Any]:
        architecture, tag = split_model_name_tag(name)
        if not timm.is_model(architecture):
            advice = "; a class of your own is {name: ..., _target_: my_pkg.MyNet}" if tag else ""
            raise UserError(
                f"timm has no model {name!r}{near(architecture, timm.list_models())} "
                f"(all names: timm.list_models(){advice})"
            )
        tags = [split_model_name_tag(n)[1] for n in timm.list_pretrained(f"{architecture}.*")]
        if tag:
            check_known(tag, tags, f"timm's {architecture} has no weights tagged {tag!r}")
        found = timm.get_pretrained_cfg(name)
        return self._described(found.to_dict() if found else {}, architecture, {})

    def _described(self, config: dict[str, Any], architecture: str, arguments: dict) -> dict:
        return config | {
            "family": timm_family(architecture),
            "architecture": architecture,
            "arguments": arguments,
        }

    def file(self, name: str, config: Config, fetch: bool) -> Path | None:
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
        repository = config.get("hf_hub_id")
        url = None if config.get("custom_load") else config.get("url")  # an archive of arrays
        if repository and (path := self._on_hub(repository, config, fetch)):
            return path
        if url and fetch:
            return Path(download_cached_file(url, check_hash=True))
        if url:
            in_cache = Path(urlparse(url).path).name if isinstance(url, str) else url[1]
            path = Path(get_cache_dir()) / in_cache
            return path if path.is_file() else None
        if fetch:
            raise FileNotFoundError("timm knows no published weights of it")
        return None

    def _on_hub(self, repository: str, config: Config, fetch: bool) -> Path | None:
        """The weights of a repository by the first of the names that timm takes, in its order."""
        repo, revision = hf_split(repository)
        name = config.get("hf_hub_filename") or HUB_FILE
        missing = None
        for file in (*_get_safe_alternatives(name), name):
            try:
                return on_hub(repo, file, revision, fetch)
            except EntryNotFoundError as error:
                if fetch and isinstance(error, LocalEntryNotFoundError):
                    raise  # no network: another file's name will not help
                missing = error
        if fetch and missing:
            raise missing
        return None

    def ways(self, member: Member, config: Config, task: Task, size: int) -> list[Config]:
        """As published, or with the task's arguments that suit its images, in order."""
        channels = {} if member.in_chans in (None, 3) else {"in_chans": member.in_chans}
        kwargs = {**channels, **member.kwargs}
        if not config:
            return [{"num_classes": task.num_classes, **fit, **kwargs} for fit in task.fit]
        kwargs = {**config["arguments"], **kwargs}
        if member.input_size in (None, config.get("input_size", [None])[-1]):
            return [kwargs]
        return [{"img_size": size, **kwargs}, kwargs]  # most convolutional networks take any size

    def build(self, member: Member, config: Config, kwargs: Config, file: Path | None) -> Module:
        """See `Source`. Raises UserError where arguments do not go with the published weights."""
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
                    f"{member.name}: kwargs.{key}={kwargs[key]} would put a layer of random "
                    f"weights into the published {member.timm}; leave it out, or give a checkpoint"
                )
        # The file is the only source of weights, so that timm fetches nothing.
        # A config's custom_load describes the original authors' archive at its url, not the hub's.
        only = {"source": "", "hf_hub_id": None, "url": "", "file": file and str(file)}
        theirs = {
            k: v for k, v in config.items() if k not in ("family", "architecture", "arguments")
        }
        return timm.create_model(
            config["architecture"],
            pretrained=file is not None,
            pretrained_cfg=theirs | only | {"custom_load": False},
            **kwargs,
        )


class Torchvision(Source):
    """Classifiers of torchvision, with the preprocessing that their own weights name."""

    def _weights(self, name: str) -> Any:
        """The weights (a member of torchvision's enumerations) of "resnet18" or "resnet18.NAME"."""
        architecture, _, chosen = name.partition(".")
        names = list_models(module=torchvision.models)
        check_known(architecture, names, f"torchvision has no classifier {architecture!r}")
        weights: Any = get_model_weights(architecture)
        if not chosen:
            return weights.DEFAULT
        names = list(weights.__members__)
        check_known(chosen, names, f"torchvision's {architecture} has no weights {chosen!r}")
        return weights[chosen]

    def config(self, name: str) -> dict[str, Any]:
        weights = self._weights(name)
        transforms: Any = weights.transforms()
        (crop,), (resize,) = transforms.crop_size, transforms.resize_size
        return {
            "family": get_model_builder(name.partition(".")[0]).__module__.split(".")[-1],
            "url": weights.url,
            "num_classes": len(weights.meta["categories"]),
            "input_size": (3, crop, crop),
            "crop_pct": crop_pct(crop, resize),
            "crop_mode": "center",
            "interpolation": transforms.interpolation.value,
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
        }

    def file(self, name: str, config: Config, fetch: bool) -> Path | None:
        """In torch's cache, where timm keeps files of a url, too."""
        return SOURCES["timm"].file(name, config, fetch)

    def ways(self, member: Member, config: Config, task: Task, size: int) -> list[Config]:
        """Vision transformers take their images' size. GoogLeNet and Inception, where they take
        the published weights' normalisation, bring it to their own as with these weights."""
        kwargs = dict(member.kwargs)
        if not member.uses_published(task) and task.weights == "train":
            kwargs = {"num_classes": task.num_classes, **kwargs}
        architecture, _, named = member.torchvision.partition(".")
        if architecture in ("googlenet", "inception_v3") and (config or named):
            kwargs = {"transform_input": True, **kwargs}
        return [{"image_size": size, **kwargs}, kwargs]

    def build(self, member: Member, config: Config, kwargs: Config, file: Path | None) -> Module:
        """See `Source`. The weights are those of torch's cache."""
        name = member.torchvision
        weights = self._weights(name) if file else None
        return get_model_builder(name.partition(".")[0])(weights=weights, **kwargs)


class Target(Source):
    """A class, or a function that returns a network, by its dotted name; nothing is published."""

    def config(self, name: str) -> dict[str, Any]:
        return {"family": find(name).__name__}

    def build(self, member: Member, config: Config, kwargs: Config, file: Path | None) -> Module:
        """See `Source`. Raises UserError where the call raises, or returns something else."""
        try:
            net = find(member.target)(**kwargs)
        except Exception as error:  # a class of the user's raises what it will
            raise UserError(
                f"{member.name} ({member.target}) cannot be built ({type(error).__name__}: "
                f"{first_line(error)}); see its kwargs"
            ) from None
        if not isinstance(net, Module):
            raise UserError(
                f"{member.name}: {member.target} must give an nn.Module, got an object of type "
                f"{type(net).__name__}"
            )
        return net


@cache
def find(target: str) -> Callable[..., Any]:
    """The class or function of a dotted name, imported.

    Raises UserError when it cannot be imported or called.
    """
    module_name, dot, attribute = target.rpartition(".")
    if not dot:
        raise UserError(f"_target_ must be a dotted name such as my_pkg.MyNet, got {target!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's raises what it will
        missing = str(getattr(error, "name", None))
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            advice = "start in its folder, put that on PYTHONPATH, or install it"
            raise UserError(f"there is no module {missing} ({target}); {advice}") from None
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{module_name} cannot be imported ({reason})") from None
    value = getattr(module, attribute, None)
    if not callable(value):
        origin = f"{module_name} ({getattr(module, '__file__', None)})"
        hint = near(attribute, dir(module)) if value is None else f": it is {value!r}"
        raise UserError(f"{origin} has no class or function {attribute!r}{hint}")
    return value


SOURCES: dict[str, Source] = {
    "timm": Timm(),
    "torchvision": Torchvision(),
    "transformers": Transformers(),
    "target": Target(),
}
"""By the field of a member that names its architecture."""


def _split(source: str) -> tuple[Source, str]:
    """The source and the name in it of "torchvision:name", and so on, or timm's name."""
    kind, colon, name = source.partition(":")
    known = colon and kind in SOURCES
    return (SOURCES[kind], name) if known else (SOURCES["timm"], source)


def config(source: str) -> dict[str, Any]:
    """What is published of `architecture.tag`, `hf-hub:org/name` or `local-dir:folder` of timm's,
    of `torchvision:name`, `transformers:name` or `target:module.name`; see `Source.config`.

    A local folder, which can change meanwhile, is read each time.

    Raises UserError when there is no such name, or its config.json cannot be read.
    """
    return (_config if source.startswith("local-dir:") else published)(source)


def _config(source: str) -> dict[str, Any]:
    library, name = _split(source)
    expected = "expected a model in the format of timm or transformers, on the hub or in a folder"
    # The hub's client, json and timm have errors of their own.
    with reading(f"{source}: its config.json", expected, Exception), _quiet_hub():
        return library.config(name)


published = cache(_config)


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


def fetch(
    names: dict[str, str], lacking: dict[str, str] | None = None
) -> Iterator[tuple[str, Path, str]]:
    """The published weights of many members (member's name to that of its model), one by one: the
    member, its file, and the hash of its bytes.

    Raises one UserError at the end that lists all members whose weights cannot be had, unless their
    reasons go to `lacking`. After one download from a host has failed without a network, only the
    caches are searched for what is there.
    """
    missing = {} if lacking is None else lacking
    offline: set[str] = set()
    for member, source in names.items():
        library, name = _split(source)
        host = _host(config(source))
        try:
            with _quiet_hub():
                path = library.file(name, config(source), fetch=False)
                if path is None and host not in offline:
                    path = library.file(name, config(source), fetch=True)
            reason = f"not tried: {host} could not be reached before"
        except Exception as error:  # the hub's client, urllib and the disk have their own
            path, reason = None, first_line(error)
            offline |= {host} if _no_network(error) else set()
        if path is None:
            missing[member] = reason
        else:
            yield member, path, _sha256(path)
    if missing and lacking is None:
        reason = next(iter(missing.values()))
        raise UserError(
            f"the weights of {len(missing)} of {len(names)} members cannot be had: "
            f"{', '.join(f'{member} ({names[member]})' for member in missing)}; the first failed "
            f"with: {reason}. Fetch them on a machine with a network (they are then in "
            f"{constants.HF_HUB_CACHE} and {get_cache_dir()}; copy those, or set HF_HUB_CACHE and "
            "TORCH_HOME to them), or name local files: {name: ..., timm: ..., checkpoint: PATH}"
        )


def _host(config: Config) -> str:
    """Where a model's weights are downloaded from: the hub, unless only an address is known."""
    address = "" if config.get("hf_hub_id") else config.get("url")
    return (isinstance(address, str) and urlparse(address).netloc) or "the hub"


def _no_network(error: BaseException) -> bool:
    """Whether an error means that nothing can be fetched, rather than that one file is missing."""
    if isinstance(error, LocalEntryNotFoundError):
        return True
    return not isinstance(error, HfHubHTTPError | HTTPError | FileNotFoundError | UserError)


def _sha256(path: Path) -> str:
    """The hash of a file, which the hub's cache names large files by; of an index of several files
    the hash of their hashes."""
    parts = files(path)
    if parts != [path]:
        return hashlib.sha256(" ".join(map(_sha256, parts)).encode()).hexdigest()
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else file_sha256(path)


def model_page(source: str) -> str | None:
    """The address of the page about a model, as `config` takes its name; None where there is none.
    Names that timm has renamed are found, too. Nothing is read from a network."""
    library, _, rest = source.partition(":")
    if library in ("hf-hub", "transformers") and rest.count("/") == 1:
        return f"https://huggingface.co/{rest}"
    if library == "torchvision":
        return "https://docs.pytorch.org/vision/stable/models.html"
    name = get_deprecated_models().get(source) or source
    found = timm.get_pretrained_cfg(name) if timm.is_model(split_model_name_tag(name)[0]) else None
    return f"https://huggingface.co/{found.hf_hub_id}" if found and found.hf_hub_id else None
