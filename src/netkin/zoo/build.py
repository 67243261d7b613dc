"""From a member to a classifier of pixels in [0, 1]."""

import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netkin.errors import UserError, first_line
from netkin.zoo.checkpoints import choose, load_weights
from netkin.zoo.member import Member, Task
from netkin.zoo.preprocessing import Preprocessing, preprocessing

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A network behind its normalisation: pixels [B, 3, H, W] in [0, 1] to logits [B, K].

    `columns` picks K of the model's own classes, in the dataset's order; None takes all. Where mean
    and std have one value, the network takes gray images: the average of red, green and blue.
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

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] as the network takes them: [B, 3, H, W], or [B, 1, H, W]
        for one of gray images."""
        if self.mean.numel() == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [0, 1] to logits [B, K]."""
        logits = self.net(self.normalise(pixels))
        return logits if self.columns is None else logits[:, self.columns]


def build(member: Member, task: Task, weights: Path | None = None, seed: int = 0) -> Classifier:
    """A member's classifier, with the weights of a file, its own, or drawn from `seed`.

    Args:
        weights: the file of its checkpoint or of its published weights, or of those trained here.
            A `target` that brings its weights needs none.

    Raises UserError when the architecture cannot take the dataset's images or has another number
    of classes, and when the weights do not fit it.
    """
    prep = preprocessing(member, task)
    net, classes = _network(member, task, prep, weights, seed)
    columns = _columns(classes, member, task)
    if weights is not None and not member.uses_published(task):
        load_weights(net, weights, member.name, member.weights_key)
    return Classifier(net, member.name, prep.mean, prep.std, columns)


def blueprint(member: Member, task: Task) -> tuple[nn.Module, int]:
    """A member's architecture, as `build` makes it, on torch's meta device: shapes, no weights; and
    its number of classes.

    Where it cannot be built there, it is on the CPU with random weights. Raises UserError when
    the architecture cannot take the dataset's images.
    """
    prep = preprocessing(member, task)
    try:
        with torch.device("meta"):
            return _network(member, task, prep)
    except UserError as error:
        log.info("%s on the meta device: %s", member.name, error)
        return _network(member, task, prep)


def check_member(member: Member, task: Task) -> None:
    """Build a member's architecture and compare its checkpoint with it, before any work.

    Raises UserError as `build` does.
    """
    if member.target:  # its constructor may load weights, which the meta device would drop
        net, classes = _network(member, task, preprocessing(member, task))
        try:
            copy.deepcopy(net)  # it is copied to be made faster
        except Exception as error:  # whatever the module's parts raise
            raise UserError(
                f"{member.name} ({member.architecture}) cannot be copied ({first_line(error)}): "
                "copy.deepcopy has to work on it; leave out such attributes, or set them in forward"
            ) from None
    else:
        net, classes = blueprint(member, task)
    _columns(classes, member, task)
    if member.checkpoint:
        choose(net, Path(member.checkpoint).expanduser(), member.name, member.weights_key)


def _network(
    member: Member, task: Task, prep: Preprocessing, weights: Path | None = None, seed: int = 0
) -> tuple[nn.Module, int]:
    """The network, with published weights where the member uses them, and its number of classes."""
    from netkin.zoo import sources

    source, size = sources.SOURCES[member.kind], prep.view.input_size
    as_published = member.source and (task.weights == "pretrained" or member.pretrained)
    config = sources.config(member.source) if as_published else {}
    file = weights if member.uses_published(task) else None
    reason = ""
    for kwargs in source.ways(member, config, task, size):
        torch.manual_seed(seed)
        try:
            net = source.build(member, config, kwargs, file)
            if member.timm and config and member.input_size is None:  # it takes its own size
                return net, int(net.num_classes)  # type: ignore[arg-type]
            name = f"{member.name} ({member.architecture})"
            classes = count_classes(net, len(prep.mean), size, name)
        except UserError:
            raise
        except Exception as error:  # any network's constructor and forward pass
            reason = first_line(error)
            log.info("%s does not take %s: %s", member.name, kwargs, error)
        else:
            return net if member.timm else _only_logits(net), classes
    if "weights_only" in reason:  # torch advises to load it nevertheless
        reason = "they hold pickled objects, which are not loaded because they can run code"
    raise UserError(
        f"{member.name} ({member.architecture}) cannot be built for {size} x {size} images"
        f"{f' with the weights {file}' if file else ''} ({reason}); give it other kwargs, another "
        "input_size, or in_chans: 1"
    )


def count_classes(net: nn.Module, channels: int, size: int, name: str) -> int:
    """K, the width of a network's logits for two blank images of `size` x `size`.

    Raises UserError, with the network's `name`, where it returns no logits, and what it raises.
    """
    parameter, training = next(net.parameters(), None), net.training
    device = None if parameter is None else parameter.device
    with torch.no_grad():
        logits = logits_in(net.eval()(torch.zeros(2, channels, size, size, device=device)), name)
    net.train(training)
    if logits.ndim != 2 or len(logits) != 2:
        raise UserError(f"{name} gives {list(logits.shape)} for 2 images, expected [2, classes]")
    if logits.shape[1] == 1:
        raise UserError(
            f"{name} gives one logit z for an image; expected one for each of two or more classes: "
            "return torch.cat([torch.zeros_like(z), z], dim=1), whose softmax is z's sigmoid"
        )
    return logits.shape[1]


def logits_in(output: Any, name: str) -> Tensor:
    """The logits [B, K] in what a network returns.

    That is a tensor, a tuple or list that begins with them, a mapping that holds them under
    "logits" or as its only tensor, or an object with `.logits`. Raises UserError for others, and
    for a tuple or list of several tensors [B, _] of different widths: (logits, features), or the
    other way round.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        logits = output.get("logits", tensors[0] if len(tensors) == 1 else None)
    elif logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
        flat = [each for each in output if isinstance(each, Tensor) and each.ndim == 2]
        if len({each.shape[1] for each in flat}) > 1:
            raise UserError(
                f"{name} returns several tensors, {', '.join(str(list(t.shape)) for t in flat)}, "
                "of which only one can be its logits: return that alone"
            )
    if isinstance(logits, Tensor):
        return logits
    keys = f" with keys {list(output)[:8]}" if isinstance(output, Mapping) else ""
    raise UserError(
        f"{name} returns a {type(output).__name__}{keys}, expected logits: a tensor, a tuple that "
        'begins with it, a mapping with "logits", or an object with .logits'
    )


def _only_logits(net: nn.Module) -> nn.Module:
    """Have a network return its logits alone, in place, by a forward hook. TorchScript's modules
    take no hooks, and are run within another module."""
    if isinstance(net, torch.jit.ScriptModule):
        net = Script(net)
    if _logits_hook not in net._forward_hooks.values():
        net.register_forward_hook(_logits_hook)
    return net


class Script(nn.Module):
    """A module of TorchScript as a plain one. A copy has parameters of its own, as they are not in
    a copy that TorchScript makes."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def __deepcopy__(self, memo: dict) -> "Script":
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch advises other formats
            torch.jit.save(self.net, file)
            file.seek(0)
            return Script(torch.jit.load(file))


def _logits_hook(module: nn.Module, _inputs: Any, output: Any) -> Tensor:
    return logits_in(output, type(module).__name__)


def _columns(classes: int, member: Member, task: Task) -> list[int] | None:
    """Which of the model's classes are the dataset's; None where they are the same."""
    wnids = _wnids(classes) if task.weights == "pretrained" else []
    if task.classes and set(task.classes) <= set(wnids):
        columns = [wnids.index(wnid) for wnid in task.classes]
        return None if columns == list(range(classes)) else columns
    if classes != task.num_classes:
        raise UserError(
            f"{member.name} has {classes} classes, {task.dataset} has {task.num_classes}: "
            "use a model of these classes, without num_classes in its kwargs, or (for a part of "
            "ImageNet) name the class folders by WordNet id"
        )
    return None


def model_pages(members: Iterable[Member], task: Task) -> dict[str, str]:
    """Pages about the published weights that members have, by name."""
    published = [m for m in members if m.uses_published(task)]
    if not published:
        return {}
    from netkin.zoo.sources import model_page

    pages = {m.name: model_page(m.source) for m in published}
    return {name: page for name, page in pages.items() if page}


def knows_more(member: Member, task: Task) -> bool:
    """Whether a pretrained ImageNet model is read at some of its classes only."""
    if task.weights != "pretrained":
        return False
    classes = published_classes(member)
    if classes is None:
        classes = _network(member, task, preprocessing(member, task))[1]
    return classes > task.num_classes and set(task.classes) <= set(_wnids(classes))


def published_classes(member: Member) -> int | None:
    """Classes of a member's published weights, or those that its kwargs name; None where unknown,
    as of a `target`."""
    named = member.kwargs.get("num_classes", member.kwargs.get("num_labels"))
    if named is not None:
        return int(named)
    if member.target:
        return None
    from netkin.zoo import sources

    return int(sources.config(member.source)["num_classes"])


@cache
def _wnids(classes: int) -> list[str]:
    """WordNet ids of an ImageNet classifier of so many classes, in order; empty if unknown."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    return ImageNetInfo(subset).label_names() if subset else []


def identity(member: Member, task: Task, weights_sha256: str) -> dict[str, Any]:
    """What makes a member's results its own, as JSON: architecture, weights and preprocessing."""
    published = {}
    if member.timm and (task.weights == "pretrained" or member.pretrained):
        from netkin.zoo import sources

        config = sources.config(member.timm)
        published = {key: config[key] for key in ("architecture", "arguments")}
    fit = {"fit": [dict(fit) for fit in task.fit]} if member.timm else {}
    key = {"weights_key": member.weights_key} if member.weights_key else {}
    return {
        **architecture_identity(member),
        **published,
        **fit,
        "weights_sha256": weights_sha256,
        **key,
        "preprocessing": asdict(preprocessing(member, task)),
    }


def architecture_identity(member: Member) -> dict[str, Any]:
    """What a member is built of, as JSON. What one's own class or function computes may depend on
    any code: see `netkin.passes.predict.check_unchanged`."""
    kwargs = {} if member.in_memory else dict(member.kwargs)
    return {
        "_target_" if member.target else member.kind: getattr(member, member.kind),
        "kwargs": kwargs,
    }


def weights_sha256(net: nn.Module) -> str:
    """A hash of a network's state: of keys, shapes, types and values."""
    total = hashlib.sha256()
    for key, value in net.state_dict().items():
        if isinstance(value, Tensor):
            total.update(f"{key} {list(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            total.update(flat.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
