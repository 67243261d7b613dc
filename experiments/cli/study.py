"""The similarity matrix that a study works on: computed from the config's members, or a file.

A study opens with `with study(config) as s:`. With `similarity=path.csv` it reads the file; else it
computes what the store lacks for the config's members, on its images, by its attack.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console

from experiments.cli import sat69
from experiments.cli.finish import described, finish, terminal
from experiments.cli.runs import file_info, tracked
from experiments.cli.sat69 import Published
from experiments.cli.values import refuse_stopping
from netkin import similarity
from netkin.analysis import matrix
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.errors import UserError, near
from netkin.report.study import Outputs, Section
from netkin.tracking import Tracker

if TYPE_CHECKING:  # a file of scores is read without torch and timm
    from experiments.cli.measured import Measured
    from netkin.attacks import Attack
    from netkin.zoo.member import Member


@dataclass(frozen=True)
class Study:
    """A matrix and all that a study of it needs.

    The scores are smoothed (`netkin.similarity.smoothed`) where they were measured, else as they
    are in the file.
    """

    config: DictConfig  # as composed
    matrix: Matrix  # names and scores of N models
    measured: "Measured | None"  # None where the matrix comes from a file
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

    @cached_property
    def families(self) -> list[str]:
        """The N models' families; of a name in a file, the module of timm that has it."""
        if self.measured is not None:
            return [model.family for model in self.measured.members]
        from netkin.zoo.families import timm_family

        return list(map(timm_family, self.names))

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
        if self.published is None and "timm" in sys.modules:  # which takes seconds to import
            from netkin.zoo.sources import model_page

            pages = {name: model_page(name) for name in self.names}
            self.outputs.links = {name: page for name, page in pages.items() if page}
        text, answer = described(self.config), [*answer, *self.notes]
        finish(self.outputs, self.console, title, question, answer, sections, text)


@contextmanager
def study(
    config: DictConfig, attack: "Attack | None" = None, members: "list[Member] | None" = None
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
        check_file("similarity", str(file))
        given = matrix.read(file, bool(config.symmetrise))
        notes, whose = predicted(Path(file).expanduser(), given), f"models of {Path(file).name}"
    else:
        given, published = sat69.load(config)
        whose = "ImageNet models that the paper's authors published"
    info, number = file_info(config, len(given.names)), len(given.names)
    with tracked(config, info) as tracker:
        yield Study(
            config,
            given,
            None,
            Outputs(info.folder, tracker, {} if published is None else published.pages),
            tracker,
            terminal(),
            f"the {number} {whose}",
            published,
            notes,
        )


def check_file(key: str, file: str) -> None:
    """Raises UserError, with near names, where a file of scores is not there."""
    path = Path(file).expanduser()
    if not path.exists():
        beside = [other.name for other in path.parent.glob("*.csv")]
        hint = near(path.name, ["sat69", *beside])
        raise UserError(f"{key}={file}: there is no such file of scores{hint}")


@contextmanager
def measured(
    config: DictConfig,
    attack: "Attack | None" = None,
    partial: bool = False,
    members: "list[Member] | None" = None,
) -> Iterator[Study]:
    """`study` without a file: the measured matrix of the config's members.

    With `partial` it is that of the members that did not fail: `experiments.cli.measured.measure`.
    """
    from experiments.cli.measured import describe, measure
    from experiments.cli.setting import opened
    from netkin.report import beside

    with opened(config, members, attack, stops=True) as o:
        found = measure(o, partial)
        beside.prepare()
        outcomes, evaluation = found.outcomes, found.evaluation
        yield Study(
            config,
            Matrix(outcomes.members, similarity.smoothed_matrix(outcomes)),
            found,
            o.outputs,
            o.tracker,
            o.console,
            describe(evaluation, len(found.members), len(outcomes.image_ids)),
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
