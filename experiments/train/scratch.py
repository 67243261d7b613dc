"""One model, from the labels alone: its weights, its curves, and how well it does.

On the digits, `python train.py` trains vit_ti: see experiments/results/digits.md.
"""

import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from experiments.common import session as training
from experiments.common.members import build_members
from experiments.common.runs import training_info
from experiments.common.session import Session, train_member
from experiments.common.values import resolved
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.study import Outputs
from netkin.report.text import percent
from netkin.tracking import track
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    session = training.session(config)
    members = build_members(config, at_least=1)
    if len(members) != 1:
        raise UserError(
            f"experiment=scratch trains one model, got {len(members)}; several are a sweep: "
            f"python train.py -m model={','.join(m.name for m in members[:3])}"
        )
    member = training.to_train(session.setting, members[0])
    train_and_report(config, session, training.named(config, member))


def train_and_report(config: DictConfig, session: Session, member: Member) -> None:
    """Train a member, and write its curves and its accuracy into the run's folder."""
    console = Console(soft_wrap=True)
    info = training_info(config, session.folder, member.name)
    with track(resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            noted = train_member(session, member, bars, tracker)
        outputs = Outputs(session.folder, tracker)
        training.draw_curves(session, member, outputs)
        result = {"model": member.name, "seed": session.training.recipe.seed}
        result |= {key: noted[key] for key in ("test_accuracy", "test_images", "seconds")}
        outputs.table("result", pl.DataFrame([result]))
        tracker.metrics({"test_accuracy": noted["test_accuracy"]})
    console.print(
        f"\n{member.name}: {percent(noted['test_accuracy'])} of {noted['test_images']} test images "
        f"after {noted['seconds']:.0f} s of training.",
        highlight=False,
    )
    training.print_where(session, member, console)
