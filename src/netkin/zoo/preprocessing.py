"""A member's own preprocessing: resize, crop and normalisation."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

from netkin.data.views import View
from netkin.errors import UserError
from netkin.zoo import checkpoints
from netkin.zoo.member import Member, Task

VIEW = ("crop_pct", "crop_mode", "interpolation")
"""Fields of a view, besides its size."""
DEFAULT = 0.5
"""Mean and standard deviation of each channel where none is known."""
CONFIGS = ("pretrained_cfg", "data_config", "config", "args", "hyper_parameters", "hparams", "")
"""Where checkpoints keep settings, among them those of the images."""


@dataclass(frozen=True)
class Preprocessing:
    """A member's own view of an image and its normalisation ([3] each, for pixels in [0, 1]).

    One value of each is of a network of gray images.
    """

    view: View
    mean: tuple[float, ...] = (DEFAULT,) * 3
    std: tuple[float, ...] = (DEFAULT,) * 3


def preprocessing(member: Member, task: Task) -> Preprocessing:
    """The preprocessing a member was, or will be, trained with.

    Each part is the member's field where it is given, else of its checkpoint's own config, else of
    the published weights that it names, else the dataset's: its input size, and 0.5.

    Raises UserError where the input size is unknown, or channels do not go with mean and std.
    """
    config = known_config(member, task)
    size = member.input_size or config.get("input_size") or task.input_size
    if size is None:
        raise UserError(f"{member.name}: give its input_size, in pixels a side")
    if (problem := config.get("problem")) and None in (member.input_size, member.crop_pct):
        raise UserError(
            f"{member.name}: {problem}; give the member input_size, crop_pct, crop_mode and "
            "interpolation of its own"
        )
    view = {key: config[key] for key in VIEW if config.get(key) is not None}
    view |= {key: getattr(member, key) for key in VIEW if getattr(member, key) is not None}
    mean, std = (_each_channel(member, key, config) for key in ("mean", "std"))
    return Preprocessing(View(size, **view), mean, std)


def unknown_preprocessing(member: Member, task: Task) -> bool:
    """Whether a member with weights of its own is run with a guessed mean and std.

    That is so when it has neither these fields nor a config with them, and was not trained here.
    """
    if member.mean is not None or "mean" in known_config(member, task):
        return False
    if member.checkpoint is None:
        return bool(member.target) and member.uses_published(task)
    return not trained_here(Path(member.checkpoint).expanduser())


def known_config(member: Member, task: Task) -> dict[str, Any]:
    """What is known of a member's preprocessing besides its fields, by the names of these fields.

    Keys are there only where a config has them; it is empty for members that are trained here.
    """
    config: dict[str, Any] = {}
    lends = "." in member.torchvision  # named weights, to a checkpoint or a training
    if lends or (member.source and (task.weights == "pretrained" or member.uses_published(task))):
        from netkin.zoo import sources

        config = _resolved(sources.config(member.source))
    if member.checkpoint:
        path = Path(member.checkpoint).expanduser()
        if path.is_file() and not trained_here(path):
            config |= _recorded(path, path.stat().st_mtime_ns)
    return config


def _each_channel(member: Member, key: str, config: Mapping[str, Any]) -> tuple[float, ...]:
    channels = member.in_chans or config.get("in_chans") or 3
    given = config.get(key, (DEFAULT,)) if getattr(member, key) is None else getattr(member, key)
    if len(set(given)) == 1:
        return tuple(given[:1]) * channels
    if len(given) != channels:
        raise UserError(
            f"{member.name}: {key} is {list(given)}, expected {channels} number"
            f"{'s' * (channels > 1)}, one a channel (in_chans: {channels})"
        )
    return tuple(given)


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's reading of a config in its own words, completed by its defaults."""
    from timm.data import resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=dict(config))
    return _fields(resolved) | {key: config[key] for key in ("problem",) if key in config}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in timm's words under the names of Member's fields."""
    size = config.get("input_size") or config.get("img_size") or config.get("image_size")
    fields = {key: config[key] for key in VIEW if config.get(key) is not None}
    if isinstance(size, Sequence) and len(size) == 3 and size[0] in (1, 3):
        fields["in_chans"] = int(size[0])
    side = size[-1] if isinstance(size, Sequence) and size else size
    if isinstance(side, int):
        fields["input_size"] = side
    for key in ("mean", "std"):
        fields[key] = tuple(float(value) for value in config[key])
    return fields


@cache
def _recorded(path: Path, changed: int) -> dict[str, Any]:
    """A checkpoint's config of its images: in the file, or in its folder if it was exported."""
    del changed  # of the file: a changed file is read again
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                inside: Any = {key: _json(v) for key, v in (file.metadata() or {}).items()}
        else:
            inside = checkpoints.read(path, path.name, lazily=True)
    except Exception:  # loading the weights reports it
        inside = {}
    for key in CONFIGS if isinstance(inside, Mapping) else ():
        if fields := _if_complete(inside.get(key) if key else inside):
            return fields
    from timm.models._hub import _PREFERRED_FILES

    if path.name not in _PREFERRED_FILES:
        return {}
    config = path.with_name("config.json")
    if config.is_file() and (fields := _if_complete(_json(config.read_text()))):
        return fields
    if path.with_name("preprocessor_config.json").is_file():
        from netkin.zoo import sources

        return _resolved(sources.config(f"transformers:{path.parent}"))
    return {}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _if_complete(config: Any) -> dict[str, Any]:
    """The fields of a config with mean and std; empty of other configs."""
    if isinstance(config, argparse.Namespace):
        config = vars(config)
    if not isinstance(config, Mapping):
        return {}
    if isinstance(config.get("pretrained_cfg"), Mapping):
        return _if_complete(config["pretrained_cfg"])
    if all(_numbers(config.get(key)) for key in ("mean", "std")):
        return _fields(config)
    name = config.get("model")
    if "crop_pct" not in config or not isinstance(name, str):
        return {}
    import timm
    from timm.data import resolve_data_config

    if timm.is_model(name.partition(".")[0]):
        # the arguments of timm's training script, which leaves to the model what is None
        published = timm.get_pretrained_cfg(name, allow_unregistered=True)
        known = published.to_dict() if published else {}
        return _fields(resolve_data_config(dict(config), pretrained_cfg=known))
    return {}


def _numbers(value: Any) -> bool:
    plain = isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (1, 3)
    return plain and all(isinstance(v, int | float) and math.isfinite(v) for v in value)


def trained_here(path: Path) -> bool:
    """Whether a file of weights has netkin's notes beside it."""
    try:
        notes = path.with_suffix(".json").read_text()
        return path.suffix == ".safetensors" and "made_of" in json.loads(notes)
    except (OSError, ValueError, TypeError):
        return False
