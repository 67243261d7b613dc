"""From members to outcomes, pass by pass, each only where it is missing."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from netkin.jobs import Advance, Jobs
from netkin.similarity import Outcomes
from netkin.tracking import Tracker
from netkin.training.weights import Training, is_trained
from netkin.transfer.decode import Undecoded, decode, undecoded
from netkin.transfer.resize import Visitor, missing_views
from netkin.transfer.setting import Setting
from netkin.transfer.stored import (
    Target,
    correct,
    is_clean,
    missing_shards,
    missing_sources,
    outcomes,
)
from netkin.zoo.member import Member


def measure(
    setting: Setting,
    members: Sequence[Member],
    training: Training | None,
    jobs: Jobs,
    tracker: Tracker,
    sources: Sequence[Member] | None = None,
) -> Outcomes:
    """Everything that scores need, computed where the store lacks it.

    Args:
        setting: images, attack and store.
        members: the zoo.
        training: how members without weights get them; None where they bring their own.
        jobs: runs the work; its context is (setting, training).
        tracker: told of each stage's and member's metrics.
        sources: those of the members that are attacked; all, unless given.
    """
    attacked = members if sources is None else sources
    untrained = [member for member in members if training and not is_trained(training, member)]
    todo = undecoded(setting, members) if _work_left(setting, members, untrained) else []
    shown = sum(len(setting.shards[item.shard]) for item in todo)
    _stage(jobs, tracker, "decode", _decode, todo, shown)
    if training is not None:
        _stage(jobs, tracker, "train", _train, untrained, len(untrained) * training.recipe.epochs)
    images = len(setting.subset)
    unseen = [member for member in members if not is_clean(setting, member)]
    _stage(jobs, tracker, "clean", _clean, unseen, len(unseen) * images)
    right = {member.name: correct(setting, member) for member in members}
    tracker.metrics(
        {f"clean_accuracy/{name}": float(r.float().mean()) for name, r in right.items()}
    )

    visitors = missing_views(setting, members)
    _stage(jobs, tracker, "resize", _resize, visitors, sum(len(v.views) for v in visitors))

    uncrafted = [(member, missing_shards(setting, member)) for member in attacked]
    units = sum(
        int(right[member.name][list(setting.shards[shard])].sum())
        for member, shards in uncrafted
        for shard in shards
    )
    crafting = [member for member, shards in uncrafted if shards]
    _stage(jobs, tracker, "craft", _craft, crafting, units)
    targets = missing_sources(setting, members, attacked)
    _stage(jobs, tracker, "transfer", _transfer, targets, sum(len(t.sources) for t in targets))

    found = outcomes(setting, members, attacked)
    tracker.metrics(
        {
            f"white_box_success/{member.name}": float(found.per_image(i, i).mean())
            for i, member in enumerate(members)
            if member in attacked
        }
    )
    return found


def _work_left(setting: Setting, members: Sequence[Member], untrained: Sequence[Member]) -> bool:
    """Whether any model has still to be shown clean images."""
    return bool(
        untrained
        or not all(is_clean(setting, member) for member in members)
        or any(missing_shards(setting, member) for member in members)
        or missing_views(setting, members)
    )


def _stage(
    jobs: Jobs, tracker: Tracker, stage: str, work: Callable, items: Sequence[Any], units: int
) -> None:
    start = time.perf_counter()
    for item, result in jobs.run(stage, work, items, units):
        if "curves" in result:
            tracker.curve(f"train/{item.name}", result["curves"], step="epoch")
        if result.get("images") and stage != "decode":
            rate = result["images"] / result["seconds"]
            tracker.metrics({f"{stage}/images_per_second/{item.name}": rate})
        if stage != "decode":
            tracker.metrics({f"{stage}/seconds/{item.name}": result["seconds"]})
    if items:
        tracker.metrics({f"{stage}/seconds": time.perf_counter() - start})


# What workers run: module-level functions of (context, item, advance). They import what trains and
# attacks only when there is work, so that a run with everything in the store starts sooner.

PRELOAD = ("netkin.training.train", "netkin.transfer.craft", "netkin.transfer.transfer")


def _decode(context: tuple[Setting, Any], item: Undecoded, advance: Advance) -> dict[str, Any]:
    return decode(context[0], item, advance)


def _train(context: tuple[Setting, Training], member: Member, advance: Advance) -> dict[str, Any]:
    from netkin.training.train import train

    return train(context[1], member, advance)


def _clean(context: tuple[Setting, Any], member: Member, advance: Advance) -> dict[str, Any]:
    from netkin.transfer.clean import clean_pass

    return clean_pass(context[0], member, advance)


def _resize(context: tuple[Setting, Any], visitor: Visitor, advance: Advance) -> dict[str, Any]:
    from netkin.transfer.resize_pass import resize_pass

    return resize_pass(context[0], visitor, advance)


def _craft(context: tuple[Setting, Any], member: Member, advance: Advance) -> dict[str, Any]:
    from netkin.transfer.craft import craft

    return craft(context[0], member, advance)


def _transfer(context: tuple[Setting, Any], target: Target, advance: Advance) -> dict[str, Any]:
    from netkin.transfer.transfer import transfer

    return transfer(context[0], target, advance)
