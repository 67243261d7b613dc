"""What is measured for a matrix: the config's members are attacked and evaluated, as far as the
store lacks it."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from experiments.cli.members import build_members
from experiments.cli.runs import matrix_name
from experiments.cli.setting import Opened, Suspects, build_settings, text
from netkin import run
from netkin.analysis.matrix import Matrix
from netkin.comparison import attacked
from netkin.errors import UserError, and_more
from netkin.evaluation import Evaluation
from netkin.model import Model
from netkin.results import Results
from netkin.run import Incomplete, Run
from netkin.similarity import Outcomes

if TYPE_CHECKING:
    from experiments.cli.study import Study


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


def measure(o: Opened, partial: bool = False) -> Measured:
    """Do what the store lacks of an open run.

    With `partial` the outcomes are those of the members that did not fail, if there are two, and
    `Measured.failures` has the others; else a failure raises Incomplete.
    """
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
    return Measured(**vars(o), outcomes=outcomes, failures=failures)


def with_logits(s: "Study") -> tuple[Run, list[Model], Matrix]:
    """A run and models whose clean logits are stored, and a study's matrix in their order.

    With a matrix from a file the models are those of the config, all of which it must have.
    Raises UserError where logits are missing, with the command that makes them.
    """
    if s.measured is not None:
        return s.measured.run, s.measured.members, s.matrix
    file, members = matrix_name(s.config), build_members(s.config)
    absent = [member.name for member in members if member.name not in s.names]
    if absent or OmegaConf.is_missing(s.config.dataset, "root"):
        values = {"file": file, "names": and_more(s.names, 3), "absent": and_more(absent, 3)}
        raise UserError(text("logits", "absent" if absent else "file", **values))
    matrix = s.matrix.of(tuple(member.name for member in members), file)
    settings = build_settings(s.config, s.console, Suspects(s.config, s.console), members)
    with run.open(replace(settings, tracker=nullcontext(s.tracker))) as r:
        without = [m.name for m in r.models if not (m.has_weights and r.results.has(m))]
    if without:
        values = {"n": len(members), "store": r.results.store.root, "names": and_more(without, 3)}
        raise UserError(text("logits", "missing", without=len(without), **values))
    return r, r.models, matrix


def describe(evaluation: Evaluation, models: int, used: int | None = None) -> str:
    """An evaluation in words: "12 models on digits (500 images) under pgd (eps = 48/255, ...)".

    Of all the images, or of `used` ones.
    """
    images = f"{evaluation.task.dataset} ({used or len(evaluation.subset)} images)"
    return f"{models} models on {images} under {attacked(evaluation)}"
