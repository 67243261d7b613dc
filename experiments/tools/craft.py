"""Craft the adversarial images of some members: the part of a large job to spread over machines.

    python evaluate.py experiment=craft source=[vit_s,vit_ti]               one after another
    python evaluate.py -m experiment=craft 'source=glob(*)'                 a job each, by Hydra
      hydra/launcher=joblib hydra.launcher.n_jobs=8                           on this machine
      hydra/launcher=slurm hydra.launcher.partition=gpu                       on a cluster

Weights and clean predictions that are missing are made first. All jobs share the store; afterwards
`experiment=pairwise` reads the images from it and does the rest.
"""

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from experiments.cli.finish import terminal
from experiments.cli.members import build_members
from experiments.cli.runs import run_info, tracked
from experiments.cli.setting import build_setting, open_pipeline, prepare
from experiments.cli.suspects import Suspects
from netkin.errors import UserError, and_more, near
from netkin.jobs.progress import Bars
from netkin.passes.stored import correct
from netkin.pipeline import Incomplete
from netkin.store.layout import shard_path
from netkin.zoo.member import Member


def run(config: DictConfig) -> list[Path]:
    """The study, from a composed config; returns the files with the adversarial images."""
    setting = build_setting(config)
    sources = sources_of(build_members(config, at_least=1), config.source)
    info = run_info(config, setting, len(sources), [source.name for source in sources])
    console = terminal()
    with tracked(config, info) as tracker:
        with Bars(console) as bars:
            setting = prepare(config, setting, sources, bars)
            suspects, most = Suspects(config, console), len(sources)
            with open_pipeline(config, setting, sources, tracker, bars, suspects, most) as pipeline:
                crafted = pipeline.craft(pipeline.clean(sources))
        for source in crafted:
            console.print(
                f"{source.name}: {int(correct(setting, source).sum())} adversarial images in "
                f"{setting.adversarial_entry(source).path}",
            )
        if pipeline.failures:
            first = pipeline.failures[0].error
            if len(sources) == 1 and isinstance(first, UserError):
                raise first
            raise Incomplete(pipeline.failures, None, len(sources))
    return [
        shard_path(setting.adversarial_entry(source), shard)
        for source in crafted
        for shard in range(len(setting.shards))
    ]


def sources_of(members: list[Member], names: str | ListConfig) -> list[Member]:
    """The members with some names; all, if none is given. Raises UserError for an unknown name."""
    chosen = [str(name) for name in (names if isinstance(names, ListConfig) else [names])]
    known = {member.name: member for member in members}
    for name in chosen:
        if name not in known:
            raise UserError(
                f"source={name} is not in model.members{near(name, known)} (they are "
                f"{and_more(known, 20)})"
            )
    return [known[name] for name in chosen] or members
