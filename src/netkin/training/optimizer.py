"""timm's optimiser and learning-rate schedule as a recipe sets them."""

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from netkin.training.recipe import Recipe


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
