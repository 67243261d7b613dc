"""From a composed config to the library's objects. Everything a user can get wrong is met here."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.common.sweep import take_gpu
from netkin.attacks import Clean, Selective
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.data import subset
from netkin.data.images import Images, Part
from netkin.data.subset import Subset
from netkin.errors import UserError
from netkin.jobs.pool import Display, Jobs
from netkin.pipeline import PRELOAD
from netkin.store.layout import Store, digest
from netkin.tracking import RunInfo
from netkin.training.recipe import Recipe
from netkin.training.weights import Training, trained_members
from netkin.transfer.decode import skipping, unreadable_images
from netkin.transfer.setting import AttackSpec, Loader, Setting
from netkin.transfer.tune import AUTO, Choice
from netkin.zoo import published
from netkin.zoo.build import Classifier, Task, build
from netkin.zoo.execution import MEMORY_FORMATS, PRECISIONS, Execution, check_execution
from netkin.zoo.member import Member, parse_members
from netkin.zoo.preprocessing import unknown_preprocessing

log = logging.getLogger(__name__)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain values, interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def run_folder() -> Path:
    """Where this run's own outputs go; made if need be."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_setting(config: DictConfig) -> Setting:
    """The evaluation that a config describes."""
    values = resolved(config)
    whole(values["store"]["shard_size"], "store.shard_size")
    if values["batch_size"] != AUTO:
        whole(values["batch_size"], "batch_size")
    one_of(values["store"]["dtype"], ("uint8", "float32"), "store.dtype")
    _check_dataset(values["dataset"])
    one_of(values["transfer"]["interpolation"], ("bilinear", "bicubic"), "transfer.interpolation")
    if "score" in values:
        positive(values["score"]["eps_s"], "score.eps_s")
        whole(values["score"]["bootstrap"], "score.bootstrap")
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
        whole(dataset["input_size"], "dataset.input_size")


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
    names = {m.name: m.source for m in members if m.uses_published(setting.task) and m.source}
    guessed = [m.name for m in members if unknown_preprocessing(m, setting.task)]
    if guessed:
        log.warning(
            "%s: the preprocessing of these weights is unknown, and mean = std = 0.5 is a guess; "
            "give each member the mean, std, input_size and crop_pct that it was trained with",
            ", ".join(guessed),
        )
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


def check(images: Images, positions: Sequence[int], what: str, display: Display) -> dict[str, str]:
    """Which of some images cannot be read: id to reason."""
    display.start("check", [what], len(positions))
    bad = unreadable_images(images, positions, lambda n: display.advance("check", n))
    display.end("check")
    return bad


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
    whole(threads, "loader.decode_threads")
    whole(values["prefetch"], "loader.prefetch")
    return Loader(workers, values["prefetch"], pin, threads)


def on_cpu(config: DictConfig) -> bool:
    """Whether models run on the CPU."""
    return config.accelerator == "cpu" or not torch.cuda.is_available()


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


def build_members(config: DictConfig, at_least: int = 2) -> list[Member]:
    """The zoo; see `netkin.zoo.member.parse_members` and `with_trained`."""
    model = resolved(config.model)
    if not isinstance(model["members"], list):
        raise UserError(f"model.members must be a list such as [test_vit], got {model['members']}")
    return parse_members(with_trained(config, model["members"]), model.get("known"), at_least)


def with_trained(config: DictConfig, entries: list[Any]) -> list[Any]:
    """Members with the names of trained models, such as digits/vit_ti@seed1 or digits/vit_ti@*,
    replaced by what the store notes of them."""
    dataset = config.dataset.name
    found: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and entry.startswith(f"{dataset}/"):
            store = Store(resolved(config.store)["dir"])
            found += trained_members(store, dataset, entry.removeprefix(f"{dataset}/"))
        else:
            found.append(entry)
    return found


def build_member(config: DictConfig, entry: Any) -> Member:
    """A model beside the members, named as one of them."""
    if OmegaConf.is_config(entry):
        entry = OmegaConf.to_container(entry, resolve=True)
    return parse_members([entry], resolved(config.model).get("known"), at_least=1)[0]


def build_training(
    config: DictConfig, setting: Setting, members: list[Member], display: Display
) -> Training | None:
    """How members without weights get them; None where all bring their own."""
    task = setting.task
    if all(member.checkpoint or member.uses_published(task) for member in members):
        return None
    recipe = Recipe(**resolved(config.recipe))
    return Training(setting, training_images(config, display), recipe)


def training_images(config: DictConfig, display: Display) -> Images:
    """What models are trained on; with `dataset.on_error=skip` without what cannot be read."""
    images: Images = instantiate(config.dataset.train_images)
    if config.dataset.get("on_error") == "skip":
        bad = check(images, range(len(images.ids)), "training images", display)
        kept = tuple(i for i, image in enumerate(images.ids) if image not in bad)
        images = Part(images, kept) if bad else images
    return images


def build_jobs(
    config: DictConfig,
    context: Any,
    display: Display,
    preload: Sequence[str] = PRELOAD,
    members: int | None = None,
) -> Jobs:
    """Processes for the work, which find `preload` imported; no more than `members`, if given."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and not on_cpu(config):
        take_gpu(Path(config.store.dir).expanduser().resolve())
    whole(config.threads, "threads")
    number, split = workers(config), devices(config)
    return Jobs(
        context,
        number if members is None or split > 1 else min(number, members),
        config.threads,
        display,
        preload,
        devices=split,
        gpus=not on_cpu(config),
    )


def workers(config: DictConfig) -> int:
    """As many as the config says, by default one a CPU core, or one a GPU."""
    number, split = config.workers, devices(config)
    if split > 1:
        if number not in ("auto", 1, split):
            raise UserError(
                f"workers={number} does not go with trainer.devices={split}, which is as many "
                "workers, one a device: leave workers=auto"
            )
        return split
    if number == "auto":
        number = len(os.sched_getaffinity(0)) if on_cpu(config) else 1
    whole(number, "workers")
    return number


def devices(config: DictConfig) -> int:
    """Over how many devices each member's work is split."""
    number = config.trainer.devices
    if number == "auto":
        return 1 if on_cpu(config) else torch.cuda.device_count()
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"trainer.devices must be auto or a whole number, got {number!r}")
    if not on_cpu(config) and number > torch.cuda.device_count():
        raise UserError(
            f"trainer.devices={number}, but this machine shows {torch.cuda.device_count()} GPU(s)"
        )
    return number


def run_info(
    config: DictConfig, setting: Setting, members: int, names: Sequence[str] = ()
) -> RunInfo:
    """Group by experiment and dataset, so that a dashboard over many runs compares like.

    Jobs of one sweep have a group of their own. Of few members the run is named by their `names`.
    """
    experiment, dataset = config.experiment.name, config.dataset.name
    attack, hydra = setting.attack.name, HydraConfig.get()
    group = f"{experiment}-{dataset}"
    if hydra.mode == RunMode.MULTIRUN:
        group += f"-{Path(hydra.sweep.dir).name}"
    what = ", ".join(names) if len(names) == 1 else f"{members}-models"
    values = resolved(config)
    return RunInfo(
        folder=run_folder(),
        config=values,
        group=group,
        job_type=experiment,
        name=f"{dataset}-{what}-{attack}",
        tags=(experiment, dataset, setting.subset.name, attack),
        note=setting.store.root / ".runs" / f"{digest(values)[:16]}.json",
    )


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*/\s*[\d.]+\s*", value) is not None


def whole(value: Any, name: str) -> int:
    """A value that must be a whole number of 1 or more. Raises UserError that names its key."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number of 1 or more, got {value!r}")
    return value


def positive(value: Any, name: str) -> float:
    """A value that must be a number above 0. Raises UserError that names its key."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{name} must be above 0, got {value!r}")
    return value


def one_of(value: Any, allowed: tuple[Any, ...], name: str) -> None:
    """A value that must be one of some. Raises UserError that names its key."""
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(str, allowed))}, got {value!r}")
