"""Image classifiers of transformers, with the preprocessing of their image processor.

The model and its processor come from the hub's cache or from a folder. transformers is an extra of
this package, imported where it is needed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from timm.models._hub import hf_split
from torch.nn import Module

from netkin.data.views import View
from netkin.errors import UserError, first_line
from netkin.zoo.member import Member, Task

Config = Mapping[str, Any]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""What a folder's weights are called, in the order in which transformers looks for them."""
CONFIGS = ("config.json", "preprocessor_config.json")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
TOLERANCE = 0.03
"""Mean difference of a pixel in [0, 1] between a processor's view of an image and timm's."""


class Transformers:
    """See `netkin.zoo.sources.Source`. Names are "org/name", "org/name@revision", or folders."""

    def config(self, name: str) -> dict[str, Any]:
        """`problem` is there where the processor sees images in a way that timm has no words for.

        Raises UserError where transformers cannot read it, and what the hub's client raises.
        """
        where, library = _folder(name), transformers()
        try:
            settings = library.AutoConfig.from_pretrained(where, local_files_only=True)
            processor = library.AutoImageProcessor.from_pretrained(where, local_files_only=True)
        except Exception as error:  # transformers has a dozen of its own
            absent = [file for file in CONFIGS if not (where / file).is_file()]
            reason = f"there is no {' and no '.join(absent)}" if absent else first_line(error)
            raise UserError(
                f"transformers:{name} cannot be read ({reason}); expected config.json and "
                "preprocessor_config.json of an image classifier, as save_pretrained of the model "
                "and of its image processor write them"
            ) from None
        described = {"family": settings.model_type, "num_classes": settings.num_labels}
        if isinstance(getattr(processor, "data_config", None), Mapping):  # timm's, wrapped
            return described | dict(processor.data_config)
        channels = getattr(settings, "num_channels", 3)
        return described | _images(processor, channels if channels in (1, 3) else 3)

    def file(self, name: str, config: Config, fetch: bool) -> Path | None:
        """The file of the weights, or the index of several, which are all there."""
        where = _folder(name)
        for weights in WEIGHTS:
            if (where / weights).is_file() and all(p.is_file() for p in files(where / weights)):
                return where / weights
        if not fetch:
            return None
        if not Path(name).expanduser().is_dir():
            repository, revision = hf_split(name)
            for weights in WEIGHTS:
                with suppress(EntryNotFoundError):
                    path = on_hub(repository, weights, revision)
                    for part in files(path):
                        on_hub(repository, part.name, revision)
                    return path
        raise FileNotFoundError(f"{name} holds no weights, such as {WEIGHTS[0]}")

    def ways(self, member: Member, config: Config, task: Task, size: int) -> list[Config]:
        """With the dataset's classes, unless the weights are the published ones."""
        if not member.uses_published(task) and task.weights == "train":
            return [{"num_labels": task.num_classes, **member.kwargs}]
        return [dict(member.kwargs)]

    def build(self, member: Member, config: Config, kwargs: Config, file: Path | None) -> Module:
        """The network in float32. Raises UserError where the weights lack a part of it."""
        where, library = _folder(member.transformers), transformers()
        model = library.AutoModelForImageClassification
        if file is None:
            settings = library.AutoConfig.from_pretrained(where, local_files_only=True, **kwargs)
            return model.from_config(settings)
        with silent(library):
            net, report = model.from_pretrained(
                where,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **kwargs,
            )
        missing = sorted(report["missing_keys"])
        missing += sorted(map(str, report.get("mismatched_keys", ())))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"transformers:{member.transformers}: its weights lack {missing[0]}{more}, which "
                "would be random; is it a classifier?"
            )
        return net


def _folder(name: str) -> Path:
    """The folder with a model's config. Raises UserError, and what the hub's client raises."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name.startswith((".", "/", "~")):
        raise UserError(f"transformers:{name}: there is no such folder")
    repository, revision = hf_split(name)
    config = on_hub(repository, CONFIGS[0], revision)
    with suppress(EntryNotFoundError):  # `config` raises an error that names what is missing
        on_hub(repository, CONFIGS[1], revision)
    return config.parent


def on_hub(repository: str, file: str, revision: str | None, fetch: bool = True) -> Path:
    """A file of a repository, from the cache or the hub. Raises what the hub's client does."""
    cached = try_to_load_from_cache(repository, file, revision=revision)
    if not isinstance(cached, str):
        cached = hf_hub_download(repository, file, revision=revision, local_files_only=not fetch)
    return Path(cached)


def files(weights: Path) -> list[Path]:
    """The files that hold the tensors: one, or the shards that an index names."""
    if weights.suffix != ".json":
        return [weights]
    shards = json.loads(weights.read_text())["weight_map"].values()
    return [weights.parent / shard for shard in sorted(set(shards))]


def _images(processor: Any, channels: int) -> dict[str, Any]:
    """An image processor in timm's words, tried on an image."""
    config: dict[str, Any] = {}
    try:
        size, pct, mode = _geometry(processor)
        mean, std = _normalisation(processor, size)
        config = {
            "input_size": (channels, size, size),
            "crop_pct": pct,
            "crop_mode": mode,
            "interpolation": RESAMPLE[int(getattr(processor, "resample", None) or 2)],
            "mean": mean,
            "std": std,
        }
        reason = _difference(processor, config)
    except Exception as error:  # a processor of its own kind raises what it will
        reason = first_line(error)
    if not reason:
        return config
    kind = type(processor).__name__
    return config | {
        "problem": f"its {kind} is not what resizing, cropping and scaling give ({reason})"
    }


def _geometry(processor: Any) -> tuple[int, float, str]:
    """Pixels a side, crop_pct and crop_mode."""
    size = dict(processor.size or {}) if getattr(processor, "do_resize", True) else {}
    crop = dict(getattr(processor, "crop_size", None) or {})
    if getattr(processor, "do_center_crop", False) and crop:
        side = _square(crop)
        if "shortest_edge" in size:
            return side, crop_pct(side, int(size["shortest_edge"])), "center"
        return side, side / _square(size), "squash"
    if "shortest_edge" in size:  # ConvNeXT: a crop below 384 pixels, none above
        side = int(size["shortest_edge"])
        pct = getattr(processor, "crop_pct", None)
        if not pct:
            raise ValueError("images keep their aspect ratio")
        return (side, float(pct), "center") if side < 384 else (side, 1.0, "squash")
    return _square(size), 1.0, "squash"


def _square(size: Mapping[str, Any]) -> int:
    height, width = int(size["height"]), int(size["width"])
    if height != width:
        raise ValueError(f"images are {height} x {width}")
    return height


def crop_pct(crop: int, resize: int) -> float:
    """The part of the shorter edge that a central crop keeps, such that timm resizes it to `resize`
    pixels (it rounds crop / crop_pct down)."""
    exact = crop / resize
    return exact if math.floor(crop / exact) == resize else crop / (resize + 0.5)


def _normalisation(processor: Any, side: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in [0, 1], read off what it makes of black and of white: processors
    scale, shift and normalise in several ways, and some twice."""

    def values(gray: int) -> torch.Tensor:
        image = Image.new("RGB", (side, side), (gray,) * 3)
        return processor(image, return_tensors="pt")["pixel_values"][0].double().mean((1, 2))

    def rounded(values: torch.Tensor) -> tuple[float, ...]:
        return tuple(round(value, 6) + 0.0 for value in values.tolist())

    black, white = values(0), values(255)
    std = 1 / (white - black)
    return rounded(-black * std), rounded(std)


def _difference(processor: Any, config: dict[str, Any]) -> str:
    """How a processor's view of a smooth image differs from timm's; empty where it does not."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((560, 400), Image.Resampling.BICUBIC)
    channels, side, _ = config["input_size"]
    if channels == 1:
        image = image.convert("L").convert("RGB")
    theirs = processor(image, return_tensors="pt")["pixel_values"][0].float()
    if theirs.shape[-2:] != (side, side):
        return f"it gives images of {theirs.shape[-2]} x {theirs.shape[-1]} pixels"
    view = View(side, config["crop_pct"], config["crop_mode"], config["interpolation"])
    ours = torch.from_numpy(np.asarray(view.transform()(image))).float() / 255
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    difference = (theirs * std + mean - ours).abs().mean().item()
    return f"pixels differ by {difference:.2f} on average" if difference > TOLERANCE else ""


def transformers() -> Any:
    """The library. Raises UserError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"transformers cannot be imported ({first_line(error)}); install it with: "
            "pip install 'netkin[transformers]'"
        ) from None
    return transformers


@contextmanager
def silent(library: Any) -> Iterator[None]:
    """Without transformers' progress bars and warnings, for the block's time."""
    logging = library.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
