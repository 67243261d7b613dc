"""`score.half_width`: runs that stop when scores are certain enough, from the config to words.

The statistics are `netkin.analysis.sequential`.
"""

import math
from collections.abc import Callable

from omegaconf import DictConfig
from rich.console import Console

from experiments.cli.keys import naming
from experiments.cli.runs import command
from experiments.cli.values import may_stop
from netkin.analysis.sequential import Look, Rule
from netkin.jobs.progress import Bars


def rule(config: DictConfig) -> Rule | None:
    """When the run of a config stops; None after all images.

    Raises UserError that names the key of a value that cannot be used.
    """
    if not may_stop(config):
        return None
    with naming({"half_width": "score.half_width", "share": "score.share"}):
        return Rule(config.score.half_width, config.score.share, config.score.eps_s)


def printer(console: Console) -> Callable[[Look], None]:
    """Prints a line after each look."""

    def said(look: Look) -> None:
        if not Bars.quiet:
            console.print(line(look))

    return said


def line(look: Look) -> str:
    """A look in one line, and what the run does next."""
    end = "going on" if look.images < look.total else "no more images"
    return (
        f"{look.images} of {look.total} images: {look.share:.0%} of pairs within "
        f"{look.rule.half_width:g} nats; {'enough' if look.reached else end}"
    )


def answer(look: Look) -> list[str]:
    """How many images were used, whether that was enough, and what intervals mean; a paragraph."""
    rule = look.rule
    asked = f"(score.share={rule.share:g} asked)"
    found = f"{look.share:.0%} of pairs have a half-width of {rule.half_width:g} nats or less"
    if look.reached and look.images == look.total:
        return [f"Reached with all {look.total:,} images: {found} {asked}.", meaning(look)]
    if look.reached:
        more = command(f"score.half_width={rule.half_width / 2:g}")
        return [
            f"Stopped after {look.images:,} of {look.total:,} images: {found} {asked}. A smaller "
            f"half-width goes on from here: {more}",
            meaning(look),
        ]
    words = f"Not reached with all {look.total:,} images: {found} {asked}."
    if math.isfinite(look.needed):
        words += (
            f" That share would need about {look.needed:,.0f} images; its half-width is "
            f"{look.half_width:.2f}."
        )
    return [
        f"{words} Use a larger subset, a wider score.half_width, or a lower score.share.",
        meaning(look),
    ]


def caution(config: DictConfig) -> list[str]:
    """What to know where the order of the images is not a random one of this run's."""
    if "file" in config.subset:
        order = "the manifest's order"
    elif config.subset.get("shuffled") is False:
        order = "the order of their ids"
    else:
        return []
    return [
        f"The images were used in {order}: scores and intervals of a run that stops early are of "
        "the dataset only where that order is as good as random, and says nothing of the classes."
    ]


def meaning(look: Look) -> str:
    """What the intervals of a run that may stop at any look are."""
    return (
        "The 95% intervals of pairs hold whenever a run is stopped: 5% are spent over all looks "
        f"(alpha spending), {look.alpha:.1%} at this one. Intervals of means over pairs are for a "
        "number of images fixed beforehand."
    )
