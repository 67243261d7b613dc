"""timm's optimiser and learning-rate schedule as a recipe sets them."""

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from netkin.errors import UserError, first_line, near
from netkin.training.recipe import Recipe

SCHEDULES = ("cosine", "tanh", "step", "constant", "multistep", "plateau", "poly", "rsqrt")
"""Names that timm's factory knows; for others it makes no schedule, without a word."""


def check(recipe: Recipe) -> None:
    """Raises UserError for an optimiser or a schedule that timm does not make of a recipe."""
    if recipe.sched not in SCHEDULES:
        raise UserError(
            f"sched must be one of {', '.join(SCHEDULES)}, got {recipe.sched!r}"
            f"{near(recipe.sched, SCHEDULES)}"
        )
    names = [str(name) for name in list_optimizers()]
    if recipe.opt.lower().removeprefix("lookahead_") not in names:
        raise UserError(
            f"opt must be one of timm's {len(names)} optimisers (timm.optim.list_optimizers()), "
            f"got {recipe.opt!r}{near(recipe.opt, names)}"
        )
    try:
        optimizer = make_optimizer(nn.Linear(2, 2), recipe, 0.1)
    except Exception as error:
        raise UserError(
            f"opt={recipe.opt} with {dict(recipe.opt_args)}: {first_line(error)}"
        ) from None
    try:
        make_schedule(optimizer, recipe, 1)
    except Exception as error:
        args = dict(recipe.sched_args)
        raise UserError(f"sched={recipe.sched} with {args}: {first_line(error)}") from None


def make_optimizer(net: nn.Module, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser at a peak learning rate; norms, biases and tokens do not decay."""
    return create_optimizer_v2(
        net, opt=recipe.opt, lr=lr, weight_decay=recipe.weight_decay, **recipe.opt_args
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int) -> Scheduler:
    """timm's schedule of the optimiser's learning rates.

    Args:
        optimizer: at its peak learning rate.
        recipe: with the schedule's name, length, warm-up and further arguments.
        updates: optimiser steps an epoch.
    """
    peak = max(group["lr"] for group in optimizer.param_groups)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=peak / 100 if recipe.warmup_lr is None else recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=recipe.step_on_epochs,
        updates_per_epoch=updates,
        **recipe.sched_args,
    )
    assert schedule is not None
    return schedule
