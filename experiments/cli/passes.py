"""A run of some passes whose study needs no full matrix: novel, probe, eps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from omegaconf import DictConfig
from rich.console import Console

from experiments.cli.finish import finish, print_notes, terminal
from experiments.cli.runs import run_info, tracked
from experiments.cli.setting import open_pipeline, prepare
from experiments.cli.study import Study, described
from experiments.cli.suspects import Suspects
from netkin.analysis.summary import left_out
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.passes.setting import Setting
from netkin.pipeline import Failure, Incomplete, Pipeline
from netkin.report.study import Outputs, Section
from netkin.tracking import Tracker
from netkin.zoo.member import Member


@dataclass
class Passes:
    """An open run.

    Attributes:
        config: as composed.
        setting: images, attack and store; prepared once `passes` is entered.
        members: all models of the run.
        outputs, tracker, console: where tables, metrics and sentences go.
        suspects: the members whose clean predictions look wrong.
        failures: of members, of which `opened` raises Incomplete at its end.
    """

    config: DictConfig
    setting: Setting
    members: list[Member]
    outputs: Outputs
    tracker: Tracker
    console: Console
    suspects: Suspects
    failures: list[Failure] = field(default_factory=list)

    @contextmanager
    def passes(self) -> Iterator[tuple[Pipeline, Bars]]:
        """The passes over all members, with a display of their progress."""
        with Bars(self.console) as bars:
            setting = prepare(self.config, self.setting, self.members, bars)
            self.setting, arguments = setting, (self.members, self.tracker, bars, self.suspects)
            with open_pipeline(self.config, setting, *arguments) as pipeline:
                yield pipeline, bars
            self.failures += pipeline.failures

    def finish(
        self, title: str, question: str, answer: Sequence[str], sections: Sequence[Section]
    ) -> None:
        """Write report.html and print the answer, with the members that failed, and notes."""
        answer = [
            *answer,
            *(f"{f.member.name} failed: {f.reason}." for f in self.failures),
            *left_out(self.setting.subset.skipped, self.setting.images.notes),
        ]
        page = self.outputs, self.console, title, question, answer, sections
        finish(*page, described(self.config), self.suspects.sentences)


@contextmanager
def opened(
    config: DictConfig, setting: Setting, members: list[Member], names: Sequence[str] = ()
) -> Iterator[Passes]:
    """An open run of some members; raises Incomplete at its end where some failed.

    Args:
        config: as composed.
        setting: of `build_setting`.
        members: all models of the run.
        names: of those that the run is named by on a dashboard, if these are few.
    """
    console = terminal()
    print_notes(console, setting.images.notes)
    info = run_info(config, setting, len(members), names)
    with tracked(config, info) as tracker:
        outputs, suspects = Outputs(info.folder, tracker), Suspects(config, console)
        r = Passes(config, setting, members, outputs, tracker, console, suspects)
        yield r
    if r.failures:
        raise Incomplete(r.failures, None, len(members))


def clean_logits(s: Study, setting: Setting, members: list[Member]) -> Setting:
    """The setting with the weights of further members, whose clean logits are computed where the
    store lacks them. Raises UserError where a member failed."""
    if not members:
        return setting
    with Bars(s.console) as bars:
        prepared = prepare(s.config, setting, members, bars)
        suspects = Suspects(s.config, s.console)
        with open_pipeline(s.config, prepared, members, s.tracker, bars, suspects) as pipeline:
            pipeline.clean(members)
    for failure in pipeline.failures:
        raise UserError(f"{failure.member.name} failed in {failure.stage}: {failure.reason}")
    return replace(prepared, published={**setting.published, **prepared.published})
