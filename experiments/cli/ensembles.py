"""Ensembles of a study's members, and of variants of one model, from stored logits."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.cli.keys import naming
from experiments.cli.members import with_trained
from experiments.cli.setting import open_pipeline, prepare
from experiments.cli.study import Study
from experiments.cli.suspects import Suspects
from netkin.analysis.ensemble import ensembles_correct
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.passes.setting import Setting
from netkin.passes.stored import logits_by_block
from netkin.zoo.member import Member, parse_members


def ensembles_wrong(
    s: Study, setting: Setting, members: list[Member], groups: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Which images each of G ensembles misclassifies, [G, I], with a progress bar.

    Args:
        s: the study, whose console shows the progress.
        setting, members: of `experiments.cli.study.with_logits`.
        groups: G ensembles, each the positions of its members.
    """
    with Bars(s.console) as bars, logits_by_block(setting, members) as read:
        bars.start("ensemble", ["images"], len(setting.subset))
        correct = ensembles_correct(
            read,
            setting.labels.numpy(),
            groups,
            len(os.sched_getaffinity(0)),
            lambda images: bars.advance("ensemble", images),
        )
        bars.end("ensemble")
    return ~correct


def build_variants(config: DictConfig, taken: Sequence[str]) -> dict[str, list[Member]]:
    """The members of `ensemble.variants`, by the name of their group.

    Args:
        config: as composed.
        taken: names of the other groups.
    """
    chosen = config.ensemble.variants
    if chosen is None:
        return {}
    if not isinstance(chosen, DictConfig):
        raise UserError(
            "ensemble.variants must name groups, such as {vit_ti: [digits/vit_ti@*]}, got "
            f"{chosen!r}"
        )
    result = {}
    for key, entries in chosen.items():
        name = str(key)
        if name in taken or name == "clusters":
            raise UserError(f"ensemble.variants names {name}, which another group has")
        if not isinstance(entries, ListConfig):
            raise UserError(f"ensemble.variants.{name} must list members, got {entries!r}")
        plain = OmegaConf.to_container(entries, resolve=True)
        assert isinstance(plain, list)
        with naming({"members": f"ensemble.variants.{name}"}):
            result[name] = parse_members(
                with_trained(config, plain), config.model.get("known"), at_least=2
            )
    return result


def with_variants(
    s: Study, setting: Setting, members: Sequence[Member], variants: dict[str, list[Member]]
) -> tuple[Setting, list[Member], dict[str, list[int]]]:
    """The members followed by the variants, whose clean logits are computed where they are missing.

    Args:
        s: the study.
        setting, members: of `experiments.cli.study.with_logits`.
        variants: of `build_variants`.

    Returns:
        The setting for all of them, all of them, and the positions of each group's members. A
        variant with the name of a member is that member.
    """
    every = list(members)
    places = {member.name: i for i, member in enumerate(every)}
    for variant in (variant for group in variants.values() for variant in group):
        known = every[places[variant.name]] if variant.name in places else variant
        if known != variant and replace(known, family=variant.family) != variant:
            raise UserError(f"two models are called {variant.name}: give each a name of its own")
        if variant.name not in places:
            places[variant.name] = len(every)
            every.append(variant)
    if extra := every[len(members) :]:
        with Bars(s.console) as bars:
            prepared = prepare(s.config, setting, extra, bars)
            setting = replace(prepared, published={**setting.published, **prepared.published})
            suspects = Suspects(s.config, s.console)
            with open_pipeline(s.config, setting, extra, s.tracker, bars, suspects) as pipeline:
                pipeline.clean(extra)
            if pipeline.failures:
                failed = pipeline.failures[0]
                raise UserError(f"{failed.member.name} failed in {failed.stage}: {failed.reason}")
    groups = {name: [places[v.name] for v in group] for name, group in variants.items()}
    return setting, every, groups
