"""From a composed config to an open run; a user's mistake is one line of error here.

Every command that measures opens its run by `opened`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments.cli import sequential
from experiments.cli.devices import build_runner, on_cpu, processes
from experiments.cli.finish import Suspects, described, finish, print_notes, terminal
from experiments.cli.members import build_members, build_training
from experiments.cli.runs import open_store, run_info, tracked
from experiments.cli.values import construct, may_stop, naming, naming_group, resolved
from netkin import run
from netkin.attacks import PGD, Attack, as_attack
from netkin.attacks.grid import levels
from netkin.attacks.units import fraction
from netkin.data import subset
from netkin.data.images import Images
from netkin.data.subset import Subset
from netkin.evaluation import Evaluation
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs, Section
from netkin.report.text import duration, left_out
from netkin.run import Run, Settings, Watch
from netkin.store import rates
from netkin.tracking import Tracker
from netkin.zoo.execution import Execution, check_execution
from netkin.zoo.member import Member, Task


@dataclass(frozen=True)
class Opened:
    """An open run of a command, with what it prints and writes.

    Attributes:
        config: as composed.
        run: the passes over its models, and what the store holds.
        outputs: where tables, figures and the report go.
        console: of the terminal.
        suspects: the models whose clean predictions look wrong.
    """

    config: DictConfig
    run: Run
    outputs: Outputs
    console: Console
    suspects: Suspects

    @property
    def tracker(self) -> Tracker:
        """Where metrics go."""
        return self.run.tracker

    def print_stored(self) -> None:
        """Print how much of all pairs' work the store has, and about how long the rest takes."""
        r, images = self.run, len(self.run.evaluation.subset)
        if Bars.quiet:
            return
        trained = [m for m in r.models if m.has_weights]
        clean = [m for m in trained if r.results.has(m)]
        attacked = [m for m in clean if not r.results.missing_shards(m)]
        parts = [f"clean predictions of {len(clean)}", f"attacks on {len(attacked)}"]
        if r.training is not None:
            parts.insert(0, f"weights of {len(trained)}")
        text = f"the store has {', '.join(parts)} of {len(r.models)} models; {images} images"
        if clean == r.models and not may_stop(self.config):
            rate, missing = rates(r.results.store.root), r.results.missing_sources(r.models)
            steps = getattr(r.evaluation.attack, "steps", 1)
            with suppress(KeyError):  # a rate is unknown
                seconds = sum(rate["craft"][m.name] * steps for m in clean if m not in attacked)
                seconds += sum(rate["transfer"][t] * len(left) for t, left in missing.items())
                text += f"; about {duration(seconds * images)} left" if seconds else ""
        self.console.print(text)

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
        used = sequential.answer(self.config, self.run.certainty)
        failed = [f"{f.model.name} failed: {f.reason}." for f in self.run.failures]
        notes = left_out(evaluation.subset.skipped, evaluation.images.notes)
        text, answer = described(self.config), [*answer[:1], *used, *answer[1:], *failed, *notes]
        cautions = self.suspects.sentences
        finish(self.outputs, self.console, title, question, answer, sections, text, cautions)


@contextmanager
def opened(
    config: DictConfig,
    members: Sequence[Member] | None = None,
    attack: Attack | None = None,
    sources: Sequence[str] | None = None,
    named: Sequence[str] = (),
    check_members: bool = True,
    stops: bool = False,
) -> Iterator[Opened]:
    """The run of a config, before any work, with an open tracker; see `netkin.run.open`.

    Args:
        config: as composed.
        members: instead of the config's.
        attack: instead of the config's.
        sources: names of the members that are attacked; all, unless given.
        named: the models that a dashboard names the run for, where they are few.
        check_members: whether members that are neither published nor trained here are built once.
        stops: whether the command stops at `score.half_width`; others refuse it.
    """
    if not stops:
        sequential.refuse(config)
    console = terminal()
    suspects = Suspects(config, console)
    settings = build_settings(config, console, suspects, members, attack)
    info = run_info(config, settings.evaluation, len(settings.members), named)
    settings = replace(
        settings,
        sources=sources,
        check_members=check_members,
        rule=sequential.rule(config),
        tracker=tracked(config, info),
        tell=lambda notes: print_notes(console, notes),
    )
    with run.open(settings) as open_run:
        yield Opened(config, open_run, Outputs(info.folder, open_run.tracker), console, suspects)


def build_settings(
    config: DictConfig,
    console: Console,
    watch: Watch,
    members: Sequence[Member] | None = None,
    attack: Attack | None = None,
) -> Settings:
    """What a run is opened with, without a tracker.

    Raises UserError that names the key of a value that cannot be used.
    """
    return Settings(
        build_evaluation(config, attack),
        build_members(config) if members is None else members,
        open_store(config),
        build_runner(config),
        processes(config),
        training=lambda results, display: build_training(config, results, display),
        skip_unreadable=config.dataset.get("on_error") == "skip",
        console=console,
        watch=watch,
        certain=sequential.printer(console),
    )


def build_evaluation(config: DictConfig, attack: Attack | None = None) -> Evaluation:
    """The evaluation that a config describes: images, subset, task and attack.

    Raises UserError that names the key of a value that cannot be used.
    """
    values = resolved(config)
    with naming({"precision": "transfer.precision"}):
        check_execution(Execution(values["transfer"]["precision"]), gpu=not on_cpu(config))
    attack = attack or build_attack(config)
    if values["store"]["dtype"] == "uint8" and attack.eps is not None:
        with naming({"eps": "attack.eps", "dtype": "store.dtype"}):
            levels(attack.eps)
    return Evaluation(
        *build_images(config),
        attack,
        shard_size=values["store"]["shard_size"],
        dtype=values["store"]["dtype"],
        interpolation=values["transfer"]["interpolation"],
        craft_precision=values["hardware"]["craft_precision"],
        target_precision=values["transfer"]["precision"],
    )


def build_images(config: DictConfig) -> tuple[Images, Subset, Task]:
    """The dataset's images, those that are evaluated, and the task that models are built for."""
    values = resolved(config)
    with naming_group("dataset.images", config.dataset.images):
        images = instantiate(config.dataset.images)
    return images, _subset(config, images, values), build_task(config, images.classes)


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


def _subset(config: DictConfig, images: Images, values: dict[str, Any]) -> Subset:
    chosen = values["subset"]
    if "file" in chosen:
        with naming_group("subset", config.subset):
            return subset.from_manifest(images, chosen["file"], values["dataset"]["name"])
    shuffled = chosen.get("shuffled")
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


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\s*[\d.]+\s*/\s*[\d.]+\s*", value) is not None
