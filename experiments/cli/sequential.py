"""`score.half_width`: runs that stop when scores are certain enough, from the config to words.

The statistics are `netkin.analysis.sequential`.
"""

import math
from collections.abc import Callable

from omegaconf import DictConfig
from rich.console import Console

from experiments.cli.runs import command
from experiments.cli.values import may_stop, naming
from netkin.analysis.sequential import Certainty, Rule
from netkin.errors import UserError
from netkin.jobs.progress import Bars


def rule(config: DictConfig) -> Rule | None:
    """When the run of a config stops; None after all images.

    Raises UserError that names the key of a value that cannot be used.
    """
    if not may_stop(config):
        return None
    with naming({"half_width": "score.half_width", "share": "score.share"}):
        return Rule(config.score.half_width, config.score.share, config.score.eps_s)


def refuse(config: DictConfig) -> None:
    """Raises UserError for a half-width that a command would ignore."""
    if may_stop(config):
        raise UserError(
            f"experiment={config.experiment.name} takes no score.half_width: its numbers are of "
            "all images. Leave it out, or run experiment=pairwise with it first"
        )


def printer(console: Console) -> Callable[[Certainty], None]:
    """Prints a line each time that the run may stop."""

    def line(found: Certainty) -> None:
        if not Bars.quiet:
            end = "going on" if found.images < found.total else "no more images"
            console.print(
                f"{found.images} of {found.total} images: {found.share:.0%} of pairs within "
                f"{found.rule.half_width:g} nats; {'enough' if found.reached else end}"
            )

    return line


def answer(config: DictConfig, found: Certainty | None) -> list[str]:
    """How many images were used, and whether that was enough; empty for a run without a rule."""
    if found is None:
        return []
    rule = found.rule
    asked = f"(score.share={rule.share:g} asked)"
    text = f"{found.share:.0%} of pairs have a half-width of {rule.half_width:g} nats or less"
    if found.reached and found.images == found.total:
        sentences = [f"Reached with all {found.total:,} images: {text} {asked}."]
    elif found.reached:
        sentences = [
            f"Stopped after {found.images:,} of {found.total:,} images: {text} {asked}. A smaller "
            f"half-width goes on from here: {command(f'score.half_width={rule.half_width / 2:g}')}"
        ]
    else:
        need = ""
        if math.isfinite(found.needed):
            need = (
                f" That share would need about {found.needed:,.0f} images; its half-width is "
                f"{found.half_width:.2f}."
            )
        sentences = [
            f"Not reached with all {found.total:,} images: {text} {asked}.{need} Use a larger "
            "subset, a wider score.half_width, or a lower score.share."
        ]
    order = "the manifest's order" if "file" in config.subset else ""
    if config.subset.get("shuffled") is False:
        order = "the order of their ids"
    if order:
        sentences.append(
            f"The images were used in {order}: scores and intervals of a run that stops early are "
            "of the dataset only where that order is as good as random."
        )
    return sentences
