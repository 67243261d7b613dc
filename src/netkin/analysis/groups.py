"""Named groups of models of one kind."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from netkin.errors import UserError, near


def groups(
    chosen: Mapping[str, Any] | None, names: Sequence[str], families: Sequence[str]
) -> dict[str, list[int]]:
    """Positions of models by group, each of two models or more.

    Args:
        chosen: name of a group -> model names or patterns such as "resnet50_*"; None for the
            families with two models or more.
        names, families: of the models.

    Raises UserError for a pattern that matches no model, and for a group of one model.
    """
    if chosen is None:
        members = {
            family: [i for i, other in enumerate(families) if other == family]
            for family in dict.fromkeys(families)
        }
        return {family: models for family, models in members.items() if len(models) > 1}
    result = {}
    for group, patterns in chosen.items():
        if isinstance(patterns, str):
            patterns = [patterns]
        if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
            raise UserError(
                f"group {group} must be a list of model names or patterns such as [resnet50_*], "
                f"got {patterns!r}"
            )
        models: dict[int, None] = {}
        for pattern in patterns:
            matched = [i for i, name in enumerate(names) if fnmatchcase(name, pattern)]
            if not matched:
                raise UserError(
                    f"no model of group {group} is named {pattern!r}{near(pattern, names)}"
                )
            models |= dict.fromkeys(matched)
        if len(models) < 2:
            alone = names[next(iter(models))]
            raise UserError(f"group {group} has one model, {alone}; expected two or more")
        result[str(group)] = sorted(models)
    return result
