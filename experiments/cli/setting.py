"""From a composed config to the library's objects; a user's mistake is one line of error here."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.cli.devices import batch_size, build_jobs, execution_choice, loader, on_cpu
from experiments.cli.keys import construct, naming, naming_group
from experiments.cli.members import build_training
from experiments.cli.runs import open_store
from experiments.cli.sequential import rule
from experiments.cli.values import may_stop, one_of, positive, positive_int, resolved
from netkin.attacks import PGD, Attack, Clean, as_attack
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.data import subset
from netkin.data.images import Images
from netkin.data.subset import Subset
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.passes.decode import skipping
from netkin.passes.setting import Setting
from netkin.pipeline import Pipeline, Watch
from netkin.tracking import Tracker
from netkin.zoo import published
from netkin.zoo.build import Classifier, Task, build, check_member
from netkin.zoo.execution import TARGET_PRECISIONS, Execution, check_execution
from netkin.zoo.member import Member
from netkin.zoo.preprocessing import trained_here

log = logging.getLogger(__name__)


def build_setting(config: DictConfig) -> Setting:
    """The evaluation that a config describes: images, subset, attack, store, and how models run.

    Raises UserError that names the key of a value that cannot be used.
    """
    values = resolved(config)
    positive_int(values["store"]["shard_size"], "store.shard_size")
    one_of(values["store"]["dtype"], ("uint8", "float32"), "store.dtype")
    one_of(values["transfer"]["interpolation"], ("bilinear", "bicubic"), "transfer.interpolation")
    one_of(values["transfer"]["precision"], TARGET_PRECISIONS, "transfer.precision")
    with naming({"precision": "transfer.precision"}):
        check_execution(Execution(values["transfer"]["precision"]), gpu=not on_cpu(config))
    positive(values["score"]["eps_s"], "score.eps_s")
    positive_int(values["score"]["bootstrap"], "score.bootstrap")
    rule(config)
    one_of(values["on_suspect"], ("warn", "stop"), "on_suspect")
    check_dataset(values["dataset"])
    attack = build_attack(config)
    eps = attack.eps
    if values["store"]["dtype"] == "uint8" and eps is not None:
        with naming({"eps": "attack.eps", "dtype": "store.dtype"}):
            levels(eps)
    images = _images(config)
    return Setting(
        images=images,
        subset=_subset(config, images, values),
        task=build_task(config, images.classes),
        attack=attack,
        store=open_store(config),
        shard_size=values["store"]["shard_size"],
        batch_size=batch_size(config),
        choice=execution_choice(config),
        dtype=values["store"]["dtype"],
        interpolation=values["transfer"]["interpolation"],
        precision=values["transfer"]["precision"],
        accelerator=config.hardware.accelerator,
        loader=loader(config),
    )


def training_setting(config: DictConfig) -> Setting:
    """The test images of a training and the task of its models, without an attack."""
    values = resolved(config)
    check_dataset(values["dataset"])
    images = _images(config)
    return Setting(
        images=images,
        subset=_subset(config, images, values),
        task=build_task(config, images.classes),
        attack=as_attack(Clean(), "clean"),
        store=open_store(config),
        batch_size=batch_size(config),
        accelerator=config.hardware.accelerator,
        loader=loader(config),
    )


def build_task(config: DictConfig, classes: Sequence[str]) -> Task:
    """The task that models are built for."""
    dataset = resolved(config.dataset)
    return Task(
        dataset=dataset["name"],
        num_classes=len(classes),
        weights=dataset["weights"],
        input_size=dataset["input_size"],
        fit=tuple(dataset["fit"]),
        classes=tuple(classes),
    )


def check_dataset(dataset: dict[str, Any]) -> None:
    """Raises UserError for a value of the dataset group that cannot be used."""
    if not isinstance(dataset["name"], str) or not dataset["name"]:
        raise UserError(f"dataset.name must be a name, got {dataset['name']!r}")
    one_of(dataset["weights"], ("train", "pretrained"), "dataset.weights")
    one_of(dataset.get("on_error", "stop"), ("stop", "skip"), "dataset.on_error")
    if dataset["input_size"] is not None or dataset["weights"] == "train":
        positive_int(dataset["input_size"], "dataset.input_size")


def prepare(
    config: DictConfig,
    setting: Setting,
    members: list[Member],
    display: Bars,
    checked: bool = True,
) -> Setting:
    """The setting with the files of published weights, and without unreadable images if these are
    skipped.

    Args:
        checked: whether members that are no published or trained timm models are built once.

    Raises UserError that lists every member whose weights are missing, and for the first one that
    cannot be built, does not fit its checkpoint, or has other classes.
    """
    absent = [m for m in members if m.checkpoint and not Path(m.checkpoint).expanduser().is_file()]
    if absent:
        raise UserError(
            "there is no checkpoint "
            + ", ".join(f"{m.checkpoint} (of {m.name}{_if_folder(m.checkpoint)})" for m in absent)
        )
    names = {m.name: m.source for m in members if m.uses_published(setting.task) and m.source}
    for member in members if checked else ():
        file = Path(member.checkpoint).expanduser() if member.checkpoint else None
        untried = not trained_here(file) if file else not member.timm
        if untried and (note := check_member(member, setting.task)):
            log.warning("%s", note)
    if names:
        display.start("weights", list(names), len(names))
        files = {}
        for member, file in published.fetch(names):
            files[member] = file
            display.advance("weights", 1)
        display.end("weights")
        setting = replace(setting, published=files)
    if config.dataset.get("on_error") == "skip":
        display.start("check", ["images"], len(setting.subset))
        setting = skipping(setting, lambda n: display.advance("check", n))
        display.end("check")
    return setting


def _if_folder(path: str | None) -> str:
    return "; it is a folder" if path and Path(path).expanduser().is_dir() else ""


def _images(config: DictConfig) -> Images:
    with naming_group("dataset.images", config.dataset.images):
        return instantiate(config.dataset.images)


def _subset(config: DictConfig, images: Images, values: dict[str, Any]) -> Subset:
    chosen = values["subset"]
    if "file" in chosen:
        with naming_group("subset", config.subset):
            return subset.from_manifest(images, chosen["file"], values["dataset"]["name"])
    shuffled = chosen.get("shuffled")
    one_of(shuffled, (True, False, None), "subset.shuffled")
    if shuffled is None:  # the first images of a run that may stop must be a sample of all
        shuffled = may_stop(config)
    with_order = OmegaConf.create({**chosen, "shuffled": shuffled})
    return construct(subset.draw, "subset", with_order, images)


def build_attack(config: DictConfig, option: str | None = None) -> Attack:
    """The attack; its identity is its resolved config, with fractions as numbers.

    Args:
        config: as composed.
        option: of the attack group, for the attack's name; the run's own, unless given.
    """
    with naming_group("attack", config.attack):
        return _composed(config, option)


def _composed(config: DictConfig, option: str | None) -> Attack:
    values = resolved(config.attack)
    own = option or HydraConfig.get().runtime.choices["attack"]
    name = values.pop("name", None) or own
    identity = {
        key: fraction(value, key) if _is_fraction(value) else value for key, value in values.items()
    }
    attack = instantiate(config.attack)
    if isinstance(attack, PGD) and identity.get("step_size", 0) is None and not attack.momentum:
        identity["step_size"] = attack.step_size  # which null used to mean is another one
    return as_attack(attack, str(name), identity)


def check_sources(setting: Setting, sources: Sequence[Member], members: Sequence[Member]) -> None:
    """Raises UserError, before any work, for sources that the attack does not fit.

    The error lists the members that it fits.
    """
    attack = setting.attack
    if not attack.selective:
        return
    problems = {m.name: attack.unfit(_architecture(m, setting.task)) for m in members}
    refused = [f"{m.name} {problems[m.name]}" for m in sources if problems[m.name]]
    if refused:
        fit = ",".join(name for name, problem in problems.items() if not problem)
        name = setting.attack.name
        ways = (
            f"those of these members that do: model.members=[{fit}], or, with all others as "
            f"targets, experiment=attacks attacks=[pgd,{name}] sources=[{fit}]"
            if fit
            else "none of these members does"
        )
        raise UserError(f"attack {name} does not fit all sources: {'; '.join(refused)}; {ways}")


def _architecture(member: Member, task: Task) -> Classifier:
    """A member without weights; without memory for them, where its network can be built so."""
    try:
        with torch.device("meta"):
            return build(member, task)
    except UserError:
        return build(member, task)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*/\s*[\d.]+\s*", value) is not None


@contextmanager
def open_pipeline(
    config: DictConfig,
    setting: Setting,
    members: list[Member],
    tracker: Tracker,
    display: Bars,
    watch: Watch | None = None,
    at_once: int | None = None,
) -> Iterator[Pipeline]:
    """The passes over a setting, with worker processes and a training for members that need one.

    Args:
        config: as composed.
        setting: after `prepare`.
        members: the models.
        tracker: logs metrics of stages and members.
        display: where progress is shown.
        watch: see `netkin.pipeline.Pipeline`.
        at_once: the largest number of members that there is work for.
    """
    training = build_training(config, setting, members, display)
    with build_jobs(config, (setting, training), display, members=at_once) as jobs:
        yield Pipeline(setting, training, jobs, tracker, watch)
