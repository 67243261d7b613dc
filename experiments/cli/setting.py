"""From a composed config to an open run; a user's mistake is one line of error here.

Every command that measures opens its run by `opened`.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments.cli.finish import described, finish, print_notes, terminal
from experiments.cli.members import build_members, build_training, member_hardware
from experiments.cli.runs import command, open_store, run_info, tracked
from experiments.cli.values import (
    construct,
    may_stop,
    naming,
    naming_group,
    refuse_stopping,
    resolved,
)
from netkin import run
from netkin.analysis.sequential import Certainty, Rule
from netkin.analysis.suspect import ORDERS, REMEDIES, Suspicion, cautions
from netkin.attacks import PGD, Attack, as_attack
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.data import subset
from netkin.data.images import Images
from netkin.data.subset import Subset
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.jobs.progress import Bars
from netkin.report.sentences import Sentences
from netkin.report.study import Outputs, Section
from netkin.report.text import left_out
from netkin.run import Processes, Run, Settings, Watch
from netkin.runner import Loader, Runner, device_of
from netkin.store.lease import lease
from netkin.tracking import Tracker
from netkin.training.weights import Hardware
from netkin.zoo.build import model_pages
from netkin.zoo.execution import Execution, check_execution
from netkin.zoo.member import Member, Task

BATCH_SIZE = 100
"""Images at once with hardware.batch_size=auto; it is halved where memory runs out."""
QUOTIENT = re.compile(r"\s*[\d.]+\s*/\s*[\d.]+\s*")
text = Sentences(Path(__file__).with_suffix(".toml"))


class Suspects:
    """Takes the members whose clean predictions look wrong; a `netkin.run.Watch`.

    Attributes:
        reasons: in words, by member.
        sentences: what is wrong with which members, and what to do, for the page.

    Raises UserError, where `on_suspect` is stop, with all of the sentences.
    """

    def __init__(self, config: DictConfig, console: Console):
        self.config, self.console = config, console
        self.reasons: dict[str, str] = {}
        self.sentences: list[str] = []

    def __call__(self, suspects: Mapping[str, Sequence[Suspicion]]) -> None:
        """Print what is wrong with each member, and what to do, or stop."""
        self.reasons = {n: "; ".join(s.finding for s in found) for n, found in suspects.items()}
        self.sentences = cautions(
            suspects, lambda found: REMEDIES.get(found.kind) or self._reordering(found.order)
        )
        if self.sentences and self.config.on_suspect == "stop":
            listed = " ".join(self.sentences)
            raise UserError(text("suspect.stop", n=len(suspects), listed=listed))
        for sentence in self.sentences:
            self.console.print(sentence)

    def _reordering(self, order: str) -> str:
        """How to get the classes into the order of a member's outputs."""
        dataset = self.config.dataset
        if "class_order" not in dataset:
            return text("suspect.fixed")
        if order in ORDERS and not (dataset.classes or dataset.labels):
            return text("suspect.order", order=order)
        return text("suspect.classes")


@dataclass(frozen=True)
class Opened:
    """An open run of a command, with what it prints and writes."""

    config: DictConfig  # as composed
    run: Run  # the passes over its models, and what the store holds
    outputs: Outputs  # where tables, figures and the report go
    console: Console
    suspects: Suspects  # the models whose clean predictions look wrong

    @property
    def tracker(self) -> Tracker:
        """Where metrics go."""
        return self.run.tracker

    def print_stored(self) -> None:
        """Print how much of the work the store has."""
        r = self.run
        trained = [m for m in r.models if m.has_weights]
        clean = [m for m in trained if r.results.has(m)]
        attacked = [m for m in clean if not r.results.missing_shards(m)]
        parts = [f"weights of {len(trained)}"] if r.training is not None else []
        parts += [f"clean predictions of {len(clean)}", f"attacks on {len(attacked)}"]
        images = len(r.evaluation.subset)
        if not Bars.quiet:
            self.console.print(
                f"the store has {', '.join(parts)} of {len(r.models)} models; {images} images"
            )

    def finish(
        self, title: str, question: str, answer: Sequence[str], sections: Sequence[Section]
    ) -> None:
        """Write report.html, print the answer, and name the files of the run.

        On the page the models that look wrong follow the verdict; they were printed after the
        clean pass. How many images a run that may stop has used is said after the verdict; the
        answer ends with the models that failed, the notes on the images, and which could not be
        read.
        """
        evaluation = self.run.evaluation
        used = images_used(self.config, self.run.certainty)
        failed = [f"{f.model.name} failed: {f.reason}." for f in self.run.failures]
        notes = left_out(evaluation.subset.skipped, evaluation.images.notes)
        answer = [*answer[:1], *used, *answer[1:], *failed, *notes]
        config, cautions = described(self.config), self.suspects.sentences
        finish(self.outputs, self.console, title, question, answer, sections, config, cautions)


@contextmanager
def opened(
    config: DictConfig,
    members: Sequence[Member] | None = None,
    attack: Attack | None = None,
    sources: Sequence[str] | None = None,
    named: Sequence[str] = (),
    complete: bool = True,
    stops: bool = False,
) -> Iterator[Opened]:
    """The run of a config, before any work, with an open tracker; see `netkin.run.open`.

    Members and attack are instead of the config's. `sources` are the names of the members that are
    attacked, `named` the models that a dashboard names the run for, where they are few. Members
    that cannot be built, or whose weights cannot be had, are errors of a `complete` run. A command
    that does not stop at `score.half_width` refuses it.
    """
    if not stops:
        refuse_stopping(config)
    rule = None
    if may_stop(config):
        score = config.score
        with naming({"half_width": "score.half_width", "share": "score.share"}):
            rule = Rule(score.half_width, score.share, score.eps_s)
    console = terminal()
    suspects = Suspects(config, console)
    settings = build_settings(config, console, suspects, members, attack)
    info = run_info(config, settings.evaluation, len(settings.members), named)
    settings = replace(
        settings,
        sources=sources,
        check_members=complete,
        complete=complete,
        rule=rule,
        tracker=tracked(config, info),
        tell=lambda notes: print_notes(console, notes),
    )
    with run.open(settings) as r:
        links = model_pages((model.member for model in r.models), r.evaluation.task)
        yield Opened(config, r, Outputs(info.folder, r.tracker, links), console, suspects)


def build_settings(
    config: DictConfig,
    console: Console,
    suspects: Watch,
    members: Sequence[Member] | None = None,
    attack: Attack | None = None,
) -> Settings:
    """What a run is opened with, without a tracker.

    Raises UserError that names the key of a value that cannot be used.
    """

    def certain(found: Certainty) -> None:
        if not Bars.quiet:
            end = "going on" if found.images < found.total else "no more images"
            console.print(
                f"{found.images} of {found.total} images: {found.share:.0%} of pairs within "
                f"{found.rule.half_width:g} nats; {'enough' if found.reached else end}"
            )

    evaluation = build_evaluation(config, attack)
    listed = build_members(config) if members is None else members
    return Settings(
        evaluation,
        listed,
        open_store(config),
        build_runner(config),
        build_processes(config),
        training=lambda results, display: build_training(config, results, display, listed),
        skip_unreadable=config.dataset.get("on_error") == "skip",
        console=console,
        watch=suspects,
        certain=certain,
    )


def build_evaluation(config: DictConfig, attack: Attack | None = None) -> Evaluation:
    """The evaluation that a config describes: images, subset, task and attack.

    Raises UserError that names the key of a value that cannot be used.
    """
    values = resolved(config)
    store, transfer = values["store"], values["transfer"]
    with naming({"precision": "transfer.precision"}):
        check_execution(Execution(transfer["precision"]), gpu=not on_cpu(config))
    attack = attack or build_attack(config)
    if store["dtype"] == "uint8" and attack.eps is not None:
        with naming({"eps": "attack.eps", "dtype": "store.dtype"}):
            levels(attack.eps)
    return Evaluation(
        *build_images(config),
        attack,
        shard_size=store["shard_size"],
        dtype=store["dtype"],
        interpolation=transfer["interpolation"],
        craft_precision=values["hardware"]["craft_precision"],
        target_precision=transfer["precision"],
    )


def build_images(config: DictConfig) -> tuple[Images, Subset, Task]:
    """The dataset's images, those that are evaluated, and the task that models are built for."""
    with naming_group("dataset.images", config.dataset.images):
        images = instantiate(config.dataset.images)
    chosen = resolved(config.subset)
    if "file" in chosen:
        with naming_group("subset", config.subset):
            some = subset.from_manifest(images, chosen["file"], config.dataset.name)
    else:
        if chosen.get("shuffled") is None:
            # The first images of a run that may stop must be a sample of all.
            chosen["shuffled"] = may_stop(config)
        some = construct(subset.draw, "subset", OmegaConf.create(chosen), images)
    return images, some, build_task(config, images.classes)


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


def build_attack(config: DictConfig, option: str | None = None) -> Attack:
    """The attack, named by its option of the group, which is the run's own unless given; its
    identity is its resolved config, with fractions as numbers."""
    with naming_group("attack", config.attack):
        values = resolved(config.attack)
        own = option or HydraConfig.get().runtime.choices["attack"]
        named = values.pop("name", None) or own
        identity = {
            key: fraction(value, key) if QUOTIENT.fullmatch(str(value)) else value
            for key, value in values.items()
        }
        attack = instantiate(config.attack)
        if isinstance(attack, PGD) and identity.get("step_size", 0) is None and not attack.momentum:
            identity["step_size"] = attack.step_size  # which null used to mean is another one
        name = attack.name if isinstance(attack, Attack) else ""
        return as_attack(attack, name or str(named), identity)


def on_cpu(config: DictConfig) -> bool:
    return device_of(config.hardware.accelerator).type == "cpu"


def _or(value: Any, auto: Any) -> Any:
    """A setting's value, or what `auto` stands for."""
    return auto if value == "auto" else value


def device_count(config: DictConfig) -> int:
    """The number of devices that each member's work is split over."""
    gpus = 0 if on_cpu(config) else torch.cuda.device_count()
    number = _or(config.hardware.devices, gpus or 1)
    if gpus and number > gpus:
        raise UserError(f"hardware.devices={number}, but this machine has {gpus} GPU(s)")
    return number


def build_processes(config: DictConfig) -> Processes:
    """The processes that work on several models: by default one a CPU core, or one on a GPU."""
    gpu, number = not on_cpu(config), config.hardware.members_at_once
    if gpu and HydraConfig.get().mode == RunMode.MULTIRUN:
        take_gpu(Path(config.store.dir).expanduser().resolve())
    devices = device_count(config)
    if devices > 1 and number not in ("auto", 1):
        raise UserError(
            f"hardware.members_at_once={number} does not go with hardware.devices={devices}: "
            "the devices share each member's work, so leave hardware.members_at_once=auto"
        )
    workers = devices if devices > 1 else _or(number, 1 if gpu else _cores())
    return Processes(workers, thread_count(config, workers), devices, gpus=gpu)


def thread_count(config: DictConfig, at_once: int) -> int:
    """torch threads of each of some processes that work at once: by default the cores over these,
    and over the jobs of a sweep that run at once on this machine."""
    hydra = HydraConfig.get()
    launcher = hydra.launcher if hydra.mode == RunMode.MULTIRUN else {}
    jobs, cores = launcher.get("n_jobs") or 1, _cores()  # joblib's
    return _or(config.hardware.threads, max(1, cores // (at_once * (jobs if jobs > 0 else cores))))


def build_runner(config: DictConfig) -> Runner:
    """Where and how models run.

    Stored shards are loaded on a CPU by the model's process, for a GPU by two others.
    """
    hardware, gpu = config.hardware, not on_cpu(config)
    execution = Execution(
        hardware.craft_precision,
        hardware.fuse,
        _or(hardware.memory_format, Execution.memory_format),
        hardware.craft_compile,
    )
    with naming({"precision": "hardware.craft_precision"}):
        check_execution(execution, gpu)
    loader = Loader(
        _or(hardware.loader_processes, 2 * gpu),
        hardware.prefetch,
        bool(_or(hardware.pin_memory, gpu)),
        _or(hardware.decode_threads, _cores() if gpu else 1),
    )
    return Runner(hardware.accelerator, _or(hardware.batch_size, BATCH_SIZE), execution, loader)


def training_hardware(config: DictConfig) -> Hardware:
    """How train.py trains a model: on all of the run's devices."""
    devices = device_count(config)
    auto = 0 if on_cpu(config) else max(1, _cores() // devices - 1)
    return replace(
        member_hardware(config),
        devices=devices,
        workers=_or(config.hardware.loader_processes, auto),
        fast_dev_run=config.fast_dev_run,
    )


def _cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


_gpu_lease = ExitStack()
_taken: list[str] = []
"""The GPU of this process, which may do several jobs of a sweep."""


def take_gpu(store: Path) -> None:
    """Reserve a GPU for this process of a sweep, on a machine with several, while it lives.

    Raises UserError where all GPUs are reserved by leases in the store.
    """
    if _taken or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    host = os.uname().nodename
    for gpu in gpus:
        if _gpu_lease.enter_context(lease(store, store / "devices" / host / gpu)):
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            _taken.append(gpu)
            return
    raise UserError(
        f"all {len(gpus)} GPUs of {host} have a job of a sweep on this store: use at most "
        f"hydra.launcher.n_jobs={len(gpus)}"
    )


def images_used(config: DictConfig, found: Certainty | None) -> list[str]:
    """How many images were used, and whether that was enough; empty for a run without a rule."""
    if found is None:
        return []
    rule, kind, more = found.rule, "reached", ""
    if not found.reached:
        kind = "missed"
        if math.isfinite(found.needed):
            more = text("used.need", needed=found.needed, half_width=found.half_width)
    elif found.images < found.total:
        kind, more = "stopped", command(f"score.half_width={rule.half_width / 2:g}")
    share = {"share": found.share, "half_width": rule.half_width, "wanted": rule.share}
    values = {"reached": text("used.share", **share), "more": more}
    sentences = [text(f"used.{kind}", images=found.images, total=found.total, **values)]
    if config.subset.get("shuffled") is False:
        sentences.append(text("used.order", "ids"))
    elif "file" in config.subset:
        sentences.append(text("used.order", "file"))
    return sentences
