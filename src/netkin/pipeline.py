"""From members to outcomes, pass by pass; each pass does only what the store lacks."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netkin.analysis import sequential
from netkin.analysis.sequential import Look, Rule
from netkin.analysis.suspect import Suspicion, saturation, suspicions
from netkin.errors import UserError
from netkin.jobs.pool import Jobs
from netkin.jobs.results import Result, totals
from netkin.passes import work
from netkin.passes.decode import undecoded
from netkin.passes.noise import fooled_by_noise, missing_noise
from netkin.passes.resize import missing_views
from netkin.passes.setting import Setting
from netkin.passes.stored import (
    Source,
    correct,
    is_clean,
    logits,
    missing_shards,
    missing_sources,
    outcomes,
    predictions,
)
from netkin.similarity import Outcomes
from netkin.store.lease import sweep
from netkin.store.rates import note_rates
from netkin.tracking import Tracker
from netkin.training.weights import Training, is_trained, noted_accuracy
from netkin.zoo.member import Member
from netkin.zoo.preprocessing import unknown_preprocessing

log = logging.getLogger(__name__)

Watch = Callable[[Mapping[str, Sequence[Suspicion]]], None]
"""Takes the reasons to doubt members, by name; see `netkin.analysis.suspect`."""


@dataclass(frozen=True)
class Failure:
    """A member that could not be finished: in which stage, and why."""

    member: Member
    stage: str
    error: Exception

    @property
    def reason(self) -> str:
        """The error in one line."""
        text = " ".join(str(self.error).split())
        if isinstance(self.error, UserError):
            return text
        return f"{type(self.error).__name__}: {text[:300]}; its trace is in the run's log"


class Incomplete(UserError):
    """Some members failed. The others are done, and `outcomes` are theirs; None for too few."""

    def __init__(self, failures: Sequence[Failure], outcomes: Outcomes | None, members: int):
        self.failures, self.outcomes = list(failures), outcomes
        named = "; ".join(f"{f.member.name} ({f.stage}: {f.reason})" for f in failures)
        super().__init__(
            f"{len(failures)} of {members} members failed: {named}. The others are done: fix or "
            "leave out what failed, and run the same command again"
        )

    def __reduce__(self) -> tuple:
        """Pickled as its message alone."""
        return UserError, (str(self),)


class Pipeline:
    """The passes over one setting, and the members that have failed so far.

    Each method does what the store lacks for some members, and returns those that did not fail.
    Each process works on what no other has taken, and waits for the rest at the end.

    Args:
        setting: images, attack and store.
        training: how members without weights get them; None where they bring their own.
        jobs: runs the work; its context is (setting, training).
        tracker: gets the progress of each stage, a row for each stage of each member, and sums.
        watch: called after the clean pass with the members that look wrong; it may raise UserError.
    """

    def __init__(
        self,
        setting: Setting,
        training: Training | None,
        jobs: Jobs,
        tracker: Tracker,
        watch: Watch | None = None,
    ):
        self.setting, self.training, self.jobs, self.tracker = setting, training, jobs, tracker
        self.watch = watch
        self.failures: list[Failure] = []
        self._began = time.perf_counter()
        sweep(setting.store.root)
        jobs.stopped = partial(sweep, setting.store.root)

    def clean(self, members: Sequence[Member]) -> list[Member]:
        """Train members and evaluate them on the clean images, in all members' views."""
        setting, training = self.setting, self.training
        labels = setting.labels.numpy()
        untrained = [member for member in members if training and not is_trained(training, member)]
        shards = undecoded(setting, members) if _work_left(setting, members, untrained) else []
        images = sum(len(setting.shards[item.shard]) for item in shards)
        self._stage("decode", work.decode_work, shards, images)
        if training is not None:
            self._stage(
                "train", work.train_work, untrained, len(untrained) * training.recipe.epochs
            )
        members = self.remaining(members)
        missing = [member for member in members if not is_clean(setting, member)]
        self._stage("clean", work.clean_work, missing, len(missing) * len(setting.subset))
        members = self.remaining(members)
        classes = {m.name: predictions(setting, m).numpy() for m in members}
        rates = {name: float((p == labels).mean()) for name, p in classes.items()}
        if rates:
            self.tracker.summary(
                {
                    "images": len(setting.subset),
                    "clean_accuracy/mean": float(np.mean(list(rates.values()))),
                    "clean_accuracy/least": min(rates.values()),
                }
            )
        if self.watch is not None:
            self.watch(suspects(setting, members, classes))
        unresized = missing_views(setting, members)
        self._stage(
            "resize", work.resize_work, unresized, sum(len(item.views) for item in unresized)
        )
        return self.remaining(members)

    def noise(self, members: Sequence[Member]) -> list[Member]:
        """Evaluate members under noise of the attack's eps; see `netkin.passes.noise`."""
        missing = missing_noise(self.setting, members)
        self._stage("noise", work.noise_work, missing, len(missing) * len(self.setting.subset))
        return self.remaining(members)

    def craft(self, members: Sequence[Member], images: int | None = None) -> list[Member]:
        """Craft the adversarial images of members whose clean pass is done.

        Of the subset's first `images` and the rest of their last shard, if their number is given.
        """
        setting = self.setting
        parts, units = [], 0
        for member in members:
            source = Source(member, tuple(missing_shards(setting, member, images)))
            parts += source.split(self.jobs.devices)
            if source.shards:
                right = correct(setting, member)
                units += sum(int(right[list(setting.shards[i])].sum()) for i in source.shards)
        self._stage("craft", work.craft_work, parts, units)
        return self.remaining(members)

    def transfer(
        self,
        members: Sequence[Member],
        sources: Sequence[Member] | None = None,
        images: int | None = None,
    ) -> list[Member]:
        """Evaluate members on the sources' adversarial images; on each other's, unless given.

        On all images, or the first `images` of the subset.
        """
        targets = missing_sources(self.setting, members, sources, images)
        units = sum(len(target.sources) for target in targets)
        parts = [part for target in targets for part in target.split(self.jobs.devices)]
        self._stage("transfer", work.transfer_work, parts, units)
        return self.remaining(members)

    def remaining(self, members: Sequence[Member]) -> list[Member]:
        """The members that have not failed."""
        failed = {failure.member.name for failure in self.failures}
        return [member for member in members if member.name not in failed]

    def _stage(self, stage: str, work: Callable, items: Sequence[Any], units: int) -> None:
        """Run a stage. A member's failure is recorded; an image's concerns all, so it is raised."""
        start = time.perf_counter()

        def failed(item: Any, error: Exception) -> None:
            member = item if isinstance(item, Member) else item.member
            log.error("%s failed in %s", member.name, stage, exc_info=error)
            if member.name not in {failure.member.name for failure in self.failures}:
                self.failures.append(Failure(member, stage, error))

        results: dict[str, list[Result]] = {}
        on_failure = None if stage == "decode" else failed
        passed = self.jobs.run(stage, work, items, units, on_failure)
        for done, (item, result) in enumerate(passed, start=1):
            if result.curves:
                self.tracker.add("training", [{"model": item.name, **r} for r in result.curves])
            if stage != "decode":
                name = item.name if isinstance(item, Member) else item.member.name
                results.setdefault(name, []).append(result)
            seconds = time.perf_counter() - self._began
            point = {"progress/seconds": seconds, f"progress/{stage}": min(1, done / len(items))}
            self.tracker.curve([point], step="progress/seconds")
        if not items:
            return
        rows = [
            {"stage": stage, "attack": self.setting.attack.name, **totals(name, parts)}
            for name, parts in results.items()
        ]
        self.tracker.add("stages", rows)
        steps = getattr(self.setting.attack, "steps", 1) if stage == "craft" else 1
        per_unit = {r["model"]: r["seconds"] / (r["images"] * steps) for r in rows if r["images"]}
        if stage == "train" and self.training is not None:
            epochs = self.training.recipe.epochs
            per_unit = {row["model"]: row["seconds"] / epochs for row in rows}
        note_rates(self.setting.store.root, stage, per_unit)
        # A run of several attacks goes through a stage several times.
        numbers, names = self.tracker.numbers, (f"seconds/{stage}", f"images_per_second/{stage}")
        before, rate = (float(numbers.get(name) or 0) for name in names)
        seconds = time.perf_counter() - start + before
        images = sum(row["images"] for row in rows) + rate * before
        values = (seconds, images / seconds)[: 2 if images else 1]
        self.tracker.summary(dict(zip(names, values, strict=False)))


def compute_outcomes(
    setting: Setting,
    members: Sequence[Member],
    training: Training | None,
    jobs: Jobs,
    tracker: Tracker,
    sources: Sequence[Member] | None = None,
    watch: Watch | None = None,
    rule: Rule | None = None,
    looked: Callable[[Look], None] | None = None,
) -> Outcomes:
    """The outcomes that scores are computed from, where the store lacks them; see `Pipeline`.

    With a rule, images are attacked shard by shard, those of the subset's order, until the rule is
    reached (`netkin.analysis.sequential`); the outcomes are those of the images that were used.

    Args:
        setting: images, attack and store.
        members: the zoo.
        training: how members without weights get them; None where they bring their own.
        jobs: runs the work; its context is (setting, training).
        tracker: see `Pipeline`.
        sources: those of the members that are attacked; all, unless given.
        watch: see `Pipeline`.
        rule: when to stop; after all images, unless given.
        looked: called after each look at the scores.

    Raises Incomplete, with the outcomes of the others, when members failed.
    """
    pipeline = Pipeline(setting, training, jobs, tracker, watch)
    evaluated = pipeline.noise(pipeline.clean(members))
    total, result = len(setting.subset), None
    for images in [total] if rule is None else sequential.looks(total, setting.shard_size):
        result = _attacked(pipeline, evaluated, sources, images)
        if rule is None or result is None:
            break
        look = sequential.look(result, total, setting.shard_size, rule)
        tracker.curve([look.numbers], step="sequential/images")
        if looked is not None:
            looked(look)
        if look.reached:
            break
    if result is not None:
        attacked = {member.name for member in sources or members}
        successes = [
            float(result.per_image(i, i).mean())
            for i, name in enumerate(result.members)
            if name in attacked
        ]
        values = {"members": len(result.members), "white_box_success/least": min(successes)}
        tracker.summary(values)
    if pipeline.failures:
        first = pipeline.failures[0].error
        if result is None and len(pipeline.failures) == 1 and isinstance(first, UserError):
            raise first  # of two members, one alone cannot be compared
        raise Incomplete(pipeline.failures, result, len(members))
    assert result is not None
    return result


def _attacked(
    pipeline: Pipeline, members: Sequence[Member], sources: Sequence[Member] | None, images: int
) -> Outcomes | None:
    """The outcomes of members on the subset's first images; None where too few did not fail."""
    setting = pipeline.setting
    members = pipeline.remaining(members)
    crafted = pipeline.craft([m for m in members if sources is None or m in sources], images)
    finished = pipeline.transfer(pipeline.remaining(members), crafted, images) if crafted else []
    attacked = [m for m in crafted if m in finished]
    if len(finished) < 2 or not attacked:
        return None
    noise = fooled_by_noise(setting, finished)
    found = outcomes(setting, finished, attacked, images)
    return replace(found, noise=None if noise is None else noise[:, :images])


def suspects(
    setting: Setting, members: Sequence[Member], predicted: Mapping[str, NDArray[np.intp]]
) -> dict[str, list[Suspicion]]:
    """The members whose clean predictions look wrong, with the reasons.

    Args:
        setting: with the images that the members were evaluated on.
        members: whose clean pass is done.
        predicted: the classes that each member predicts, [I], by its name.
    """
    labels = setting.labels.numpy()
    reasons = {
        member.name: suspicions(
            labels,
            predicted[member.name],
            setting.images.classes,
            noted_accuracy(setting, member),
            unknown_preprocessing(member, setting.task),
            saturation(logits(setting, member).numpy()),
        )
        for member in members
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _work_left(setting: Setting, members: Sequence[Member], untrained: Sequence[Member]) -> bool:
    """Whether any model has still to be run on clean images."""
    return bool(
        untrained
        or not all(is_clean(setting, member) for member in members)
        or any(missing_shards(setting, member) for member in members)
        or missing_views(setting, members)
        or missing_noise(setting, members)
    )
