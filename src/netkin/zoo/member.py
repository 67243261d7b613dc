"""What a user writes for a model, checked before anything is built."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any
from urllib.parse import quote

import timm
from timm.models import split_model_name_tag

from netkin.errors import UserError, near
from netkin.zoo import from_python
from netkin.zoo.published import origin
from netkin.zoo.task import Task

KINDS = ("timm", "torchvision", "transformers", "target")
"""Fields of which a member has exactly one: the source of its architecture."""
PREFIXES = ("torchvision", "transformers")
"""Kinds that a name may begin with, as in "torchvision:resnet18"."""
IMAGE_FIELDS = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "in_chans")
"""Fields of the preprocessing, besides the input size."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
LONGEST = 200
"""Bytes of a name, as paths spell it: files are named for it, with 255 at most."""


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
    def source(self) -> str:
        """The name of published weights, as `netkin.zoo.published` takes it; empty for `target`."""
        for kind in PREFIXES:
            if value := getattr(self, kind):
                return f"{kind}:{value}"
        return self.timm

    @property
    def architecture(self) -> str:
        """What the member is built of, for messages."""
        return self.target or self.source

    def uses_published(self, task: Task) -> bool:
        """Whether its weights are the published ones: no checkpoint, and not trained here."""
        return self.checkpoint is None and (self.pretrained or task.weights == "pretrained")


def noted(member: Member) -> dict[str, Any]:
    """A member as JSON: the fields that every member has, and others that are set."""
    always = ("name", "timm", "kwargs", "checkpoint", "family", "input_size")
    defaults = {f.name: f.default for f in fields(Member) if f.default is not MISSING}
    return {
        key: value
        for key, value in asdict(member).items()
        if key in always or value != defaults[key]
    }


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
    twice = [name for name, times in Counter(m.name for m in members).items() if times > 1]
    if twice:
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
    _check_types(spec)
    _channels(spec)
    spec["family"] = _family(spec, known)
    return Member(**spec)


def _one_kind(spec: dict[str, Any]) -> None:
    """Move a prefixed name to its field, and see to it that there is one architecture."""
    prefix, colon, rest = str(spec.get("timm") or "").partition(":")
    if colon and prefix in PREFIXES:
        if spec.get(prefix):
            raise UserError(f"member {spec.get('name')!r} has both timm and {prefix}; give one")
        spec |= {"timm": "", prefix: rest}
        spec.setdefault("name", f"{prefix}:{rest}")
    kinds = [kind for kind in KINDS if spec.get(kind)]
    if not kinds:
        raise UserError(
            f"member {spec.get('name', '?')!r} lacks `timm`, the architecture's name (or "
            "torchvision, transformers, or _target_)"
        )
    if len(kinds) > 1:
        raise UserError(
            f"member {spec.get('name', '?')!r} has {' and '.join(kinds)}; give one of them"
        )
    spec.setdefault("name", spec[kinds[0]])
    if spec.get("transformers") and spec.get("checkpoint") is None:
        spec["pretrained"] = True


def _check_types(spec: Mapping[str, Any]) -> None:
    if not isinstance(name := spec["name"], str) or not name.strip():
        raise UserError(f"a member's name must be text, such as mine, got {name!r}")
    if (size := len(quote(name))) > LONGEST:
        raise UserError(
            f"a member's name must have {LONGEST} characters at most, since files are named for "
            f"it; {name[:20]}... takes {size}. Give it another with {{name: ...}}"
        )
    for key, kind, expected in (
        ("timm", str, "a timm name"),
        ("torchvision", str, "a torchvision name such as resnet18"),
        ("transformers", str, "org/name on the hub, or a folder"),
        ("target", str, "the dotted name of a class or function"),
        ("family", str, "a name"),
        ("checkpoint", str, "a file"),
        ("weights_key", str, "a key in the checkpoint, such as model_ema"),
        ("kwargs", Mapping, "a mapping such as {depth: 4}"),
        ("input_size", int, "a whole number of pixels, 1 or more"),
    ):
        value = spec.get(key)
        wrong = value is not None and not isinstance(value, kind)
        if wrong or (isinstance(value, int) and value < 1):
            raise UserError(f"member {spec.get('name')!r}: {key} must be {expected}, got {value!r}")
    for key, choices in (
        ("pretrained", (True, False)),
        ("crop_mode", CROP_MODES),
        ("interpolation", INTERPOLATIONS),
        ("in_chans", (1, 3)),
    ):
        value = spec.get(key)
        if value is not None and value not in choices:
            expected = " or ".join(map(str, choices))
            raise UserError(f"member {spec['name']!r}: {key} must be {expected}, got {value!r}")
    pct = spec.get("crop_pct")
    if pct is not None and not (_is_number(pct) and 0 < pct <= 1):
        raise UserError(f"member {spec['name']!r}: crop_pct must be in (0, 1], got {pct!r}")


def _channels(spec: dict[str, Any]) -> None:
    """Mean and std as tuples, and the number of channels of timm's own argument."""
    if spec.get("timm") and "in_chans" not in spec:
        channels = (spec.get("kwargs") or {}).get("in_chans")
        if channels in (1, 3):
            spec["in_chans"] = channels
    if (spec.get("mean") is None) != (spec.get("std") is None):
        raise UserError(f"member {spec['name']!r}: give both mean and std, or neither")
    for key in ("mean", "std"):
        value = spec.get(key)
        if value is None:
            continue
        values = [value] if _is_number(value) else value
        right = isinstance(values, Sequence) and not isinstance(values, str)
        right = right and len(values) in (1, 3) and all(map(_is_number, values))
        if not right or (key == "std" and any(float(v) <= 0 for v in values)):
            numbers = "1 or 3 numbers" + " above 0" * (key == "std")
            raise UserError(
                f"member {spec['name']!r}: {key} must be {numbers} for pixels in [0, 1], such as "
                f"[0.5, 0.5, 0.5], got {value!r}"
            )
        spec[key] = tuple(float(v) for v in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _family(spec: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The family that is given, or the module of the architecture, which has to exist."""
    if spec.get("target"):
        own = from_python.find(spec["target"], spec["name"]).__name__
    elif spec.get("timm"):
        architecture = _architecture(spec["timm"], known)
        own = timm.model_entrypoint(architecture).__module__.split(".")[-1]
    else:
        (kind,) = [kind for kind in PREFIXES if spec.get(kind)]
        own = origin(f"{kind}:{spec[kind]}").config["family"]
    return spec.get("family") or own


def _architecture(name: str, known: Mapping[str, Any]) -> str:
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return origin(name).architecture
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        names = [*known, *timm.list_models()]
        advice = "; a class of your own is {name: ..., _target_: my_pkg.MyNet}" if tag else ""
        raise UserError(
            f"timm has no model {name!r}{near(architecture, names)} "
            f"(all names: timm.list_models(){advice})"
        )
    tags = [split_model_name_tag(n)[1] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"timm's {architecture} has no weights tagged {tag!r}{near(tag, tags)} "
            f"(tags: {', '.join(tags) or 'none'})"
        )
    return architecture
