"""Members from what a user writes for them, checked before anything is built."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any
from urllib.parse import quote

from netkin.errors import UserError, check_known, near
from netkin.zoo.families import read_off
from netkin.zoo.member import KINDS, PREFIXES, Member

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
LONGEST = 200
"""Bytes of a name, as paths spell it: files are named for it, with 255 at most."""


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
        check_known(key, allowed, f"member {spec.get('name', '?')!r} has no field {key!r}")
    _one_kind(spec)
    _check_fields(spec)
    member = Member(**spec)
    family = read_off().get(member.timm)
    if family is None:
        from netkin.zoo import sources

        family = sources.config(member.source or f"target:{member.target}")["family"]
    return replace(member, family=member.family or family)


def _check_spelling(name: str, known: Mapping[str, Any]) -> None:
    """Refuse here what is near a name of the config; the hint is of timm's names, too."""
    architecture = name.partition(".")[0]
    if name in known or ":" in name or architecture in read_off() or not near(name, known):
        return
    import timm

    if not timm.is_model(architecture):
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


MOST = {"mean": 1, "std": 10}
"""Above it, they are of pixels in 0 to 255."""
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
        if max(spec.get(key) or [0]) > MOST[key]:
            raise UserError(
                f"member {name!r}: {key} is {list(spec[key])}, but pixels are in [0, 1]: divide "
                "mean and std of pixels in 0 to 255 by 255; a network that takes such pixels as "
                "they are has mean 0 and std 1/255"
            )
    channels = (spec.get("kwargs") or {}).get("in_chans")
    if spec.get("timm") and "in_chans" not in spec and channels in (1, 3):
        spec["in_chans"] = channels  # timm's own argument
