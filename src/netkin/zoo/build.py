"""From a member to a classifier of pixels in [0, 1]."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from netkin.data.views import View
from netkin.errors import UserError
from netkin.zoo.member import Member
from netkin.zoo.published import custom_load, first_line, origin

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What the zoo must know of a dataset to build classifiers for it.

    Attributes:
        dataset: its name, under which trained weights are kept.
        num_classes: K.
        weights: "train" (members are trained on the dataset's own training images) or
            "pretrained" (timm's published weights).
        input_size: pixels a side for trained members; None takes each pretrained model's own.
        fit: timm arguments that suit small images, tried in order; the first that an
            architecture's constructor takes is used.
        classes: their names; a pretrained ImageNet classifier can be compared on some of its
            classes when they are WordNet ids.
    """

    dataset: str
    num_classes: int
    weights: str = "train"
    input_size: int | None = None
    fit: tuple[Mapping[str, Any], ...] = ({},)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """A member's own view of an image and its normalisation ([3] each, for pixels in [0, 1])."""

    view: View
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


def preprocessing(member: Member, task: Task) -> Preprocessing:
    """The preprocessing a member was, or will be, trained with."""
    if task.weights == "train":
        assert task.input_size is not None
        return Preprocessing(View(member.input_size or task.input_size))
    cfg = resolve_data_config(pretrained_cfg=origin(member.timm).config)
    return Preprocessing(
        View(
            member.input_size or cfg["input_size"][-1],
            cfg["crop_pct"],
            cfg["crop_mode"],
            cfg["interpolation"],
        ),
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
    )


class Classifier(nn.Module):
    """A timm model behind its normalisation: pixels [B, 3, H, W] in [0, 1] to logits [B, K].

    `columns` picks K of the model's own classes, in the dataset's order; None takes all.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        name: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        columns: Sequence[int] | None = None,
    ):
        super().__init__()
        self.net = net
        self.name = name
        self.columns = None if columns is None else list(columns)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.net((pixels - self.mean) / self.std)
        return logits if self.columns is None else logits[:, self.columns]


def build(member: Member, task: Task, weights: Path | None = None, seed: int = 0) -> Classifier:
    """A member's classifier, with the weights of a file, timm's own, or drawn from `seed`.

    Raises UserError when the architecture cannot take the dataset's images or has another number
    of classes, and when the weights do not fit it.
    """
    own = preprocessing(member, task)
    if task.weights == "pretrained":
        torch.manual_seed(seed)
        net = _pretrained(member, weights)
    else:
        net = _fitted(member, task, own.view.input_size, seed)
    columns = _columns(net, member, task)
    if weights is not None and (task.weights == "train" or member.checkpoint):
        load_weights(net, weights, member.name)
    return Classifier(net, member.name, own.mean, own.std, columns)


def blueprint(member: Member, task: Task) -> nn.Module:
    """A member's architecture, as `build` makes it, on torch's meta device: shapes, no weights.

    Where timm cannot build it there, it is on the CPU with random weights. Raises UserError when
    the architecture cannot take the dataset's images.
    """

    def made() -> nn.Module:
        if task.weights == "pretrained":
            return _pretrained(member, None)
        return _fitted(member, task, preprocessing(member, task).view.input_size, 0)

    try:
        with torch.device("meta"):
            return made()
    except UserError as error:
        log.info("%s on the meta device: %s", member.name, error)
        return made()


def _columns(net: nn.Module, member: Member, task: Task) -> list[int] | None:
    """Which of the model's classes are the dataset's; None where they are the same."""
    classes = getattr(net, "num_classes", task.num_classes)
    wnids = _wnids(classes) if task.weights == "pretrained" else []
    if task.classes and set(task.classes) <= set(wnids):
        columns = [wnids.index(wnid) for wnid in task.classes]
        return None if columns == list(range(classes)) else columns
    if classes != task.num_classes:
        raise UserError(
            f"{member.name} tells {classes} classes apart, {task.dataset} has {task.num_classes}: "
            "take a model of these classes, without num_classes in its kwargs, or (for a part of "
            "ImageNet) name the class folders by WordNet id"
        )
    return None


def knows_more(member: Member, task: Task) -> bool:
    """Whether a pretrained ImageNet model is read at some of its classes only."""
    if task.weights != "pretrained":
        return False
    known = {**origin(member.timm).config, **member.kwargs}["num_classes"]
    return known > task.num_classes and set(task.classes) <= set(_wnids(known))


@cache
def _wnids(classes: int) -> list[str]:
    """WordNet ids of an ImageNet classifier of so many classes, in order; empty if unknown."""
    known = infer_imagenet_subset({"num_classes": classes})
    return ImageNetInfo(known).label_names() if known else []


def _fitted(member: Member, task: Task, size: int, seed: int) -> nn.Module:
    """The architecture with the first of the task's arguments that make it take its images."""
    images = torch.zeros(2, 3, size, size)
    failure = None
    for fit in task.fit:
        kwargs = {"num_classes": task.num_classes, **fit, **member.kwargs}
        torch.manual_seed(seed)
        try:
            net = timm.create_model(member.timm, pretrained=False, **kwargs)
            with torch.no_grad():
                net.eval()(images)
        except Exception as error:  # timm's architectures refuse in a dozen ways
            failure = failure or error
            log.info("%s does not take %s: %s", member.name, kwargs, error)
        else:
            return net.train()
    raise UserError(
        f"{member.name} ({member.timm}) cannot be built for {size} x {size} images "
        f"({first_line(failure)}); give it other kwargs or another input_size"
    )


def _pretrained(member: Member, weights: Path | None) -> nn.Module:
    """The architecture as published, with the published weights in `weights` unless it is the
    member's own checkpoint, which `load_weights` checks and loads."""
    found = origin(member.timm)
    file = None if member.checkpoint or weights is None else str(weights)
    # As if the file had always been the source of these weights: nothing is fetched here.
    config = {**found.config, "source": "", "hf_hub_id": None, "url": "", "file": file}
    if file is not None:
        config["custom_load"] = custom_load(found.config, Path(file))
    kwargs = {**found.arguments, **member.kwargs}
    for key in ("num_classes", "in_chans"):
        if file and kwargs.get(key, found.config.get(key)) != found.config.get(key):
            raise UserError(
                f"{member.name}: kwargs.{key}={kwargs[key]} would put a layer of random weights "
                f"into the published {member.timm}; leave it out, or give a checkpoint"
            )
    published = partial(
        timm.create_model, found.architecture, pretrained=file is not None, pretrained_cfg=config
    )
    try:
        if member.input_size in (None, found.config.get("input_size", [None])[-1]):
            return published(**kwargs)
        return _resized(published, kwargs, int(member.input_size or 0))
    except Exception as error:  # timm's architectures refuse in a dozen ways
        with_file = f" with the weights {file}" if file else ""
        raise UserError(
            f"{member.name} ({member.timm}) cannot be built{with_file} ({first_line(error)})"
        ) from None


def _resized(published: Callable[..., nn.Module], kwargs: dict, size: int) -> nn.Module:
    """A published model for another input size: told of it where it must be, and tried."""
    try:
        net = published(**{"img_size": size, **kwargs})
    except TypeError:  # most convolutional networks take any size
        net = published(**kwargs)
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return net.train(training)


def load_weights(net: nn.Module, path: Path, name: str) -> None:
    """Load a weights file strictly; a misfit names the first key and both shapes."""
    if not path.is_file():
        raise UserError(f"{name}: there is no weights file {path}")
    try:
        theirs = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # torch, zip, pickle and safetensors each have their own
        raise UserError(
            f"{name}: {path} cannot be read as weights ({first_line(error)}); expected "
            "safetensors, or a torch file that holds tensors only"
        ) from None
    misfit = _misfit(net, theirs)
    if misfit is not None and (convert := _converter(net)) is not None:
        converted = convert(theirs, net)
        if _misfit(net, converted) is None:
            theirs, misfit = converted, None
    if misfit is not None:
        key, wanted, got = misfit
        raise UserError(
            f"{name}: weights {path} do not fit: {key} is {wanted} in the model and {got} in "
            "the file; is it a checkpoint of this architecture and these classes?"
        )
    net.load_state_dict(theirs, strict=False)


def _misfit(net: nn.Module, theirs: Mapping[str, Tensor]) -> tuple[str, Any, Any] | None:
    """The first key that differs, with both shapes. Counters of batches may be absent: they came
    to batch normalisation after old checkpoints were written, and nothing reads them in eval."""
    ours = net.state_dict()
    for key in dict.fromkeys([*ours, *theirs]):
        wanted = list(ours[key].shape) if key in ours else "no such key"
        got = list(theirs[key].shape) if key in theirs else "no such key"
        if wanted != got and not (key not in theirs and key.endswith("num_batches_tracked")):
            return key, wanted, got
    return None


def _converter(net: nn.Module) -> Callable[[Any, nn.Module], Mapping[str, Tensor]] | None:
    """timm's conversion of the original authors' checkpoints, where an architecture has one."""
    filter_fn = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None:
        return None

    def convert(theirs: Any, net: nn.Module) -> Mapping[str, Tensor]:
        try:
            return filter_fn(dict(theirs), net)
        except Exception as error:  # not a checkpoint that it was written for
            log.info("%s: %s", filter_fn, error)
            return theirs

    return convert


def identity(member: Member, task: Task, weights_sha256: str) -> dict[str, Any]:
    """What makes a member's results its own, as JSON: architecture, weights and preprocessing."""
    published = {}
    if task.weights == "pretrained":
        found = origin(member.timm)
        published = {"architecture": found.architecture, "arguments": found.arguments}
    return {
        "timm": member.timm,
        **published,
        "kwargs": dict(member.kwargs),
        "fit": [dict(fit) for fit in task.fit],
        "weights_sha256": weights_sha256,
        "preprocessing": asdict(preprocessing(member, task)),
    }
