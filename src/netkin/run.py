"""A run: from models to outcomes, pass by pass. Each pass does only what the store lacks.

Every command opens its run here, and `netkin.compare` does: `open` checks that the attack fits the
sources, prints what is to know of the images, opens the models with their weights, and leaves out
images that cannot be read, always in this order.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console

from netkin.analysis import sequential
from netkin.analysis.sequential import Certainty, Rule
from netkin.analysis.suspect import Suspicion, suspicions, to_try
from netkin.errors import UserError, and_more
from netkin.evaluation import Evaluation
from netkin.jobs.pool import PASSES, Advance, Jobs, Processes, Result
from netkin.jobs.progress import Bars
from netkin.model import Model, open_model, open_models
from netkin.passes import Item
from netkin.results import CLEAN, INPUTS, NOISE, Results
from netkin.runner import Runner
from netkin.similarity import Outcomes, nothing_common, strangers
from netkin.store.layout import Store
from netkin.store.lease import lease, sweep
from netkin.tracking import Tracker
from netkin.training.weights import Training, is_trained, trained_accuracy
from netkin.zoo.member import Member
from netkin.zoo.preprocessing import unknown_preprocessing

log = logging.getLogger(__name__)

COMPARISON = "comparison"
"""The stage in which models fail that have no image in common with others."""
Watch = Callable[[Mapping[str, Sequence[Suspicion]]], None]
"""Takes the reasons to doubt models, by name; see `netkin.analysis.suspect`."""


@dataclass(frozen=True)
class Settings:
    """What a run is opened with.

    Attributes:
        evaluation: images, task and attack.
        members: the models.
        store: where results are stored.
        runner: where and how models run.
        processes: that work at once.
        sources: names of the members that are attacked; all, unless given.
        training: makes the training of members without weights, whose progress it displays; called
            once, where there are such members.
        skip_unreadable: leave out images that cannot be read, instead of stopping.
        check_members: build each member once that is neither published nor trained here.
        complete: stop where weights cannot be had, instead of noting it in `Model.lacks`.
        rule: when to stop attacking more images; after all, unless given.
        tracker: entered for the time of the run.
        console: where progress is shown.
        tell: takes notes on the images, before any work.
        watch: called after the clean pass with the models that look wrong; it may raise UserError.
        certain: called after each look at how certain scores are, where there is a rule.
    """

    evaluation: Evaluation
    members: Sequence[Member]
    store: Store
    runner: Runner = field(default_factory=Runner)
    processes: Processes = field(default_factory=Processes)
    sources: Sequence[str] | None = None
    training: "Callable[[Results, Bars], Training] | None" = None
    skip_unreadable: bool = False
    check_members: bool = True
    complete: bool = True
    rule: Rule | None = None
    tracker: AbstractContextManager[Tracker] = field(default_factory=lambda: nullcontext(Tracker()))
    console: Console = field(default_factory=lambda: Console(quiet=True))
    tell: Callable[[Sequence[str]], None] = lambda notes: None
    watch: Watch | None = None
    certain: Callable[[Certainty], None] = lambda certainty: None


@dataclass(frozen=True)
class Failure:
    """A model that could not be finished: in which stage, and why."""

    model: Model
    stage: str
    error: Exception

    @property
    def reason(self) -> str:
        """The error in one line."""
        text = " ".join(str(self.error).split())
        known = isinstance(self.error, UserError)
        return text if known else f"{type(self.error).__name__}: {text[:300]}"


class Incomplete(UserError):
    """Some models failed, which `table` lists: model, stage, reason. The others are done, and
    `outcomes` are theirs; None for too few."""

    def __init__(self, failures: Sequence[Failure], outcomes: Outcomes | None, models: int):
        self.failures, self.outcomes = list(failures), outcomes
        rows = [(f.model.name, f.stage, f.reason) for f in failures]
        self.table = pl.DataFrame(rows, schema=["model", "stage", "reason"], orient="row")
        named = "; ".join(f"{f.model.name} ({f.stage}: {f.reason})" for f in failures)
        super().__init__(
            f"{len(failures)} of {models} members failed: {named}. The others are done: fix what "
            "failed (the run's log has the traces) or leave it out, and run the same command again"
        )

    def __reduce__(self) -> tuple:
        return UserError, (str(self),)


@contextmanager
def open(settings: Settings) -> Iterator["Run"]:
    """A run, before any work on its models.

    Raises UserError for a source that the attack does not fit, for models that cannot be opened,
    and where no image can be read.
    """
    check_sources(settings)
    settings.tell(settings.evaluation.images.notes)
    with settings.tracker as tracker:
        results = Results(settings.store, settings.evaluation)
        with Bars(settings.console) as display:
            models = open_models(
                settings.members,
                settings.evaluation.task,
                settings.store.weights,
                display,
                settings.check_members,
                settings.complete,
            )
            if settings.skip_unreadable:
                from netkin.passes.decode import readable

                display.start("check", ["images"], len(settings.evaluation.subset))
                results = readable(results, lambda n: display.advance("check", n))
                display.end("check")
            training = None
            if settings.training is not None and not all(
                model.member.checkpoint or model.member.uses_published(model.task)
                for model in models
            ):
                training = settings.training(results, display)
        _check_unchanged(results, settings, models)
        yield Run(settings, results, models, tracker, training)


def _check_unchanged(results: Results, settings: Settings, models: Sequence[Model]) -> None:
    """Raises OtherContents for a model whose own code computes other than what is stored of it."""
    if any(model.member.target for model in models):
        from netkin.passes.predict import check_unchanged

        check_unchanged(results, settings.runner, models)


def check_sources(settings: Settings) -> None:
    """Raises UserError, before any work, for sources that the attack does not fit.

    The error lists the members that it fits.
    """
    attack, task = settings.evaluation.attack, settings.evaluation.task
    if not attack.selective:
        return
    problems = {}
    for member in settings.members:
        model = open_model(member, task, settings.store.weights)
        problems[member.name] = attack.unfit(_architecture(model))
    sources = list(problems) if settings.sources is None else settings.sources
    refused = [f"{name} {problems[name]}" for name in sources if problems[name]]
    if refused:
        fit = ",".join(name for name, problem in problems.items() if not problem)
        name = attack.name
        ways = (
            f"those of these members that do: model.members=[{fit}], or, with all others as "
            f"targets, experiment=attacks attacks=[pgd,{name}] sources=[{fit}]"
            if fit
            else "none of these members does"
        )
        raise UserError(f"attack {name} does not fit all sources: {'; '.join(refused)}; {ways}")


@dataclass
class Run:
    """An open run. Its passes return the models that did not fail.

    Each process works on what no other has taken, and waits for the rest at the end.

    Attributes:
        settings: that it was opened with.
        results: what the store holds.
        models: the members, opened.
        tracker: gets the progress of each stage, a row for each stage of each model, and sums.
        training: how models without weights get them; None where they bring their own.
        failures: the models that have failed so far.
        certainty: how certain scores are, in a run that stops when they are certain enough.
    """

    settings: Settings
    results: Results
    models: list[Model]
    tracker: Tracker
    training: Training | None = None
    failures: list[Failure] = field(default_factory=list)
    certainty: Certainty | None = None
    _jobs: Jobs | None = None

    def __post_init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def evaluation(self) -> Evaluation:
        """Images, task and attack, without images that cannot be read."""
        return self.results.evaluation

    @property
    def runner(self) -> Runner:
        """Where and how models run."""
        return self.settings.runner

    @property
    def sources(self) -> list[Model]:
        """The models that are attacked."""
        names = self.settings.sources
        return [m for m in self.models if names is None or m.name in names]

    def under(self, **changes: Any) -> "Run":
        """The same models in the evaluation with other attributes, such as `attack`."""
        return replace(self, results=self.results.under(**changes), failures=[], _jobs=None)

    @contextmanager
    def working(self) -> Iterator[Jobs]:
        """Processes and a display for the passes of a block; others open their own."""
        if self._jobs is not None:
            yield self._jobs
            return
        clean_up = partial(sweep, self.results.store.root)
        clean_up()
        context, processes = (self.results, self.runner, self.training), self.settings.processes
        with (
            Bars(self.settings.console) as display,
            Jobs(context, processes, display, PASSES, clean_up) as jobs,
        ):
            self._jobs = jobs
            try:
                yield jobs
            finally:
                self._jobs = None

    def remaining(self, models: Sequence[Model] | None = None) -> list[Model]:
        """The models that have not failed."""
        failed = {failure.model.name for failure in self.failures}
        return [m for m in (self.models if models is None else models) if m.name not in failed]

    def clean(self, models: Sequence[Model] | None = None) -> list[Model]:
        """Train models and evaluate them on the clean images, in all models' views."""
        results, training = self.results, self.training
        models = self.remaining(models)
        untrained = [m for m in models if training and not is_trained(training, m.member)]
        with self.working():
            missing = results.missing_views(models)
            if missing and (untrained or self._has_work(models)):
                items = [Item(f"shard {i}", None, v, shard=i) for i, v in missing.items()]
                images = sum(len(self.evaluation.shards[i]) for i in missing)
                self.stage("decode", "decode.decode", items, images)
            if training is not None:
                epochs = training.recipe.epochs
                todo = [Item(m.name, m) for m in untrained]
                self.stage("train", train_work, todo, len(todo) * epochs)
            models = self._predict("clean", {m.name: [CLEAN] for m in self.remaining(models)})
            accuracies = self._note_accuracy(models)
            if self.settings.watch is not None:
                labels, classes = self.evaluation.labels, self.evaluation.images.classes
                tried = to_try(labels.numpy(), accuracies, len(classes))
                self._predict("inputs", {name: [INPUTS] for name in tried})
                models = self.remaining(models)
                self.settings.watch(suspects(results, models, tried))
            return self._predict("resize", results.other_views(models))

    def noise(self, models: Sequence[Model] | None = None) -> list[Model]:
        """Evaluate models under noise of the attack's eps: the control of chance."""
        models = self.remaining(models)
        changes = [NOISE] if self.evaluation.has_noise else []
        return self._predict("noise", {model.name: changes for model in models})

    def craft(
        self, models: Sequence[Model] | None = None, images: int | None = None
    ) -> list[Model]:
        """Craft the adversarial images of models whose clean pass is done.

        Of the subset's first `images` and the rest of their last shard, if their number is given.
        """
        models = self.remaining(self.sources if models is None else models)
        missing = {m.name: self.results.missing_shards(m, images) for m in models}
        todo = [Item(m.name, m, tuple(missing[m.name])) for m in models if missing[m.name]]
        units = sum(self.results.attackable(item.of_model(), item.todo) for item in todo)
        self.stage("craft", "craft.craft", self._split(todo), units)
        return self.remaining(models)

    def transfer(
        self,
        models: Sequence[Model] | None = None,
        sources: Sequence[Model] | None = None,
        images: int | None = None,
    ) -> list[Model]:
        """Evaluate models on the sources' adversarial images; on each other's, unless given.

        On all images, or the first `images` of the subset.
        """
        models = self.remaining(models)
        missing = self.results.missing_sources(models, sources, images)
        todo = [Item(m.name, m, tuple(missing[m.name]), images) for m in models if missing[m.name]]
        units = sum(len(item.todo) for item in todo)
        self.stage("transfer", "transfer.transfer", self._split(todo), units)
        return self.remaining(models)

    def measure(self) -> Outcomes:
        """All passes, and the outcomes that scores are computed from.

        With a rule, images are attacked shard by shard, in the subset's order, until it is reached;
        the outcomes are those of the images that were used.

        Raises Incomplete, with the outcomes of the others, when models failed. One that classifies
        no image correctly that another of them does, such as one of another order of classes, is
        left out as failed before it is attacked.
        """
        rule, total, found = self.settings.rule, len(self.evaluation.subset), None
        with self.working():
            evaluated = self.noise(self.with_common_images(self.clean()))
            sizes = [total] if rule is None else sequential.stops(total, self.evaluation.shard_size)
            for images in sizes:
                found = self._attacked(evaluated, images)
                if rule is None or found is None:
                    break
                if strangers(found.correct):  # on these images; not on all
                    continue
                self.certainty = sequential.certainty(found, total, rule)
                self.tracker.curve([self.certainty.numbers], step="sequential/images")
                self.settings.certain(self.certainty)
                if self.certainty.reached:
                    break
        if found is not None:
            attacked = {model.name for model in self.sources}
            sources = [i for i, name in enumerate(found.members) if name in attacked]
            least = min(float(found.per_image(i, i).mean()) for i in sources)
            self.tracker.summary({"members": len(found.members), "white_box_success/least": least})
        if self.failures:
            first = self.failures[0].error
            if found is None and len(self.failures) == 1 and isinstance(first, UserError):
                raise first  # of two models, one alone cannot be compared
            raise Incomplete(self.failures, found, len(self.models))
        assert found is not None
        return found

    def with_common_images(
        self, models: Sequence[Model], landmarks: Sequence[Model] | None = None
    ) -> list[Model]:
        """Models any two of which, or any and each landmark, classify an image correctly; the
        others are noted as failed."""
        if not models:
            return []
        correct = torch.stack([self.results.correct(model) for model in models]).numpy()
        of = None if landmarks is None else [models.index(m) for m in landmarks if m in models]
        for i, others in strangers(correct, of).items():
            name, names = models[i].name, [models[j].name for j in others]
            error = nothing_common(name, name if i in others else and_more(names, 3))
            self.failures.append(Failure(models[i], COMPARISON, error))
        return self.remaining(models)

    def raise_failures(self) -> None:
        """Raises Incomplete where a model failed: the end of a command that goes on without it."""
        if self.failures:
            raise Incomplete(self.failures, None, len(self.models))

    def _attacked(self, models: Sequence[Model], images: int) -> Outcomes | None:
        """The outcomes of models on the subset's first images; None where too few did not fail."""
        crafted = self.craft([m for m in self.remaining(models) if m in self.sources], images)
        finished = self.transfer(self.remaining(models), crafted, images) if crafted else []
        attacked = [m for m in crafted if m in finished]
        if len(finished) < 2 or not attacked:
            return None
        return self.results.outcomes(finished, attacked, images)

    def _split(self, items: Sequence[Item]) -> list[Item]:
        """The work of each model, dealt to the devices."""
        return [part for item in items for part in item.split(self.settings.processes.devices)]

    def _has_work(self, models: Sequence[Model]) -> bool:
        """Whether any model has still to be run on clean or adversarial images, or attacked."""
        results = self.results
        return (
            any(not results.has(m) or results.missing_shards(m) for m in models)
            or any(results.other_views(models).values())
            or any(results.missing_sources(models).values())
            or (self.evaluation.has_noise and not all(results.has(m, NOISE) for m in models))
        )

    def _predict(self, stage: str, changes: Mapping[str, Sequence[Any]]) -> list[Model]:
        """Predict with the changes that are not stored, of each named model."""
        models = [model for model in self.models if model.name in changes]
        items = []
        for model in models:
            todo = tuple(c for c in changes[model.name] if not self.results.has(model, c))
            items += [Item(model.name, model, todo)] if todo else []
        units = sum(len(item.todo) for item in items) * len(self.evaluation.subset)
        self.stage(stage, "predict.predict", items, units)
        return self.remaining(models)

    def _note_accuracy(self, models: Sequence[Model]) -> dict[str, float]:
        accuracies = {m.name: float(self.results.correct(m).float().mean()) for m in models}
        if rates := list(accuracies.values()):
            self.tracker.summary(
                {
                    "images": len(self.evaluation.subset),
                    "clean_accuracy/mean": float(np.mean(rates)),
                    "clean_accuracy/least": min(rates),
                }
            )
        return accuracies

    def stage(
        self, stage: str, work: str | Callable, items: Sequence[Any], units: int
    ) -> list[tuple[Any, Any]]:
        """Run work on items, as `netkin.jobs.pool.Jobs.run` does; returns (item, result) of each.

        A model's failure is recorded; an image's concerns all models, so it is raised.

        Args:
            stage: what the display and the tracker call it.
            work: a function of a module, of ((results, runner, training), item, advance), or one of
                `netkin.passes`, such as "craft.craft", of (results, runner, item, advance), which
                is imported only where there is work: a run with all in the store starts sooner.
            items: with a `name`, and those of a model with a `model`.
            units: the sum of all `advance` calls.
        """
        if not items:
            return []
        start, work = time.perf_counter(), partial(_call, work) if isinstance(work, str) else work

        def failed(item: Any, error: Exception) -> None:
            log.error("%s failed in %s", item.model.name, stage, exc_info=error)
            if item.model.name not in {failure.model.name for failure in self.failures}:
                self.failures.append(Failure(item.model, stage, error))

        results, finished = dict[str, list[Result]](), []
        with self.working() as jobs:
            passed = jobs.run(stage, work, items, units, None if stage == "decode" else failed)
            for done, (item, result) in enumerate(passed, start=1):
                if result.curves:
                    rows = [{"model": item.name, **row} for row in result.curves]
                    self.tracker.add("training", rows)
                if stage != "decode":
                    results.setdefault(item.model.name, []).append(result)
                finished.append((item, result))
                seconds, share = time.perf_counter() - self._began, min(1, done / len(items))
                point = {"progress/seconds": seconds, f"progress/{stage}": share}
                self.tracker.curve([point], step="progress/seconds")
        self._note_stage(stage, results, time.perf_counter() - start)
        return finished

    def _note_stage(self, stage: str, parts: Mapping[str, list[Result]], seconds: float) -> None:
        """Log a stage's rows and sums."""
        attack = self.evaluation.attack.name
        rows = [
            {"stage": stage, "attack": attack, **totals(name, of)} for name, of in parts.items()
        ]
        self.tracker.add("stages", rows)
        # A run of several attacks goes through a stage several times.
        numbers, names = self.tracker.numbers, (f"seconds/{stage}", f"images_per_second/{stage}")
        before, rate = (float(numbers.get(name) or 0) for name in names)
        seconds += before
        images = sum(row["images"] for row in rows) + rate * before
        values = (seconds, images / seconds)[: 2 if images else 1]
        self.tracker.summary(dict(zip(names, values, strict=False)))


def _call(name: str, context: tuple, item: Item, advance: Advance) -> Result:
    module, function = name.split(".")
    work = getattr(import_module(f"netkin.passes.{module}"), function)
    return work(*context[:2], item, advance)


def totals(name: str, parts: Sequence[Result]) -> dict[str, Any]:
    """A member's row of the table of stages, over all parts of its work in one.

    Columns: model, seconds, images, images_per_second, and shards of crafting.
    """
    seconds, images = sum(part.seconds for part in parts), sum(part.images for part in parts)
    shards = sum(part.shards for part in parts)
    return {
        "model": name,
        "seconds": seconds,
        "images": images,
        "images_per_second": images / seconds if images and seconds else None,
        "shards": shards or None,
    }


def train_work(context: tuple[Results, Runner, Training], item: Item, advance: Advance) -> Result:
    """Train a model that lacks weights, unless another process does."""
    results, _, training = context
    member = item.of_model().member
    with lease(results.store.root, training.file(member)) as held:
        if not held:
            return Result(remaining=item)
        if is_trained(training, member):
            advance(training.recipe.epochs)
            return Result()
        from netkin.training.train import train

        return train(training, member, advance)


def suspects(
    results: Results, models: Sequence[Model], tried: Collection[str] = ()
) -> dict[str, list[Suspicion]]:
    """The models whose clean predictions look wrong, with the reasons; their clean pass is done,
    and other inputs were tried on those of some names."""
    labels, classes = results.evaluation.labels.numpy(), results.evaluation.images.classes
    reasons = {
        model.name: suspicions(
            labels,
            results.predictions(model).numpy(),
            classes,
            trained_accuracy(results.store, model),
            unknown_preprocessing(model.member, model.task),
            results.logits(model).numpy(),
            results.clean_notes(model),
            results.predictions(model, INPUTS).numpy() if model.name in tried else None,
            results.inputs(model),
        )
        for model in models
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _architecture(model: Model) -> torch.nn.Module:
    """A classifier of a model's architecture; without memory for weights where that is possible."""
    from netkin.zoo.build import build

    try:
        with torch.device("meta"):
            return build(model.member, model.task)
    except UserError:
        return build(model.member, model.task)
