"""What the studies of train.py share: a session, one training with its display, and its figures."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console

from experiments.common import setting as setup
from netkin.errors import UserError
from netkin.jobs.memory import keep_freed
from netkin.jobs.progress import Bars
from netkin.report.curves import curves_figure
from netkin.report.study import Outputs
from netkin.store.layout import Store
from netkin.tracking import RunInfo, Tracker
from netkin.training.fit import Hardware
from netkin.training.recipe import Recipe
from netkin.training.weights import Teaching, Training, check_made_of, made_of, notes
from netkin.transfer.setting import Setting
from netkin.zoo.build import Classifier, published_classes
from netkin.zoo.member import Member, parse_members


@dataclass(frozen=True)
class Session:
    """What a run of train.py works with.

    Attributes:
        setting: the test images (the dataset's subset), and the store.
        training: the training images and the recipe.
        hardware: where models are trained.
        folder: of the run's own outputs.
    """

    config: DictConfig
    setting: Setting
    training: Training
    hardware: Hardware
    folder: Path


def session(config: DictConfig, recipe: Recipe | None = None) -> Session:
    """From a composed config of train.py; `recipe` instead of the config's."""
    setting = setup.build_setting(config)
    folder = setup.run_folder()
    recipe = recipe or Recipe(**setup.resolved(config.recipe))
    hardware = _hardware(config)
    if hardware.fast_dev_run:
        setting = replace(setting, store=Store(folder / "fast_dev_run"))
        recipe = replace(recipe, epochs=1)
    setup.whole(config.threads, "threads")
    torch.set_num_threads(config.threads)
    keep_freed()
    images = setup.training_images(config, Bars(Console(soft_wrap=True)))
    return Session(config, setting, Training(setting, images, recipe), hardware, folder)


def _hardware(config: DictConfig) -> Hardware:
    values = setup.resolved(config.trainer)
    setup.whole(values["devices"], "trainer.devices")
    setup.one_of(values["precision"], ("32-true", "bf16-mixed", "16-mixed"), "trainer.precision")
    for name in ("compile", "fast_dev_run"):
        setup.one_of(values[name], (True, False), f"trainer.{name}")
    cpu = setup.on_cpu(config)
    if not cpu and values["devices"] > torch.cuda.device_count():
        raise UserError(
            f"trainer.devices={values['devices']}, but this machine has "
            f"{torch.cuda.device_count()} GPUs"
        )
    workers = values["workers"]
    if workers == "auto":
        workers = 0 if cpu else max(1, _cores() // values["devices"] - 1)
    if not isinstance(workers, int) or workers < 0:
        raise UserError(f"trainer.workers must be auto or a whole number, got {workers!r}")
    return Hardware(**{**values, "accelerator": config.accelerator, "workers": workers})


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def one_member(config: DictConfig, name: str, what: str) -> Member:
    """A member by name: a timm model, one of this zoo, or a trained one (`imagenet/NAME`)."""
    if not isinstance(name, str) or not name:
        known = ", ".join(config.model.get("known") or {})
        raise UserError(
            f"name a {what} with {what}=NAME: any timm name, a trained model such as "
            f"{config.dataset.name}/NAME, or one of this zoo ({known})"
        )
    entries = setup.with_trained(config, [name])
    (member,) = parse_members(entries, setup.resolved(config.model).get("known"), at_least=1)
    return member


def run_info(config: DictConfig, folder: Path, name: str) -> RunInfo:
    """Group by experiment and dataset: the jobs of a sweep are one group."""
    experiment, dataset = config.experiment.name, config.dataset.name
    return RunInfo(
        folder=folder,
        config=setup.resolved(config),
        group=f"{experiment}-{dataset}",
        job_type=experiment,
        name=f"{dataset}/{name}",
        tags=(experiment, dataset),
    )


def train_member(
    session: Session,
    member: Member,
    bars: Bars,
    tracker: Tracker,
    teaching: Teaching | None = None,
    main: bool = True,
) -> dict[str, Any]:
    """What `netkin.training.weights.notes` says of a member's weights, trained if need be.

    Args:
        main: whether `resume` of the config is for this training.
    """
    from netkin.training.train import train

    training, file = session.training, session.training.file(member)
    found = notes(file)
    if found is not None:
        made = made_of(training, member, teaching, session.hardware.precision)
        check_made_of(file, found["made_of"], made)
        return found
    start = _start(session, member) if main else None
    epochs = training.recipe.epochs
    stage = "train"
    bars.start(stage, [member.name], epochs)

    def report(row: Any) -> None:
        tracker.curve(f"train/{member.name}", [row], step="epoch")

    result = train(
        training,
        member,
        lambda n: bars.advance(stage, n),
        teaching,
        session.hardware,
        report,
        start,
    )
    bars.finish(stage, member.name, result)
    bars.end(stage)
    found = notes(file)
    assert found is not None
    return found


def _start(session: Session, member: Member) -> Path | None:
    """The checkpoint that `resume` of the config names; None goes on from what is kept, if any."""
    wanted = session.config.resume
    if wanted == "never":
        folder = session.setting.store.training(session.setting.task.dataset, member.name)
        shutil.rmtree(folder, ignore_errors=True)
    return None if wanted in ("auto", "never") else Path(str(wanted)).expanduser()


def draw_curves(session: Session, member: Member, outputs: Outputs) -> None:
    """A member's curves, in the run's folder."""
    table = pl.read_csv(session.training.file(member).with_suffix(".curves.csv"))
    caption = f"Training of {member.name}: losses and accuracies over the epochs."
    outputs.figure("curves", curves_figure(table), table, caption)


def named(config: DictConfig, member: Member) -> Member:
    """The member under the name that its weights go by: of the config, or with its seed."""
    if config.name is not None:
        return replace(member, name=str(config.name))
    seed = "" if not config.seed else f"seed{config.seed}"
    joint = "-" if "@" in member.name else "@"
    return replace(member, name=f"{member.name}{joint}{seed}") if seed else member


def to_train(setting: Setting, member: Member) -> Member:
    """The member with as many classes as the dataset, where its published weights have others."""
    task = setting.task
    if task.weights == "train" or member.target:
        return member  # built for the dataset's classes, or as its kwargs say
    if published_classes(member) == task.num_classes:
        return member
    key = "num_labels" if member.transformers else "num_classes"
    return replace(member, kwargs={**member.kwargs, key: task.num_classes})


def print_where(session: Session, member: Member, console: Console) -> None:
    """Where everything lies, and how the model is used."""
    dataset = session.setting.task.dataset
    console.print(f"\nWeights  {session.training.file(member)}", highlight=False)
    console.print(f"Figure   {session.folder / 'curves.png'}, .pdf", highlight=False)
    console.print(f"Tables   {session.folder}/curves.csv, result.csv", highlight=False)
    if session.hardware.fast_dev_run:
        console.print("This was trainer.fast_dev_run: nothing is in the store.", highlight=False)
    else:
        console.print(f"Member   {dataset}/{member.name} of evaluate.py", highlight=False)


def predictions(session: Session, classifier: Classifier, member: Member) -> NDArray[np.intp]:
    """What a classifier takes the test images for, [I]."""
    setting = session.setting
    device = torch.device("cpu" if setup.on_cpu(session.config) else "cuda")
    classifier = classifier.eval().to(device)
    view, found = setting.view(member), []
    for shard in range(len(setting.shards)):
        pixels = setting.pixels(view, shard)
        for start in range(0, len(pixels), setting.batch_size):
            with torch.inference_mode():
                shown = pixels[start : start + setting.batch_size].to(device).float() / 255
                found.append(classifier(shown).argmax(dim=1).cpu())
    return torch.cat(found).numpy()


def trained_classifier(session: Session, member: Member) -> Classifier:
    """A member with the weights that were trained here."""
    from netkin.zoo.build import build

    weights = str(session.training.file(member))
    return build(replace(member, checkpoint=weights), session.setting.task, Path(weights))


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"
