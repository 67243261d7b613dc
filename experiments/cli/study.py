"""The similarity matrix that a study works on: computed from the config's members, or a file.

A study opens with `with study(config) as s:`. With `similarity=path.csv` it reads the file; else it
computes what the store lacks for the config's members, on its images, by its attack.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import timm
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from timm.models import split_model_name_tag
from timm.models._registry import get_deprecated_models

from experiments.cli import sat69
from experiments.cli.finish import Suspects, described, finish, terminal
from experiments.cli.members import build_members
from experiments.cli.runs import file_info, matrix_name, tracked
from experiments.cli.sat69 import Published
from experiments.cli.setting import Opened, build_settings, opened, refuse_stopping
from netkin import run, similarity
from netkin.analysis import matrix
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.attacks import Attack
from netkin.comparison import attacked
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.model import Model
from netkin.report.study import Outputs, Section
from netkin.report.text import and_more
from netkin.results import Results
from netkin.run import Incomplete, Run
from netkin.similarity import Outcomes
from netkin.tracking import Tracker
from netkin.zoo.member import Member
from netkin.zoo.sources import model_page


@dataclass(frozen=True)
class Measured(Opened):
    """The open run that a matrix was computed by."""

    outcomes: Outcomes  # of the models that did not fail
    failures: Incomplete | None = None  # of the others

    @property
    def results(self) -> Results:
        """What the store holds of the images under the attack."""
        return self.run.results

    @property
    def evaluation(self) -> Evaluation:
        """Images, task and attack, without unreadable images."""
        return self.run.evaluation

    @property
    def members(self) -> list[Model]:
        """The models of the matrix, in the same order."""
        return [model for model in self.run.models if model.name in self.outcomes.members]


@dataclass(frozen=True)
class Study:
    """A matrix and all that a study of it needs.

    The scores are smoothed (`netkin.similarity.smoothed`) where they were measured, else as they
    are in the file.
    """

    config: DictConfig  # as composed
    matrix: Matrix  # names and scores of N models
    families: list[str]  # [N], of a model without a family the module of timm that has it
    measured: Measured | None  # None where the matrix comes from a file
    outputs: Outputs  # where tables, figures and the report go
    tracker: Tracker
    console: Console
    source: str  # of the matrix, in words: "12 models on digits under pgd (...)"
    published: Published | None = None  # of the models of similarity=sat69
    notes: tuple[str, ...] = ()  # on the scores of a file; they end the answer

    @property
    def names(self) -> tuple[str, ...]:
        """The N models, in the matrix's order."""
        return self.matrix.names

    @property
    def scores(self) -> NDArray:
        """[N, N], symmetric, in nats."""
        return self.matrix.scores

    @property
    def accuracy(self) -> list[float | None]:
        """[N], of the clean images in [0, 1], as measured or published; empty where unknown."""
        if self.measured is not None:
            return self.measured.outcomes.correct.mean(axis=1).tolist()
        return [] if self.published is None else self.published.accuracy.tolist()

    def draws(self, most: int | None = None) -> NDArray | None:
        """Bootstrap matrices [draws, N, N], images shared by all pairs, at most so many; None for a
        file. For N = 1,000 a hundred of them take 0.8 GB: `netkin.analysis.groups` has means over
        pairs without them."""
        if self.measured is None:
            return None
        number = self.config.score.bootstrap
        return similarity.bootstrap(self.measured.outcomes, min(number, most or number))

    def finish(
        self, title: str, question: str, answer: Sequence[str], sections: Sequence[Section]
    ) -> None:
        """Write report.html, print the answer, and name the files of the run."""
        if self.measured is not None:
            self.measured.finish(title, question, answer, sections)
            return
        text, answer = described(self.config), [*answer, *self.notes]
        finish(self.outputs, self.console, title, question, answer, sections, text)


@contextmanager
def study(
    config: DictConfig, attack: Attack | None = None, members: list[Member] | None = None
) -> Iterator[Study]:
    """The matrix of a config, read from the file `similarity` or computed, with an open tracker.

    An attack or members that are given are instead of the config's. Raises Incomplete where a
    member failed.
    """
    if config.get("similarity") is None:
        with measured(config, attack, members=members) as s:
            matrix.checked(s.matrix, "the measured matrix")
            yield s
        return
    refuse_stopping(config)
    published, notes = None, ()
    if file := config.similarity.get("file"):
        given = matrix.read(file, bool(config.symmetrise))
        notes, whose = predicted(Path(file).expanduser(), given), f"models of {Path(file).name}"
    else:
        given, published = sat69.load(config)
        whose = "ImageNet models that the paper's authors published"
    info, number = file_info(config, len(given.names)), len(given.names)
    tags = given.names if published is None else published.timm
    pages = {name: model_page(tag) for name, tag in zip(given.names, tags, strict=True)}
    with tracked(config, info) as tracker:
        yield Study(
            config,
            given,
            [family(name) for name in given.names],
            None,
            Outputs(info.folder, tracker, {name: page for name, page in pages.items() if page}),
            tracker,
            terminal(),
            f"the {number} {whose}",
            published,
            notes,
        )


@contextmanager
def measured(
    config: DictConfig,
    attack: Attack | None = None,
    partial: bool = False,
    members: list[Member] | None = None,
) -> Iterator[Study]:
    """`study` without a file: the measured matrix of the config's members.

    With `partial` the matrix is that of the members that did not fail, if there are two, and
    `Measured.failures` has the others; else a failure raises Incomplete.
    """
    with opened(config, members, attack, stops=True) as o:
        failures = None
        o.print_stored()
        try:
            outcomes = o.run.measure()
        except Incomplete as error:
            if not partial or error.outcomes is None:
                raise
            outcomes, failures = error.outcomes, error
        if certainty := o.run.certainty:
            o.tracker.summary({"images_used": certainty.images, "share_reached": certainty.share})
        found = Measured(**vars(o), outcomes=outcomes, failures=failures)
        yield Study(
            config,
            Matrix(outcomes.members, similarity.smoothed_matrix(outcomes)),
            [model.family for model in found.members],
            found,
            o.outputs,
            o.tracker,
            o.console,
            describe(o.run.evaluation, len(found.members), len(outcomes.image_ids)),
        )


def predicted(file: Path, scores: Matrix) -> tuple[str, ...]:
    """A sentence on how many scores of a file are predicted: of the similarity.csv that
    `experiment=landmarks` writes, by the measured.csv beside it."""
    beside = file.with_name("measured.csv")
    if file.name != "similarity.csv" or not beside.is_file():
        return ()
    try:
        measured = off_diagonal(matrix.read(beside).of(scores.names).scores)
    except UserError:  # another command's file, or all scores are measured
        return ()
    return (
        f"{int((measured == 0).sum()):,} of {len(measured):,} scores are predicted, not measured "
        f"({beside.name}), by experiment=landmarks.",
    )


def with_logits(s: Study) -> tuple[Run, list[Model], Matrix]:
    """A run and models whose clean logits are stored, and a study's matrix in their order.

    With a matrix from a file the models are those of the config, all of which it must have.
    Raises UserError where logits are missing, with the command that makes them.
    """
    if s.measured is not None:
        return s.measured.run, s.measured.members, s.matrix
    file, members = matrix_name(s.config), build_members(s.config)
    absent = [member.name for member in members if member.name not in s.names]
    if absent or OmegaConf.is_missing(s.config.dataset, "root"):
        others = f"; not in the matrix ({and_more(s.names, 3)}): {and_more(absent, 3)}"
        raise UserError(
            f"this study needs the models' logits on images, and {file} has scores alone, which "
            "are enough for experiment=select, clusters, importance, within, teachers and "
            "relatives: name the images with dataset.root=FOLDER, and models of the matrix with "
            f"model.members{others if absent else ''}"
        )
    matrix = s.matrix.of(tuple(member.name for member in members), file)
    settings = build_settings(s.config, s.console, Suspects(s.config, s.console), members)
    with run.open(replace(settings, tracker=nullcontext(s.tracker))) as r:
        without = [m.name for m in r.models if not (m.has_weights and r.results.has(m))]
    if without:
        raise UserError(
            f"{len(without)} of {len(members)} models have no clean logits in "
            f"{r.results.store.root} for these images ({and_more(without, 3)}); "
            "`python evaluate.py experiment=pairwise` with the same dataset, subset and model "
            "computes them"
        )
    return r, r.models, matrix


def describe(evaluation: Evaluation, models: int, used: int | None = None) -> str:
    """An evaluation in words: "12 models on digits (500 images) under pgd (eps = 48/255, ...)".

    Of all the images, or of `used` ones.
    """
    images = f"{evaluation.task.dataset} ({used or len(evaluation.subset)} images)"
    return f"{models} models on {images} under {attacked(evaluation)}"


def family(name: str) -> str:
    """The architecture family of a name: its module in timm, or "unknown"."""
    architecture, _ = split_model_name_tag(get_deprecated_models().get(name) or name)
    if not timm.is_model(architecture):
        return "unknown"
    return timm.model_entrypoint(architecture).__module__.split(".")[-1]
