"""What a user writes for a model, checked before anything is built; and the dataset as a task."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import quote

import timm

from netkin.errors import UserError, near
from netkin.zoo import sources

KINDS = ("timm", "torchvision", "transformers", "target")
"""Fields of which a member has exactly one: the source of its architecture."""
PREFIXES = ("torchvision", "transformers")
"""Kinds that a name may begin with, as in "torchvision:resnet18"."""
IMAGE_FIELDS = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "in_chans")
"""Fields of the preprocessing, besides the input size."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
IN_MEMORY = "netkin.zoo.given.instance"
"""The target of a module of this process, which its kwargs number."""
LONGEST = 200
"""Bytes of a name, as paths spell it: files are named for it, with 255 at most."""


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


def parse_members(
    entries: Sequence[str | Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]] | None = None,
    at_least: int = 2,
) -> list[Member]:
    """Members from a config's list: names, names in `known`, or mappings of Member's fields.

    A name is timm's, or begins with "torchvision:" or "transformers:". Families that differ in case
    only are one, in the first one's spelling.

    Raises UserError for unknown names and fields, duplicates and too short a list.
    """
    members = [_parse(entry, known or {}) for entry in entries]
    if len(members) < at_least:
        raise UserError(
            f"members names {len(members)} model{'s' * (len(members) != 1)}, "
            f"expected {at_least} or more: similarity is between models"
        )
    if twice := [name for name, n in Counter(m.name for m in members).items() if n > 1]:
        raise UserError(
            f"members names {', '.join(twice)} more than once; "
            "give each its own name: {name: ..., timm: ...}"
        )
    spelling: dict[str, str] = {}
    for member in members:
        spelling.setdefault(member.family.casefold(), member.family)
    return [replace(m, family=spelling[m.family.casefold()]) for m in members]


def _parse(entry: str | Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Member:
    if isinstance(entry, str):
        _check_spelling(entry, known)
        spec: dict[str, Any] = {"name": entry, "timm": entry, **known.get(entry, {})}
    elif isinstance(entry, Mapping):
        spec = dict(entry)
    else:
        raise UserError(f"a member is a name or a mapping {{name: ..., timm: ...}}, got {entry!r}")
    if "_target_" in spec:
        spec["target"] = spec.pop("_target_")
    allowed = [f.name for f in fields(Member)]
    for key in spec:
        if key not in allowed:
            raise UserError(
                f"member {spec.get('name', '?')!r} has no field {key!r}{near(str(key), allowed)} "
                f"(fields: {', '.join(allowed)})"
            )
    _one_kind(spec)
    _check_fields(spec)
    member = Member(**spec)
    config = sources.config(member.source or f"target:{member.target}")
    return replace(member, family=member.family or config["family"])


def _check_spelling(name: str, known: Mapping[str, Any]) -> None:
    """Refuse here what is near a name of the config; the hint is of timm's names, too."""
    plain = name not in known and ":" not in name and not timm.is_model(name.partition(".")[0])
    if plain and near(name, known):
        raise UserError(f"there is no model {name!r}{near(name, [*known, *timm.list_models()])}")


def _one_kind(spec: dict[str, Any]) -> None:
    """Move a prefixed name to its field, and see to it that there is one architecture."""
    prefix, colon, rest = str(spec.get("timm") or "").partition(":")
    if colon and prefix in PREFIXES and not spec.get(prefix):
        spec |= {"timm": "", prefix: rest}
        spec.setdefault("name", f"{prefix}:{rest}")
    kinds = [kind for kind in KINDS if spec.get(kind)]
    if len(kinds) != 1:
        raise UserError(
            f"member {spec.get('name', '?')!r} has {' and '.join(kinds)}; give one of them"
            if kinds
            else f"member {spec.get('name', '?')!r} lacks `timm`, the architecture's name (or "
            "torchvision, transformers, or _target_)"
        )
    spec.setdefault("name", spec[kinds[0]])
    if spec.get("transformers") and spec.get("checkpoint") is None:
        spec["pretrained"] = True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _per_channel(value: Any, above: float = -math.inf) -> bool:
    values: Any = [value] if _is_number(value) else value
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    return (
        listed and len(values) in (1, 3) and all(_is_number(v) and float(v) > above for v in values)
    )


CHANNELS = "1 or 3 numbers{} for pixels in [0, 1], such as [0.5, 0.5, 0.5]"
CHECKS: dict[str, tuple[Callable[[Any], bool] | tuple, str]] = {
    "timm": (_is_text, "a timm name"),
    "torchvision": (_is_text, "a torchvision name such as resnet18"),
    "transformers": (_is_text, "org/name on the hub, or a folder"),
    "target": (_is_text, "the dotted name of a class or function"),
    "family": (_is_text, "a name"),
    "checkpoint": (_is_text, "a file"),
    "weights_key": (_is_text, "a key in the checkpoint, such as model_ema"),
    "kwargs": (lambda value: isinstance(value, Mapping), "a mapping such as {depth: 4}"),
    "input_size": (
        lambda value: isinstance(value, int) and value >= 1,
        "a whole number of pixels, 1 or more",
    ),
    "pretrained": ((True, False), ""),
    "crop_mode": (CROP_MODES, ""),
    "interpolation": (INTERPOLATIONS, ""),
    "in_chans": ((1, 3), ""),
    "crop_pct": (lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]"),
    "mean": (_per_channel, CHANNELS.format("")),
    "std": (lambda value: _per_channel(value, above=0), CHANNELS.format(" above 0")),
}
"""By field, a test or the values that it can have, and what is expected."""


def _check_fields(spec: dict[str, Any]) -> None:
    """Raises UserError for values that a field cannot have; mean and std become tuples."""
    if not isinstance(name := spec["name"], str) or not name.strip():
        raise UserError(f"a member's name must be text, such as mine, got {name!r}")
    if (size := len(quote(name))) > LONGEST:
        raise UserError(
            f"a member's name must have {LONGEST} characters at most, since files are named for "
            f"it; {name[:20]}... takes {size}. Give it another with {{name: ...}}"
        )
    for key, (fits, expected) in CHECKS.items():
        value = spec.get(key)
        if value is None or (value in fits if isinstance(fits, tuple) else fits(value)):
            continue
        expected = expected or " or ".join(map(str, fits))  # type: ignore[arg-type]
        raise UserError(f"member {name!r}: {key} must be {expected}, got {value!r}")
    if (spec.get("mean") is None) != (spec.get("std") is None):
        raise UserError(f"member {name!r}: give both mean and std, or neither")
    for key in ("mean", "std"):
        if (value := spec.get(key)) is not None:
            spec[key] = tuple(map(float, [value] if _is_number(value) else value))
    channels = (spec.get("kwargs") or {}).get("in_chans")
    if spec.get("timm") and "in_chans" not in spec and channels in (1, 3):
        spec["in_chans"] = channels  # timm's own argument
