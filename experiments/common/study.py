"""The similarity matrix that a study works on: measured as `studies.pairwise` does, or a file.

A study opens with `with study(config) as s:`. With `similarity=path.csv` nothing is measured; else
the members of the config are, on its images, by its attack, and only what the store lacks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import timm
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from timm.models import split_model_name_tag
from timm.models._registry import get_deprecated_models

from experiments.common import setting as setup
from netkin import pipeline, similarity
from netkin.analysis import matrix
from netkin.analysis.matrix import Matrix
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.page import fraction_text
from netkin.report.study import Outputs, Section
from netkin.similarity import Outcomes
from netkin.tracking import RunInfo, Tracker, track
from netkin.transfer.setting import AttackSpec, Setting
from netkin.transfer.stored import is_clean
from netkin.zoo.execution import DEFAULT_PRECISION
from netkin.zoo.member import Member

MEASURING = (
    *("dataset", "subset", "model", "recipe", "attack", "store", "transfer", "score"),
    *("accelerator", "trainer", "workers", "threads", "loader"),
    *("batch_size", "precision", "memory_format", "fuse", "compile"),
)
"""Keys that say nothing of a study whose matrix comes from a file."""


@dataclass(frozen=True)
class Measured:
    """What a measured matrix was made of; its models are the members, in the same order."""

    setting: Setting
    members: list[Member]
    outcomes: Outcomes


@dataclass(frozen=True)
class Study:
    """What a study starts from.

    Attributes:
        config: as composed.
        matrix: names and scores of N models.
        families: [N], timm's module where nothing else is known of a model.
        measured: None where the matrix comes from a file.
        outputs: where tables, figures and the report go.
        tracker: where metrics go.
        console: where a person reads.
        source: where the matrix comes from, in words: "12 models on digits under pgd (...)".
    """

    config: DictConfig
    matrix: Matrix
    families: list[str]
    measured: Measured | None
    outputs: Outputs
    tracker: Tracker
    console: Console
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.matrix.names

    @property
    def scores(self) -> NDArray:
        """[N, N], symmetric, in nats."""
        return self.matrix.scores

    def draws(self) -> NDArray | None:
        """Bootstrap matrices [draws, N, N], images shared by all pairs; None for a file."""
        if self.measured is None:
            return None
        score = self.config.score
        return similarity.bootstrap(self.measured.outcomes, score.bootstrap, eps_s=score.eps_s)

    def finish(
        self, title: str, question: str, answer: Sequence[str], sections: Sequence[Section]
    ) -> None:
        """Write report.html, and tell the answer and where everything lies."""
        report = self.outputs.report(title, question, answer, sections, described(self.config))
        for paragraph in answer:
            self.console.print(f"\n{paragraph}", highlight=False, markup=False)
        self.console.print(f"\nReport   {report}", highlight=False, markup=False)
        folder, files = self.outputs.folder, self.outputs.files
        for kind, suffix in (("Tables", ".csv"), ("Figures", ".png")):
            if names := sorted(file for file in files if file.endswith(suffix)):
                text = f"{kind:<8} {folder}/{', '.join(names)}"
                self.console.print(text, highlight=False, markup=False)


@contextmanager
def study(config: DictConfig, attack: AttackSpec | None = None) -> Iterator[Study]:
    """The matrix of a config, measured or read, for the time of a study.

    Reads the keys `similarity` (a path, or null) and `symmetrise`, which the config must have.
    Measures by the config's attack, unless another is given.
    """
    console = Console(soft_wrap=True)
    if config.similarity is not None:
        found = matrix.read(config.similarity, bool(config.symmetrise))
        info = file_info(config, len(found.names))
        with track(setup.resolved(config.logger), info) as tracker:
            families = [family(name) for name in found.names]
            source = f"the {len(found.names)} models of {Path(config.similarity).name}"
            outputs = Outputs(info.folder, tracker)
            yield Study(config, found, families, None, outputs, tracker, console, source)
        return
    setting = setup.build_setting(config)
    if attack is not None:
        setting = replace(setting, attack=attack)
    members = setup.build_members(config)
    info = setup.run_info(config, setting, len(members))
    with track(setup.resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            setting, outcomes = measure(config, setting, members, tracker, bars)
        scores = similarity.matrix(outcomes, config.score.eps_s)
        found = matrix.checked(Matrix(outcomes.members, scores), "the measured matrix")
        yield Study(
            config,
            found,
            [member.family for member in members],
            Measured(setting, members, outcomes),
            Outputs(info.folder, tracker),
            tracker,
            console,
            said(setting, len(members)),
        )


def with_logits(s: Study) -> tuple[Setting, list[Member], Matrix]:
    """The members' setting, whose clean logits are stored, and the matrix in their order.

    With a matrix from a file the members are those of the config, all of which it must have.
    Raises UserError where logits are missing, with the command that makes them.
    """
    if s.measured is not None:
        return s.measured.setting, s.measured.members, s.matrix
    setting = setup.build_setting(s.config)
    members = setup.build_members(s.config)
    found = s.matrix.of(tuple(member.name for member in members), str(s.config.similarity))
    with Bars(s.console) as bars:
        setting = setup.prepare(s.config, setting, members, bars)
    without = [member.name for member in members if not _has_logits(setting, member)]
    if without:
        raise UserError(
            f"{len(without)} of {len(members)} models have no clean logits in {setting.store.root} "
            f"for these images ({', '.join(without[:3])}{' ...' if len(without) > 3 else ''}); "
            "`python evaluate.py experiment=pairwise` with the same dataset, subset and model "
            "makes them"
        )
    return setting, members, found


def _has_logits(setting: Setting, member: Member) -> bool:
    return setting.has_weights(member) and is_clean(setting, member)


def measure(
    config: DictConfig, setting: Setting, members: list[Member], tracker: Tracker, bars: Bars
) -> tuple[Setting, Outcomes]:
    """Outcomes of all members, computed where the store lacks them, and the setting as prepared
    (with the files of published weights, less unreadable images)."""
    setup.check_sources(setting, members, members)
    setting = setup.prepare(config, setting, members, bars)
    return setting, measure_prepared(config, setting, members, tracker, bars)


def measure_prepared(
    config: DictConfig,
    setting: Setting,
    members: list[Member],
    tracker: Tracker,
    bars: Bars,
    sources: list[Member] | None = None,
) -> Outcomes:
    """`measure` for a setting that has been prepared; only `sources` are attacked, if given."""
    training = setup.build_training(config, setting, members, bars)
    with setup.build_jobs(config, (setting, training), bars) as jobs:
        return pipeline.measure(setting, members, training, jobs, tracker, sources)


def said(setting: Setting, models: int) -> str:
    """A setting in words: "12 models on digits (500 images) under pgd (eps = 48/255, ...)"."""
    images = f"{setting.task.dataset} ({len(setting.subset)} images)"
    return f"{models} models on {images} under {attacked(setting)}"


def attacked(setting: Setting) -> str:
    """An attack with its settings in words: "pgd (eps = 48/255, steps = 50)"."""
    settings = [
        f"{key} = {fraction_text(value) if isinstance(value, float) else value}"
        for key, value in setting.attack.identity.items()
        if not key.startswith("_")
    ]
    precision = setting.choice.execution.precision
    if precision != DEFAULT_PRECISION:
        settings.append(f"computed in {precision}")
    words = f" ({', '.join(settings)})" if settings else ""
    return setting.attack.name + words


def family(name: str) -> str:
    """The group of architectures that a name counts to: timm's module, or "unknown"."""
    architecture, _ = split_model_name_tag(get_deprecated_models().get(name) or name)
    if not timm.is_model(architecture):
        return "unknown"
    return timm.model_entrypoint(architecture).__module__.split(".")[-1]


def file_info(config: DictConfig, models: int) -> RunInfo:
    """What a dashboard sorts a run by whose matrix comes from a file."""
    experiment, stem = config.experiment.name, Path(config.similarity).stem
    return RunInfo(
        folder=setup.run_folder(),
        config=OmegaConf.to_container(_used(config), resolve=True),  # type: ignore[arg-type]
        group=f"{experiment}-{stem}",
        job_type=experiment,
        name=f"{stem}-{models}-models",
        tags=(experiment, stem),
    )


def described(config: DictConfig) -> str:
    """The config as YAML, resolved, less what was not used."""
    return OmegaConf.to_yaml(_used(config), resolve=True)


def _used(config: DictConfig) -> DictConfig:
    if config.similarity is None:
        return config
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in MEASURING])
