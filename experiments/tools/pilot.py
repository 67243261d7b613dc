"""How many images does a half-width need? Computed from outcomes that the store has: the pilot.

Half-widths shrink with the root of the number of images: n = n0 (h0 / h)^2, of n0 images that gave
a half-width h0. The pilot is any run of the same models under the same attack on images of the
dataset; of several, the one with the most images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from experiments.cli.runs import command
from experiments.cli.setting import Opened
from netkin import similarity
from netkin.analysis.sequential import Rule, images_needed, index_of_share
from netkin.attacks import PGD
from netkin.data.subset import from_manifest
from netkin.errors import UserError
from netkin.model import Model
from netkin.passes.probe import Cost
from netkin.report.text import duration, size
from netkin.results import Results
from netkin.run import Run
from netkin.similarity import Outcomes
from netkin.store import folder
from netkin.store.outcomes import outcomes_folder

ROW_BYTES = 12
"""Bytes of an outcome in its parquet file, measured on digits with a hundred images a pair."""
FEWER = 10
"""Steps of attack=pgd10."""


@dataclass(frozen=True)
class Pilot:
    """The outcomes of members on some images, and the name of the subset that these are of."""

    outcomes: Outcomes
    subset: str

    @property
    def images(self) -> int:
        """How many images it has."""
        return len(self.outcomes.image_ids)


def find(r: Run) -> Pilot | None:
    """The pilot with the most images; None where the store has none of all models."""
    if not all(model.has_weights for model in r.models):
        return None
    evaluation, attack = r.evaluation, r.results.attack_folder.path.name
    table, dataset = outcomes_folder(evaluation.target_precision), evaluation.task.dataset
    best: tuple[int, Results] | None = None
    for manifest in sorted((r.results.store.root / folder(dataset)).glob("*/manifest.json")):
        if not (manifest.parent / attack / table).is_dir():
            continue
        try:
            other = r.results.under(subset=from_manifest(evaluation.images, manifest, dataset))
            images = covered(other, r.models)
        except UserError:  # of images that the dataset has no longer, or of other models
            continue
        if images and (best is None or images > best[0]):
            best = images, other
    if best is None:
        return None
    images, other = best
    return Pilot(other.outcomes(r.models, images=images), other.evaluation.subset.name)


def covered(results: Results, models: Sequence[Model]) -> int:
    """How many images of a subset the outcomes of all pairs of models cover."""
    if not all(results.has(model) for model in models):
        return 0
    return min(min(results.covered(target, models).values()) for target in models)


def pair_needs(pilot: Pilot, rule: Rule) -> pl.DataFrame:
    """A row a pair, sorted by images: a, b, score, half_width (of the pilot, nats) and images (that
    the rule's half-width needs).

    A pair that the pilot has no transfer of needs an unknown number: its half-width is not one that
    shrinks.
    """
    pairs = similarity.pairs(pilot.outcomes, rule.eps_s)
    width = ((pairs["high"] - pairs["low"]) / 2).to_numpy()
    some = (pairs["a_fools_b"] + pairs["b_fools_a"]).to_numpy() > 0
    needed = [
        math.ceil(images_needed(pilot.images, h, rule.half_width)) if known else None
        for h, known in zip(width.tolist(), some.tolist(), strict=True)
    ]
    return pairs.select(
        "a",
        "b",
        "score",
        pl.Series("half_width", width),
        pl.Series("images", needed, pl.Int64),
    ).sort("images", nulls_last=True)


def at_share(values: pl.Series, share: float) -> int | None:
    """The value that a share of sorted values has at most, nulls being above all; None for null."""
    return values.sort(nulls_last=True)[index_of_share(share, len(values))]


def report(o: Opened, costs: Mapping[str, Cost]) -> list[str]:
    """Write images.csv, a row a pair, and say how many images the half-width needs, and their cost.

    Args:
        o: the open run; nothing is to say where it has no half-width.
        costs: of one image, by model; of those that can be built.
    """
    r, rule = o.run, o.run.settings.rule
    if rule is None:
        return []
    pilot, evaluation = find(r), r.evaluation
    if pilot is None:
        first = command("score.half_width=1", "score.share=0.5")
        return [
            f"How many images a half-width of {rule.half_width:g} nats needs is not known: the "
            "store has no pilot, a run of these models under this attack on images of the dataset. "
            f"A few images are enough, and a longer run goes on from them: {first}"
        ]
    total = len(evaluation.subset)
    table = o.outputs.table("images", pair_needs(pilot, rule))
    parts = [
        _need(who, at_share(table["images"], share), costs, evaluation.bytes_per_value)
        for who, share in (("the median pair", 0.5), (f"{rule.share:.0%} of pairs", rule.share))
    ]
    sentences = [
        f"A half-width of {rule.half_width:g} nats needs {'; '.join(parts)}. The subset has "
        f"{total:,} images, the dataset {len(evaluation.images.ids):,}. Computed as n0 (h0 / h)^2 "
        f"from a pilot of {pilot.images:,} images ({pilot.subset}) in the store; images.csv has "
        "every pair."
    ]
    if without := table["images"].null_count():
        sentences[0] += f" Of {without} pairs nothing transferred, so their number is unknown."
    sentences.append(
        f"A run stops by itself there: {command(f'score.half_width={rule.half_width:g}')}"
    )
    steps = getattr(evaluation.attack, "steps", 0)
    if isinstance(evaluation.attack, PGD) and steps > FEWER:
        sentences.append(
            f"Fewer steps save more: attack=pgd10 costs {FEWER / steps:.0%} of these {steps} "
            "steps. experiment=budget says whether it gives the same matrix."
        )
    return sentences


def _need(who: str, images: int | None, costs: Mapping[str, Cost], width: int) -> str:
    """The images of a pair or share of pairs in words, with time and disk for all members."""
    if images is None:
        return f"an unknown number for {who}"
    n = len(costs)
    seconds = sum(cost.craft + n * cost.transfer for cost in costs.values())
    bytes_ = sum(3 * cost.input_size**2 * width + n * ROW_BYTES for cost in costs.values())
    return (
        f"{images:,} images for {who} ({duration(images * seconds)} on one such device, "
        f"{size(images * bytes_)} of disk, from the start)"
    )
