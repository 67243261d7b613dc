"""A run of train.py: how it is opened, trains its models, and writes its page."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from experiments.cli.finish import finish, print_notes, terminal
from experiments.cli.members import build_recipe, training_images
from experiments.cli.runs import info, open_store, tracked
from experiments.cli.setting import BATCH_SIZE, build_images, thread_count, training_hardware
from experiments.cli.values import resolved, run_folder, swept
from netkin import run
from netkin.attacks import Clean, as_attack
from netkin.evaluation import Evaluation
from netkin.jobs.pool import keep_freed
from netkin.jobs.progress import Bars
from netkin.model import Model
from netkin.report.plots import curves_figure
from netkin.report.study import Outputs, Section
from netkin.report.text import percent
from netkin.results import Results
from netkin.run import Run, Settings
from netkin.runner import device_of
from netkin.store.layout import Store
from netkin.training import weights
from netkin.training.recipe import Recipe
from netkin.training.weights import Teaching, Training, check_identity, identity, notes
from netkin.zoo.build import published_classes
from netkin.zoo.member import Member, Task

SHOWN = ("lr", "weight_decay", "opt", "sched", "epochs", "batch_size")
"""Settings of a recipe at the top level of a run's config, by which dashboards sort runs."""


@dataclass(frozen=True)
class Session:
    """An open run of train.py."""

    config: DictConfig  # as composed
    run: Run  # whose results are of the test images (the dataset's subset)
    training: Training  # images, recipe and hardware
    outputs: Outputs  # tables, figures and page

    @property
    def results(self) -> Results:
        """What the store holds of the test images."""
        return self.run.results

    def with_recipe(self, key: str) -> "Session":
        """The same with the recipe at another key of the config."""
        return replace(self, training=replace(self.training, recipe=recipe_at(self.config, key)))

    def open(self, member: Member) -> Model:
        """A member with the weights that the store has under its name."""
        file = self.training.file(member)
        return Model(replace(member, checkpoint=str(file)), self.training.task, file)

    def train(
        self, member: Member, teaching: Teaching | None = None, role: str = ""
    ) -> dict[str, Any]:
        """Train a member unless the store has its weights; returns `netkin.training.weights.notes`.

        A model that is trained on the way has a role, such as teacher: its curves begin with it,
        and the config's `resume` does not apply to it. Raises what `netkin.training.train.train`
        does, and OtherTraining where the store has weights of another training under this name.
        """
        file = self.training.file(member)
        if stored := notes(file):
            check_identity(file, stored["made_of"], identity(self.training, member, teaching))
            for row in weights.curves(file).to_dicts():
                self._log({k: v for k, v in row.items() if v is not None}, role)
            return stored
        from netkin.training.train import train  # slow to import, and often not needed

        with Bars(self.run.settings.console) as bars:
            bars.start("train", [member.name], self.training.recipe.epochs)
            result = train(
                self.training,
                member,
                lambda epochs: bars.advance("train", epochs),
                teaching,
                lambda row: self._log(row, role),
                None if role else self._checkpoint(member),
            )
            bars.finish("train", member.name, result.note)
            bars.end("train")
        return notes(file) or {}

    def _checkpoint(self, member: Member) -> Path | None:
        """The one that the config's `resume` names; None for the one in the store, if any."""
        resume = str(self.config.resume)
        if resume == "never":
            folder = self.results.store.training(self.training.task.dataset, member.name)
            shutil.rmtree(folder, ignore_errors=True)
        return None if resume in ("auto", "never") else Path(resume).expanduser()

    def _log(self, row: Mapping[str, float], role: str) -> None:
        """Log a row of `netkin.training.fit.Fit` under keys that are the same in every run.

        train/loss, train/accuracy, train/lr and the like and val/accuracy are over epochs,
        step/loss over optimiser steps. With a role they begin with it: teacher/train/loss.
        """
        prefix, step = f"{role}/" if role else "", "step" if "step" in row else "epoch"
        named = {prefix + _curve(key, step): value for key, value in row.items()}
        self.run.tracker.curve([named], prefix + step)

    def predictions(self, model: Model) -> NDArray[np.intp]:
        """The classes that a model predicts for the test images, [I]."""
        results, predicted = self.results, []
        where = device_of(self.config.hardware.accelerator)
        classifier = model.build().eval().to(where)
        for shard in range(len(results.evaluation.shards)):
            for batch in results.pixels(model.view, shard).split(BATCH_SIZE):
                with torch.inference_mode():
                    predicted.append(classifier(batch.to(where).float() / 255).argmax(dim=1).cpu())
        return torch.cat(predicted).numpy()

    def finish(
        self,
        member: Member,
        title: str,
        question: str,
        answer: Sequence[str],
        result: Mapping[str, Any],
        accuracy: float,
    ) -> None:
        """Write curves, result.csv and report.html; print the answer and where the files are.

        The member is the run's own model, whose curves are drawn, and `accuracy` its accuracy on
        the test images, in [0, 1]; `result` is the row of result.csv and of the run's summary.
        """
        table = self.outputs.table("result", pl.DataFrame([result]))
        self.run.tracker.summary({"accuracy": accuracy, **result})
        curves = weights.curves(self.training.file(member))
        caption = f"Training of {member.name}: losses and accuracies over the epochs."
        picture = self.outputs.figure("curves", curves_figure(curves), curves, caption)
        sections = [
            Section("Training", figures=[picture]),
            Section("Result", tables={"Result": table}),
        ]
        console, text = self.run.settings.console, OmegaConf.to_yaml(self.config, resolve=True)
        finish(self.outputs, console, title, question, answer, sections, text)
        console.print(f"Weights  {self.training.file(member)}")
        used = f"Member   {self.training.task.dataset}/{member.name} of evaluate.py"
        unchanged = "This was a fast_dev_run: the store is unchanged."
        console.print(unchanged if self.config.fast_dev_run else used)


@contextmanager
def opened(
    config: DictConfig,
    evaluation: Evaluation,
    name: str,
    recipe: Recipe | None = None,
    members: Sequence[Member] = (),
) -> Iterator[Session]:
    """A run of train.py, before any work; see `netkin.run.open`.

    It is named by the model that it trains. A recipe is instead of the config's. Members must exist
    before the training, as a published teacher. Raises UserError for a value of the config that
    cannot be used.
    """
    console, folder, hardware = terminal(), run_folder(), training_hardware(config)
    recipe = recipe or recipe_at(config, "recipe")
    store = Store(folder / "fast_dev_run") if config.fast_dev_run else open_store(config)
    torch.set_num_threads(thread_count(config, hardware.devices))
    keep_freed()
    with Bars(console) as bars:
        images = training_images(config, bars)
    dataset, values = config.dataset.name, {key: getattr(recipe, key) for key in SHOWN}
    values |= resolved(config) | {"name": name, "seed": recipe.seed}
    settings = Settings(
        evaluation,
        members,
        store,
        tracker=tracked(config, info(config, dataset, f"{dataset}/{name}", values=values)),
        console=console,
        tell=lambda found: print_notes(console, [*images.notes, *found]),
    )
    training = Training(Results(store, evaluation), images, recipe, hardware)
    with run.open(settings) as r:
        yield Session(config, r, training, Outputs(folder, r.tracker))


def build_evaluation(config: DictConfig) -> Evaluation:
    """The test images, on which nothing is attacked."""
    return Evaluation(*build_images(config), as_attack(Clean(), "clean"))


def train_alone(
    config: DictConfig, evaluation: Evaluation, member: Member, recipe: Recipe | None = None
) -> None:
    """Train one member from the labels alone, and write its accuracy, curves and page."""
    with opened(config, evaluation, member.name, recipe) as s:
        stored, recipe = s.train(member), s.training.recipe
        result = {key: stored[key] for key in ("test_accuracy", "test_images", "seconds")}
        accuracy, tested, seconds = result.values()
        s.finish(
            member,
            f"How accurate is {member.name} on {s.training.task.dataset}?",
            f"{member.name} ({member.timm}) was trained from the labels alone on "
            f"{len(s.training.images.ids)} images for {recipe.epochs} epochs (seed {recipe.seed}), "
            f"and tested on {tested} other images.",
            [
                f"{member.name} classifies {percent(accuracy)} of {tested} test images correctly, "
                f"after {seconds:.0f} s of training."
            ],
            {"model": member.name, "seed": recipe.seed, **result},
            accuracy,
        )


def named(config: DictConfig, member: Member) -> Member:
    """The member under the name of its weights: the config's `name`, or its own with its seed, and
    in a sweep over other settings with their values: vit_ti@lr0.001."""
    if config.name is not None:
        return replace(member, name=str(config.name))
    parts = [f"seed{config.seed}"] if config.seed else []
    return replace(member, name=with_parts(member.name, [*parts, *swept_parts()]))


def with_parts(name: str, parts: Sequence[str]) -> str:
    """A name of weights with what differs: vit_ti@seed1, vit_ti@regnety_032-seed1."""
    return f"{name}{'-' if '@' in name else '@'}{'-'.join(parts)}" if parts else name


TRAINED_BY = ("recipe", "recipes", "distillation", "dataset")
"""Groups whose settings change weights, and are not in the names of these."""


def swept_parts(groups: Sequence[str] = TRAINED_BY) -> list[str]:
    """The values of the settings of training that this job of a sweep differs in: ["lr0.001"]."""
    pairs = [text.lstrip("+~").partition("=")[::2] for text in swept()]
    return [
        key.rpartition(".")[2] + re.sub(r"[^\w.+-]+", "_", value).strip("_")
        for key, value in pairs
        if key.partition(".")[0] in groups and key not in ("dataset", "dataset.name")
    ]


def to_train(task: Task, member: Member) -> Member:
    """The member with the dataset's number of classes, where its published weights have another."""
    if task.weights == "train" or member.target:
        return member  # built for the dataset's classes, or as its kwargs say
    if published_classes(member) == task.num_classes:
        return member
    key = "num_labels" if member.transformers else "num_classes"
    return replace(member, kwargs={**member.kwargs, key: task.num_classes})


def recipe_at(config: DictConfig, key: str) -> Recipe:
    """The recipe at a key of the config; of one epoch in a fast_dev_run."""
    recipe = build_recipe(config, key)
    return replace(recipe, epochs=1) if config.fast_dev_run else recipe


def _curve(column: str, step: str) -> str:
    """The key of a column of the curves, over steps or epochs."""
    if column == step:
        return column
    if step == "step":
        return f"step/{column}"
    return re.sub("^test_", "val/", re.sub("^(?!test_)(train_)?", "train/", column))
