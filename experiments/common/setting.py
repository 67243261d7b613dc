"""From a composed config to the library's objects. Everything a user can get wrong is met here."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.common.devices import on_cpu
from experiments.common.values import one_of, positive, positive_int, resolved
from netkin.attacks import Clean, Selective
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.data import subset
from netkin.data.images import Images
from netkin.data.subset import Subset
from netkin.errors import UserError
from netkin.jobs.pool import Display
from netkin.store.layout import Store
from netkin.transfer.decode import skipping
from netkin.transfer.setting import AttackSpec, Loader, Setting
from netkin.transfer.tune import AUTO, Choice
from netkin.zoo import published
from netkin.zoo.build import Classifier, Task, build
from netkin.zoo.execution import MEMORY_FORMATS, PRECISIONS, Execution, check_execution
from netkin.zoo.member import Member


def build_setting(config: DictConfig) -> Setting:
    """The evaluation that a config describes."""
    values = resolved(config)
    positive_int(values["store"]["shard_size"], "store.shard_size")
    if values["batch_size"] != AUTO:
        positive_int(values["batch_size"], "batch_size")
    one_of(values["store"]["dtype"], ("uint8", "float32"), "store.dtype")
    _check_dataset(values["dataset"])
    one_of(values["transfer"]["interpolation"], ("bilinear", "bicubic"), "transfer.interpolation")
    if "score" in values:
        positive(values["score"]["eps_s"], "score.eps_s")
        positive_int(values["score"]["bootstrap"], "score.bootstrap")
    # Training looks at clean images alone.
    attack = build_attack(config) if "attack" in values else AttackSpec("clean", Clean(), {})
    eps = getattr(attack.attack, "eps", None)
    if values["store"]["dtype"] == "uint8" and eps is not None:
        levels(eps)
    images: Images = instantiate(config.dataset.images)
    return Setting(
        images=images,
        subset=_subset(images, values),
        task=build_task(config, images.classes),
        attack=attack,
        store=Store(values["store"]["dir"]),
        shard_size=values["store"]["shard_size"],
        batch_size=BATCH_SIZE if values["batch_size"] == AUTO else values["batch_size"],
        choice=_choice(config),
        dtype=values["store"]["dtype"],
        interpolation=values["transfer"]["interpolation"],
        accelerator=values["accelerator"],
        loader=_loader(config),
    )


BATCH_SIZE = 100
"""Images at once where batch_size=auto leaves it open: in the passes without gradients."""


def _choice(config: DictConfig) -> Choice:
    """How sources are run while they are attacked; train.py's config says nothing of it."""
    if "precision" not in config:
        return Choice()
    one_of(config.precision, tuple(PRECISIONS), "precision")
    one_of(config.memory_format, (*MEMORY_FORMATS, AUTO), "memory_format")
    for name in ("fuse", "compile"):
        one_of(config[name], (True, False), name)
    timed = config.memory_format == AUTO
    memory_format = Execution.memory_format if timed else config.memory_format
    execution = Execution(config.precision, config.fuse, memory_format, config.compile)
    check_execution(execution, gpu=not on_cpu(config))
    return Choice(execution, timed, config.batch_size)


def build_task(config: DictConfig, classes: Sequence[str]) -> Task:
    """What models are built for."""
    dataset = resolved(config.dataset)
    return Task(
        dataset=dataset["name"],
        num_classes=len(classes),
        weights=dataset["weights"],
        input_size=dataset["input_size"],
        fit=tuple(dataset["fit"]),
        classes=tuple(classes),
    )


def _check_dataset(dataset: dict[str, Any]) -> None:
    if not isinstance(dataset["name"], str) or not dataset["name"]:
        raise UserError(f"dataset.name must be a name, got {dataset['name']!r}")
    one_of(dataset["weights"], ("train", "pretrained"), "dataset.weights")
    one_of(dataset.get("on_error", "stop"), ("stop", "skip"), "dataset.on_error")
    if dataset["input_size"] is not None or dataset["weights"] == "train":
        positive_int(dataset["input_size"], "dataset.input_size")


def prepare(
    config: DictConfig, setting: Setting, members: list[Member], display: Display
) -> Setting:
    """The setting with what has to be had before any work: weights, and images that can be read.

    Raises UserError that lists every member whose weights are missing.
    """
    absent = [m for m in members if m.checkpoint and not Path(m.checkpoint).expanduser().is_file()]
    if absent:
        raise UserError(
            "there is no checkpoint "
            + ", ".join(f"{member.checkpoint} (of {member.name})" for member in absent)
        )
    if setting.task.weights == "pretrained":
        names = {member.name: member.timm for member in members if not member.checkpoint}
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


def _subset(images: Images, values: dict[str, Any]) -> Subset:
    chosen = values["subset"]
    if "file" in chosen:
        return subset.from_manifest(images, chosen["file"], values["dataset"]["name"])
    return subset.draw(images, **chosen)


def _loader(config: DictConfig) -> Loader:
    """Shards load in the model's process on a CPU, ahead of it in two processes beside a GPU."""
    values, gpu = resolved(config.loader), not on_cpu(config)
    workers = 2 * gpu if values["workers"] == "auto" else values["workers"]
    if not isinstance(workers, int) or workers < 0:
        raise UserError(f"loader.workers must be auto or a whole number, got {workers!r}")
    pin = gpu if values["pin_memory"] == "auto" else bool(values["pin_memory"])
    threads = values["decode_threads"]
    if threads == "auto":
        threads = len(os.sched_getaffinity(0)) if gpu else 1
    positive_int(threads, "loader.decode_threads")
    positive_int(values["prefetch"], "loader.prefetch")
    return Loader(workers, values["prefetch"], pin, threads)


def build_attack(config: DictConfig, option: str | None = None) -> AttackSpec:
    """The attack; its identity is its resolved config, with fractions as numbers.

    Its name is that of the option of the attack group, the run's own unless given.
    """
    values = resolved(config.attack)
    own = option or HydraConfig.get().runtime.choices["attack"]
    name = values.pop("name", None) or own
    identity = {
        key: fraction(value, f"attack.{key}") if _is_fraction(value) else value
        for key, value in values.items()
    }
    return AttackSpec(str(name), instantiate(config.attack), identity)


def check_sources(setting: Setting, sources: Sequence[Member], members: Sequence[Member]) -> None:
    """Refuse sources that the attack does not fit, before any work starts.

    Raises UserError that lists those of the members that it fits.
    """
    attack = setting.attack.attack
    if not isinstance(attack, Selective):
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
    """A member without weights, and where that is possible without memory for them."""
    try:
        with torch.device("meta"):
            return build(member, task)
    except UserError:
        return build(member, task)


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*/\s*[\d.]+\s*", value) is not None
