"""A run of train.py: its session, its outputs, and the training of a member."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from experiments.cli.devices import training_hardware
from experiments.cli.finish import print_notes, terminal
from experiments.cli.members import build_recipe, training_images
from experiments.cli.runs import open_store, tracked, training_info
from experiments.cli.setting import build_images
from experiments.cli.values import run_folder
from netkin.attacks import Clean, as_attack
from netkin.evaluation import Evaluation
from netkin.jobs.pool import keep_freed
from netkin.jobs.progress import Bars
from netkin.model import Model, open_model, open_models
from netkin.report.study import Outputs
from netkin.results import Results
from netkin.store.layout import Store
from netkin.tracking import Tracker
from netkin.training.recipe import Recipe
from netkin.training.weights import (
    Hardware,
    Teaching,
    Training,
    check_identity,
    curves,
    identity,
    notes,
)
from netkin.zoo.build import published_classes
from netkin.zoo.member import Member, Task


@dataclass(frozen=True)
class Session:
    """The settings of a run of train.py.

    Attributes:
        config: as composed.
        training: the test images, the training images, the recipe, the hardware and the store.
        folder: of the run's own outputs.
        console: of the terminal.
    """

    config: DictConfig
    training: Training
    folder: Path
    console: Console

    @property
    def results(self) -> Results:
        """What the store holds of the test images (the dataset's subset)."""
        return self.training.results

    @property
    def hardware(self) -> Hardware:
        """Where and how models are trained."""
        return self.training.hardware

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.training.task.dataset

    def open(self, member: Member) -> Model:
        """A model with its weights, which exist or are published."""
        task, store = self.training.task, self.results.store
        if not member.uses_published(task):
            return open_model(member, task, store.weights)
        with Bars(self.console) as bars:
            return open_models([member], task, store.weights, bars)[0]

    def with_recipe(self, recipe: Recipe) -> "Session":
        """The same with another recipe; of one epoch in a fast_dev_run."""
        if self.hardware.fast_dev_run:
            recipe = replace(recipe, epochs=1)
        return replace(self, training=replace(self.training, recipe=recipe))


def build_session(config: DictConfig, recipe: Recipe | None = None) -> Session:
    """The session of a composed config of train.py.

    Args:
        config: as composed.
        recipe: instead of the config's.

    Raises UserError for a value of the config that cannot be used.
    """
    console, folder = terminal(), run_folder()
    evaluation = Evaluation(*build_images(config), as_attack(Clean(), "clean"))
    store, hardware = open_store(config), training_hardware(config)
    recipe = recipe or build_recipe(config, "recipe")
    if hardware.fast_dev_run:
        store = Store(folder / "fast_dev_run")
    torch.set_num_threads(config.hardware.threads)
    keep_freed()
    with Bars(console) as bars:
        images = training_images(config, bars)
    print_notes(console, [*images.notes, *evaluation.images.notes])
    training = Training(Results(store, evaluation), images, recipe, hardware)
    return Session(config, training, folder, console).with_recipe(recipe)


@dataclass(frozen=True)
class Run:
    """The outputs of a run of train.py.

    Attributes:
        outputs: its tables, figures and page.
        tracker: its curves and metrics.
    """

    outputs: Outputs
    tracker: Tracker


@contextmanager
def open_run(session: Session, name: str) -> Iterator[Run]:
    """A run of the session, with its tracker open.

    Args:
        session: of the run.
        name: of the model that it trains, which is the run's name on a dashboard.
    """
    info = training_info(session.config, session.folder, name, session.training.recipe)
    with tracked(session.config, info) as tracker:
        yield Run(Outputs(session.folder, tracker), tracker)


def train_member(
    session: Session,
    member: Member,
    run: Run,
    teaching: Teaching | None = None,
    role: str = "",
) -> dict[str, Any]:
    """Train a member unless the store has its weights; returns `netkin.training.weights.notes`.

    Args:
        session: with the recipe of this training.
        member: the model.
        run: its tracker gets the curves.
        teaching: of a distillation.
        role: of a model that is trained on the way, such as teacher: its curves begin with it, and
            the config's `resume` does not apply to it.

    Raises what `netkin.training.train.train` does, and OtherTraining where the store has weights of
    another training under this name.
    """
    file = session.training.file(member)
    stored = notes(file)
    if stored is not None:
        needed = identity(session.training, member, teaching)
        check_identity(file, stored["made_of"], needed)
        rows = curves(file).to_dicts()
        known = [{k: v for k, v in row.items() if v is not None} for row in rows]
        log_curves(run.tracker, known, role)
        return stored
    _train(session, member, run, teaching, role)
    stored = notes(file)
    assert stored is not None
    return stored


def _train(
    session: Session,
    member: Member,
    run: Run,
    teaching: Teaching | None,
    role: str,
) -> None:
    from netkin.training.train import train  # slow to import, and often not needed

    def report(row: Mapping[str, float]) -> None:
        log_curves(run.tracker, [row], role)

    stage = "train"
    with Bars(session.console) as bars:
        bars.start(stage, [member.name], session.training.recipe.epochs)
        result = train(
            session.training,
            member,
            lambda epochs: bars.advance(stage, epochs),
            teaching,
            report,
            None if role else _start(session, member),
        )
        bars.finish(stage, member.name, result.note)
        bars.end(stage)


def log_curves(tracker: Tracker, rows: Sequence[Mapping[str, float]], role: str = "") -> None:
    """Log rows of `netkin.training.fit.Fit` under keys that are the same in every run.

    train/loss, train/accuracy, train/lr and the like and val/accuracy are over epochs, step/loss
    over optimiser steps. With a role, such as teacher, they begin with it: teacher/train/loss.

    Args:
        tracker: of the run.
        rows: of the model.
        role: what the model is to the run's own; "" for that one itself.
    """
    prefix = f"{role}/" if role else ""
    for row in rows:
        if "step" in row:
            named = {f"{prefix}step/{key}": value for key, value in row.items() if key != "step"}
            step = f"{prefix}step"
        else:
            named = {f"{prefix}{_curve(key)}": value for key, value in row.items()}
            step = f"{prefix}epoch"
        tracker.curve([{step: row[step.removeprefix(prefix)], **named}], step)


def _curve(column: str) -> str:
    """The key of a column of the curves."""
    if column == "epoch":
        return column
    if column.startswith("test_"):
        return f"val/{column.removeprefix('test_')}"
    return f"train/{column.removeprefix('train_')}"


def _start(session: Session, member: Member) -> Path | None:
    """The checkpoint that the config's `resume` names; None for the one in the store, if any."""
    resume = session.config.resume
    if resume == "never":
        folder = session.results.store.training(session.dataset, member.name)
        shutil.rmtree(folder, ignore_errors=True)
    return None if resume in ("auto", "never") else Path(str(resume)).expanduser()


def named(config: DictConfig, member: Member) -> Member:
    """The member under the name of its weights: the config's `name`, or its own with its seed."""
    if config.name is not None:
        return replace(member, name=str(config.name))
    if not config.seed:
        return member
    joint = "-" if "@" in member.name else "@"
    return replace(member, name=f"{member.name}{joint}seed{config.seed}")


def to_train(task: Task, member: Member) -> Member:
    """The member with the dataset's number of classes, where its published weights have another."""
    if task.weights == "train" or member.target:
        return member  # built for the dataset's classes, or as its kwargs say
    if published_classes(member) == task.num_classes:
        return member
    key = "num_labels" if member.transformers else "num_classes"
    return replace(member, kwargs={**member.kwargs, key: task.num_classes})
