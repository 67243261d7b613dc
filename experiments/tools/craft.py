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

from experiments.cli.members import build_members
from experiments.cli.setting import opened
from netkin.errors import check_known
from netkin.store.layout import shard_file
from netkin.zoo.member import Member


def run(config: DictConfig) -> list[Path]:
    """The study, from a composed config; returns the files with the adversarial images."""
    sources = sources_of(build_members(config, at_least=1), config.source)
    with opened(config, sources, named=[source.name for source in sources]) as o:
        with o.run.working():
            crafted = o.run.craft(o.run.clean())
        results = o.run.results
        for source in crafted:
            o.console.print(
                f"{source.name}: {int(results.correct(source).sum())} adversarial images in "
                f"{results.adversarial_folder(source).path}",
            )
        if len(sources) == 1 and o.run.failures:
            raise o.run.failures[0].error
        o.run.raise_failures()
    return [
        shard_file(results.adversarial_folder(source), shard)
        for source in crafted
        for shard in range(len(results.evaluation.shards))
    ]


def sources_of(members: list[Member], names: str | ListConfig) -> list[Member]:
    """The members with some names; all, if none is given. Raises UserError for an unknown name."""
    chosen = [str(name) for name in (names if isinstance(names, ListConfig) else [names])]
    known = {member.name: member for member in members}
    for name in chosen:
        check_known(name, known, f"source={name} is not in model.members")
    return [known[name] for name in chosen] or members
