"""Ensembles of a study's members, and of variants of one model, from stored logits."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.cli.keys import naming
from experiments.cli.members import with_trained
from experiments.cli.study import Study
from netkin.analysis.ensemble import ensembles_correct
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.model import Model
from netkin.results import Results
from netkin.run import Run
from netkin.zoo.member import Member, parse_members


def ensembles_wrong(
    s: Study, results: Results, models: Sequence[Model], groups: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Which images each of G ensembles misclassifies, [G, I], with a progress bar.

    Args:
        s: the study, whose console shows the progress.
        results, models: with clean logits; see `experiments.cli.study.with_logits`.
        groups: G ensembles, each the positions of its members.
    """
    with Bars(s.console) as bars, results.logits_by_block(models) as read:
        bars.start("ensemble", ["images"], len(results.evaluation.subset))
        correct = ensembles_correct(
            read,
            results.evaluation.labels.numpy(),
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
    r: Run, models: Sequence[Model], variants: dict[str, list[Member]]
) -> tuple[Run, list[Model], dict[str, list[int]]]:
    """The models followed by the variants, whose clean logits are computed where they are missing.

    Args:
        r, models: of `experiments.cli.study.with_logits`.
        variants: of `build_variants`.

    Returns:
        The run of all of them, all of them, and the positions of each group's members. A variant
        with the name of a model is that model.
    """
    every = [model.member for model in models]
    places = {member.name: i for i, member in enumerate(every)}
    for variant in (variant for group in variants.values() for variant in group):
        known = every[places[variant.name]] if variant.name in places else variant
        if known != variant and replace(known, family=variant.family) != variant:
            raise UserError(f"two models are called {variant.name}: give each a name of its own")
        if variant.name not in places:
            places[variant.name] = len(every)
            every.append(variant)
    if extra := every[len(models) :]:
        r = r.with_models(extra)
        models = [*models, *r.models[-len(extra) :]]
        r.clean(models[-len(extra) :])
        if r.failures:
            failed = r.failures[0]
            raise UserError(f"{failed.model.name} failed in {failed.stage}: {failed.reason}")
    groups = {name: [places[v.name] for v in group] for name, group in variants.items()}
    return r, list(models), groups
