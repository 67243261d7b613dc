"""Adversarial images of some members: the part of a large job that spreads over machines.

    python evaluate.py experiment=craft source=[vit_s,vit_ti]               one after another
    python evaluate.py -m experiment=craft 'source=glob(*)'                 a job each, by Hydra
      hydra/launcher=joblib hydra.launcher.n_jobs=8                           on this machine
      hydra/launcher=slurm hydra.launcher.partition=gpu                       on a cluster

Members that lack weights or clean predictions get them first. All jobs share the store; afterwards
`experiment=pairwise` finds the images there and does the rest.
"""

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from experiments.common.devices import build_jobs
from experiments.common.members import build_members, build_training
from experiments.common.runs import run_info
from experiments.common.setting import build_setting, prepare
from experiments.common.suspects import Suspects
from experiments.common.values import resolved
from netkin.errors import UserError, and_more, near
from netkin.jobs.progress import Bars
from netkin.pipeline import Incomplete, Pipeline
from netkin.tracking import track
from netkin.transfer.stored import correct
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    setting = build_setting(config)
    sources = chosen(build_members(config, at_least=1), config.source)
    info = run_info(config, setting, len(sources), [source.name for source in sources])
    console = Console(soft_wrap=True)
    with track(resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            setting = prepare(config, setting, sources, bars)
            training = build_training(config, setting, sources, bars)
            context = (setting, training)
            with build_jobs(config, context, bars, members=len(sources)) as jobs:
                watch = Suspects(config, console)
                pipeline = Pipeline(setting, training, jobs, tracker, watch)
                well = pipeline.craft(pipeline.clean(sources))
        for source in well:
            console.print(
                f"{source.name}: {int(correct(setting, source).sum())} adversarial images in "
                f"{setting.adversarial_entry(source).path}",
                highlight=False,
            )
        if pipeline.failures:
            raise Incomplete(pipeline.failures, None, len(sources))


def chosen(members: list[Member], names: str | ListConfig) -> list[Member]:
    """The members of some names, or all. Raises UserError for a name that no member has."""
    wanted = [str(name) for name in (names if isinstance(names, ListConfig) else [names])]
    known = {member.name: member for member in members}
    for name in wanted:
        if name not in known:
            raise UserError(
                f"source={name} is none of model.members{near(name, known)} (they are "
                f"{and_more(known, 20)})"
            )
    return [known[name] for name in wanted] or members
