"""A model as a user names it, before anything is built; and the dataset as a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("timm", "torchvision", "transformers", "target")
"""Fields of which a member has exactly one: the source of its architecture."""
PREFIXES = ("torchvision", "transformers")
"""Kinds that a name may begin with, as in "torchvision:resnet18"."""
IMAGE_FIELDS = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "in_chans")
"""Fields of the preprocessing, besides the input size."""
IN_MEMORY = "netkin.zoo.given.instance"
"""The target of a module of this process, which its kwargs number."""


@dataclass(frozen=True)
class Task:
    """A dataset as classifiers are built for it.

    Attributes:
        dataset: its name, under which trained weights are stored.
        num_classes: K.
        weights: "train" (members are trained on the dataset's own training images) or
            "pretrained" (published weights).
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
class Member:
    """One classifier of a zoo.

    It has one of `timm`, `torchvision`, `transformers` and `target`.

    Attributes:
        name: what tables and figures call it; unique within a zoo.
        timm: a timm model name, with or without a ".tag" for its pretrained weights, or
            "hf-hub:org/name", or "local-dir:folder" of a model in timm's format.
        kwargs: further arguments of `timm.create_model`, of torchvision's builder, of
            transformers' `from_pretrained`, or those of `target`.
        checkpoint: a local file with its weights (safetensors, or a torch file without pickled
            code), instead of training or downloading them.
        family: the group of architectures it counts to; the library's module by default.
        input_size: pixels a side, where not the dataset's or the pretrained model's own.
        torchvision: a classifier of torchvision, with or without the name of its weights, as in
            "resnet18.IMAGENET1K_V1".
        transformers: "org/name" on the hub, or a folder, for AutoModelForImageClassification.
        target: the dotted name of an nn.Module class, or of a function that returns one, which
            processes import; a config calls it `_target_`. Its output may be logits [B, K], a tuple
            or list that begins with them, a mapping with them under "logits" or as the only tensor,
            or an object with `.logits`.
        pretrained: whether the weights are those that come with the model, on datasets whose
            members are trained, too. transformers' models always come with theirs.
        mean, std: a value a channel, for pixels in [0, 1]; see `netkin.zoo.preprocessing` for those
            of this and of the next three that are not given.
        crop_pct, crop_mode, interpolation: as timm's transforms take them.
        in_chans: 3, or 1 for gray: pixels are averaged over red, green and blue before the
            normalisation.
        weights_key: which of several state dicts of the checkpoint, such as "model_ema".
    """

    name: str
    timm: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    family: str = ""
    input_size: int | None = None
    torchvision: str = ""
    transformers: str = ""
    target: str = ""
    pretrained: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    in_chans: int | None = None
    weights_key: str | None = None

    @property
    def in_memory(self) -> bool:
        """Whether it is a module of this process; see `netkin.zoo.given`."""
        return self.target == IN_MEMORY

    @property
    def kind(self) -> str:
        """Which of KINDS it has."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def source(self) -> str:
        """The name of published weights, as `netkin.zoo.sources` takes it; empty for `target`."""
        return f"{self.kind}:{getattr(self, self.kind)}" if self.kind in PREFIXES else self.timm

    @property
    def architecture(self) -> str:
        """What the member is built of, for messages."""
        return self.target or self.source

    def uses_published(self, task: Task) -> bool:
        """Whether its weights are the published ones: no checkpoint, and not trained here."""
        return self.checkpoint is None and (self.pretrained or task.weights == "pretrained")
