"""How accurate is one architecture under other seeds or hyper-parameters (Tab. D.1)?

`sweep.runs` of the experiment lists the trainings, and Hydra sweeps `run` over the list. Learning
rate and weight decay of a run are multiples of the recipe's own (App. E).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from experiments.cli.members import one_member
from experiments.cli.values import resolved
from experiments.train.session import (
    build_evaluation,
    recipe_at,
    swept_parts,
    to_train,
    train_alone,
    with_parts,
)
from netkin.errors import UserError
from netkin.training.recipe import Recipe


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    runs = config.sweep.runs
    if config.run >= len(runs):
        raise UserError(f"run must be a whole number of 0 to {len(runs) - 1}, got {config.run!r}")
    entry = resolved(runs[config.run])
    kind = entry.pop("model")
    key = f"recipes.{kind}" if kind in config.recipes else "recipe"
    recipe = varied(recipe_at(config, key), entry)
    evaluation = build_evaluation(config)
    base = one_member(config, config.dataset.sweep[kind], f"dataset.sweep.{kind}")
    base = to_train(evaluation.task, base)
    name = with_parts(base.name, [label(entry), *swept_parts()])
    member = replace(base, name=config.name or name)
    train_alone(config, evaluation, member, recipe)


def varied(recipe: Recipe, entry: Mapping[str, Any]) -> Recipe:
    """An architecture's recipe under one entry of a sweep: any of seed, lr and weight_decay
    (multiples of the recipe's) and sched."""
    sched = {}
    if entry.get("sched") == "step":
        # Three steps, each to a tenth, whatever steps the recipe has.
        decay = {"decay_epochs": max(1, recipe.epochs // 3), "decay_rate": 0.1}
        sched = {"sched": "step", "sched_args": decay}
    elif "sched" in entry:
        sched = {"sched": entry["sched"], "sched_args": {}}
    return replace(
        recipe,
        seed=entry.get("seed", recipe.seed),
        lr=recipe.lr * entry.get("lr", 1),
        weight_decay=recipe.weight_decay * entry.get("weight_decay", 1),
        **sched,
    )


def label(entry: Mapping[str, Any]) -> str:
    """The part of a run's name that differs within its sweep: "seed3", "lr0.2-wd5-cosine"."""
    if "seed" in entry:
        return f"seed{entry['seed']}"
    parts = [f"lr{entry['lr']:g}", f"wd{entry['weight_decay']:g}"]
    return "-".join([*parts, entry["sched"]] if "sched" in entry else parts)
