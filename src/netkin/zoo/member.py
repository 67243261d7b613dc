"""What a user writes for a model, checked before anything is built."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import timm
from timm.models import split_model_name_tag

from netkin.errors import UserError, near
from netkin.zoo.published import origin


@dataclass(frozen=True)
class Member:
    """One classifier of a zoo.

    Attributes:
        name: what tables and figures call it; unique within a zoo.
        timm: a timm model name, with or without a ".tag" for its pretrained weights, or
            "hf-hub:org/name", or "local-dir:folder" of a model in timm's format.
        kwargs: further arguments of `timm.create_model`.
        checkpoint: a local file with its weights (safetensors, or a torch file without pickled
            code), instead of training or downloading them.
        family: the group of architectures it counts to; timm's module by default.
        input_size: pixels a side, where not the dataset's or the pretrained model's own.
    """

    name: str
    timm: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    family: str = ""
    input_size: int | None = None


def parse_members(
    entries: Sequence[str | Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]] | None = None,
    at_least: int = 2,
) -> list[Member]:
    """Members from a config's list: timm names, names in `known`, or mappings of Member's fields.

    Raises UserError for unknown names and fields, duplicates and too short a list.
    """
    members = [_parse(entry, known or {}) for entry in entries]
    if len(members) < at_least:
        raise UserError(
            f"model.members names {len(members)} model{'s' * (len(members) != 1)}, "
            f"expected {at_least} or more: similarity is between models"
        )
    twice = [name for name, times in Counter(m.name for m in members).items() if times > 1]
    if twice:
        raise UserError(
            f"model.members names {', '.join(twice)} more than once; "
            "give each its own name: {name: ..., timm: ...}"
        )
    return members


def _parse(entry: str | Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Member:
    if isinstance(entry, str):
        spec: dict[str, Any] = {"name": entry, "timm": entry, **known.get(entry, {})}
    elif isinstance(entry, Mapping):
        spec = dict(entry)
    else:
        raise UserError(f"a member is a name or a mapping {{name: ..., timm: ...}}, got {entry!r}")
    allowed = [f.name for f in fields(Member)]
    for key in spec:
        if key not in allowed:
            raise UserError(
                f"member {spec.get('name', '?')!r} has no field {key!r}{near(str(key), allowed)} "
                f"(fields: {', '.join(allowed)})"
            )
    if not spec.get("timm"):
        raise UserError(f"member {spec.get('name', '?')!r} lacks `timm`, the architecture's name")
    spec.setdefault("name", spec["timm"])
    _check_types(spec)
    architecture = _architecture(str(spec["timm"]), known)
    spec["family"] = (
        spec.get("family") or timm.model_entrypoint(architecture).__module__.split(".")[-1]
    )
    return Member(**spec)


def _check_types(spec: Mapping[str, Any]) -> None:
    for key, kind, wanted in (
        ("name", str, "a name"),
        ("timm", str, "a timm name"),
        ("family", str, "a name"),
        ("checkpoint", str, "a file"),
        ("kwargs", Mapping, "a mapping such as {depth: 4}"),
        ("input_size", int, "a whole number of pixels, 1 or more"),
    ):
        value = spec.get(key)
        wrong = value is not None and not isinstance(value, kind)
        if wrong or (isinstance(value, int) and value < 1):
            raise UserError(f"member {spec.get('name')!r}: {key} must be {wanted}, got {value!r}")


def _architecture(name: str, known: Mapping[str, Any]) -> str:
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return origin(name).architecture
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        names = [*known, *timm.list_models()]
        raise UserError(
            f"timm has no model {architecture!r}{near(architecture, names)} "
            "(all names: timm.list_models())"
        )
    tags = [split_model_name_tag(n)[1] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"timm's {architecture} has no weights tagged {tag!r}{near(tag, tags)} "
            f"(tags: {', '.join(tags) or 'none'})"
        )
    return architecture
