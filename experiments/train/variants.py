"""One of many trainings of one architecture, for Tab. D.1: other seeds, other hyper-parameters.

`sweep.runs` of the experiment lists them all, and Hydra sweeps `run` over the list. The learning
rate and weight decay of a run are multiples of the recipe's own (App. E).
"""

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from experiments.common import session as training
from experiments.common.members import build_recipe, one_member
from experiments.common.values import resolved
from experiments.train.scratch import train_and_report
from netkin.errors import UserError
from netkin.training.recipe import Recipe


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    runs = config.sweep.runs
    if not isinstance(config.run, int) or not 0 <= config.run < len(runs):
        raise UserError(f"run must be a whole number of 0 to {len(runs) - 1}, got {config.run!r}")
    entry = resolved(runs[config.run])
    kind = entry.pop("model")
    recipe = build_recipe(config, f"recipes.{kind}")
    session = training.session(config, changed(recipe, entry))
    base = one_member(config, config.dataset.sweep[kind], f"dataset.sweep.{kind}")
    base = training.to_train(session.setting, base)
    member = replace(base, name=config.name or f"{base.name}@{label(entry)}")
    train_and_report(config, session, member)


def changed(recipe: Recipe, entry: dict[str, Any]) -> Recipe:
    """The recipe under one entry of a sweep: seed, lr and weight_decay (multiples), sched."""
    sched = {}
    if entry.get("sched") == "step":
        # Three steps down to a tenth, wherever the recipe's own are.
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


def label(entry: dict[str, Any]) -> str:
    """What tells a run from the others of its sweep: "seed3", "lr0.2-wd5-cosine"."""
    if "seed" in entry:
        return f"seed{entry['seed']}"
    parts = [f"lr{entry['lr']:g}", f"wd{entry['weight_decay']:g}"]
    return "-".join([*parts, entry["sched"]] if "sched" in entry else parts)
