"""How many images does a half-width need? Computed from outcomes that the store has: the pilot.

Half-widths shrink with the root of the number of images: n = n0 (h0 / h)^2, of n0 images that gave
a half-width h0. The pilot is any run of the same models under the same attack on images of the
dataset; of several, the one with the most images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl
from omegaconf import DictConfig
from scipy.special import ndtri

from experiments.cli.runs import command
from netkin import similarity
from netkin.analysis.sequential import Rule, images_needed, level, looks, place_of_share
from netkin.attacks import PGD
from netkin.data.subset import from_manifest
from netkin.errors import UserError
from netkin.passes.probe import Cost
from netkin.passes.setting import Setting
from netkin.passes.stored import covered as covered_of
from netkin.passes.stored import is_clean, outcomes
from netkin.report.study import Outputs
from netkin.report.text import duration, size
from netkin.similarity import ALPHA, Outcomes
from netkin.store.names import folder, outcomes_folder
from netkin.zoo.member import Member

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


def find(setting: Setting, members: Sequence[Member]) -> Pilot | None:
    """The pilot with the most images; None where the store has none of all members."""
    if not all(setting.has_weights(member) for member in members):
        return None
    dataset, attack = setting.task.dataset, setting.stored_attack.path.name
    best: tuple[int, Setting] | None = None
    for manifest in sorted((setting.store.root / folder(dataset)).glob("*/manifest.json")):
        if not (manifest.parent / attack / outcomes_folder(setting.precision)).is_dir():
            continue
        try:
            other = replace(setting, subset=from_manifest(setting.images, manifest, dataset))
            images = covered(other, members)
        except UserError:  # of images that the dataset has no longer, or of other models
            continue
        if images and (best is None or images > best[0]):
            best = images, other
    if best is None:
        return None
    images, other = best
    return Pilot(outcomes(other, members, images=images), other.subset.name)


def covered(setting: Setting, members: Sequence[Member]) -> int:
    """How many images of a setting's subset the outcomes of all pairs of members cover."""
    if not all(is_clean(setting, member) for member in members):
        return 0
    least = len(setting.subset)
    for target in members:
        least = min(least, *covered_of(setting, target, members).values())
        if not least:
            break
    return least


def pair_needs(pilot: Pilot, rule: Rule, total: int, shard_size: int) -> pl.DataFrame:
    """A row a pair, sorted by images: a, b, score, half_width (of the pilot, nats), images (that
    the rule's half-width needs, of a number fixed beforehand) and stops_after (of a run that stops
    by itself, whose intervals are wider; null for more than `total` images).

    A pair that the pilot has no transfer of has neither: its half-width is not one that shrinks.
    """
    pairs = similarity.pairs(pilot.outcomes, rule.eps_s)
    width = ((pairs["high"] - pairs["low"]) / 2).to_numpy()
    some = (pairs["a_fools_b"] + pairs["b_fools_a"]).to_numpy() > 0
    needed = [
        math.ceil(images_needed(pilot.images, h, rule.half_width)) if known else None
        for h, known in zip(width.tolist(), some.tolist(), strict=True)
    ]
    stops = [None if n is None else stops_after(n, total, shard_size) for n in needed]
    return pairs.select(
        "a",
        "b",
        "score",
        pl.Series("half_width", width),
        pl.Series("images", needed, pl.Int64),
        pl.Series("stops_after", stops, pl.Int64),
    ).sort("images", nulls_last=True)


def stops_after(needed: int, total: int, shard_size: int) -> int | None:
    """The first look whose wider intervals are as narrow as those of `needed` images."""
    for images in looks(total, shard_size):
        wider = ndtri(level(images, total, shard_size) / 2) / ndtri(ALPHA / 2)
        if images >= needed * wider**2:
            return images
    return None


def at_share(values: pl.Series, share: float) -> int | None:
    """The value that a share of sorted values has at most, nulls being above all; None for null."""
    return values.sort(nulls_last=True)[place_of_share(share, len(values))]


def report(
    config: DictConfig,
    setting: Setting,
    members: Sequence[Member],
    costs: Mapping[str, Cost],
    rule: Rule,
    outputs: Outputs,
) -> list[str]:
    """Write images.csv, a row a pair, and say how many images the half-width needs, and their cost.

    Args:
        config: as composed.
        setting: after `prepare`.
        members: the models.
        costs: of one image, by member; of those that can be built.
        rule: the half-width, and for which share of the pairs.
        outputs: where the table goes.
    """
    pilot = find(setting, members)
    if pilot is None:
        first = command("score.half_width=1", "score.share=0.5")
        return [
            f"How many images a half-width of {rule.half_width:g} nats needs is not known: the "
            "store has no pilot, a run of these models under this attack on images of the dataset. "
            f"A few images are enough, and a longer run goes on from them: {first}"
        ]
    total = len(setting.subset)
    table = outputs.table("images", pair_needs(pilot, rule, total, setting.shard_size))
    parts = [
        _need(who, at_share(table["images"], share), costs, width(setting))
        for who, share in (("the median pair", 0.5), (f"{rule.share:.0%} of pairs", rule.share))
    ]
    sentences = [
        f"A half-width of {rule.half_width:g} nats needs {'; '.join(parts)}. The subset has "
        f"{total:,} images, the dataset {len(setting.images.ids):,}. Computed as n0 (h0 / h)^2 "
        f"from a pilot of {pilot.images:,} images ({pilot.subset}) in the store; images.csv has "
        "every pair."
    ]
    if without := table["images"].null_count():
        sentences[0] += f" Of {without} pairs nothing transferred, so their number is unknown."
    stops = at_share(table["stops_after"], rule.share)
    run = command(f"score.half_width={rule.half_width:g}")
    end = f"end after about {stops:,} images" if stops else f"not end within its {total:,} images"
    sentences.append(
        "A run that stops by itself has wider intervals, which hold whenever it stops. It would "
        f"{end}: {run}"
    )
    steps = getattr(setting.attack, "steps", 0)
    if isinstance(setting.attack, PGD) and steps > FEWER:
        sentences.append(
            f"Fewer steps save more: attack=pgd10 costs {FEWER / steps:.0%} of these {steps} "
            "steps. experiment=budget says whether it gives the same matrix."
        )
    return sentences


def width(setting: Setting) -> int:
    """Bytes of a stored colour."""
    return 1 if setting.dtype == "uint8" else 4


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
