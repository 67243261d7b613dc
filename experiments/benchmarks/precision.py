"""How much do scores change with the precision, compared with a change of seed?

The same members are attacked again in each precision, and once with another seed, whose effect is
chance alone: a precision with an effect no larger is free. Then targets are evaluated in each
precision on the run's own adversarial images, and timed. Writes precision.csv (every pair),
summary.csv, speed.csv, the figure and report.html.

On the 12 digits members (500 images, PGD-50): see experiments/results/speed.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.benchmarks.target_precision import differing, in_turn, speed_sentence
from experiments.cli.devices import on_cpu
from experiments.cli.keys import naming
from experiments.cli.setting import build_attack
from experiments.cli.study import Measured, Study, study
from experiments.cli.values import one_of
from netkin import similarity
from netkin.errors import UserError
from netkin.report.study import Section
from netkin.report.style import INK, MARKERS, PALETTE, panels, style
from netkin.results import Results
from netkin.run import Run
from netkin.similarity import Outcomes
from netkin.zoo import execution
from netkin.zoo.execution import PRECISIONS, TARGET_PRECISIONS, Execution, check_execution


@dataclass(frozen=True)
class Variant:
    """The attack or its targets in another precision, or the attack with another seed."""

    name: str
    run: Run


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    others = precisions(config)
    if "seed" not in config.attack:
        raise UserError("experiment=precision needs an attack with a seed, such as attack=pgd")
    if config.seed == config.attack.seed:
        raise UserError(f"seed={config.seed} is the attack's own seed; give another one")
    with study(config) as s:
        assert s.measured is not None
        variants = [in_precision(s.measured.run, name) for name in others]
        variants.append(Variant(f"seed {config.seed}", with_seed(config, s.measured.run)))
        variants += [
            Variant(f"transfer {name}", s.measured.run.under(target_precision=name))
            for name in of_targets(config)
        ]
        members, outcomes = s.measured.members, {}
        for variant in variants:
            s.console.print(f"\n{variant.name}")
            outcomes[variant.name] = variant.run.measure()
        shares = {
            v.name: {
                "differing_pixels": differing_pixels(s.measured, v.run.results),
                **differing(s.measured.results, v.run.results, members),
            }
            for v in variants
        }
        speed = in_turn(s.measured.run, members, config.hardware.threads)
        compare(s, outcomes, shares, s.outputs.table("speed", speed))


def of_targets(config: DictConfig) -> list[str]:
    """The precisions of targets to compare with the run's own; `precisions` checks the key."""
    chosen = config.precisions
    names = execution.precisions(not on_cpu(config)) if chosen == "auto" else chosen
    others = [name for name in names if name != config.transfer.precision]
    return [name for name in TARGET_PRECISIONS if name in others]


def precisions(config: DictConfig) -> list[str]:
    """The precisions of crafting to compare with the run's own.

    Raises UserError for what this device lacks.
    """
    gpu = not on_cpu(config)
    if config.precisions == "auto":
        return [
            name for name in execution.precisions(gpu) if name != config.hardware.craft_precision
        ]
    if not isinstance(config.precisions, ListConfig) or not config.precisions:
        raise UserError(f"precisions must be auto or a list of them, got {config.precisions!r}")
    for name in config.precisions:
        one_of(name, tuple(PRECISIONS), "precisions")
        with naming({"precision": "precisions"}):
            check_execution(Execution(name), gpu)
        if name == config.hardware.craft_precision:
            raise UserError(
                f"precisions names {name}, which is the run's own precision: leave it out"
            )
    return list(dict.fromkeys(config.precisions))


def in_precision(r: Run, name: str) -> Variant:
    """The run in another precision of crafting."""
    return Variant(name, r.under(craft_precision=name))


def with_seed(config: DictConfig, r: Run) -> Run:
    """The run with another seed of the attack."""
    changed = config.copy()
    OmegaConf.update(changed, "attack.seed", config.seed)
    return r.under(attack=build_attack(changed))


def differing_pixels(measured: Measured, other: Results) -> float:
    """The share of stored pixels that differ from the run's own, over all sources."""
    differ, total = 0, 0
    for member in measured.members:
        for shard in range(len(measured.evaluation.shards)):
            ours, _ = measured.results.adversarial(member, shard)
            theirs, _ = other.adversarial(member, shard)
            differ += int(torch.count_nonzero(ours != theirs))
            total += ours.numel()
    return differ / total


def compare(
    s: Study,
    variants: dict[str, Outcomes],
    shares: dict[str, dict[str, float]],
    speed: pl.DataFrame,
) -> None:
    """The tables, the figure and the page, from outcomes and shares that differ by variant."""
    assert s.measured is not None
    score = s.config.score
    pairs = similarity.pairs(s.measured.outcomes, score.eps_s)
    rows = pl.concat(
        [differences(pairs, name, similarity.pairs(o, score.eps_s)) for name, o in variants.items()]
    )
    s.outputs.table("precision", rows)
    draws = s.draws()
    assert draws is not None
    table = pl.DataFrame(
        [
            {
                **summary(name, rows.filter(variant=name)),
                **shift(s.scores, draws, outcomes, score.bootstrap),
                **shares[name],
            }
            for name, outcomes in variants.items()
        ]
    )
    s.outputs.table("summary", table)
    s.tracker.summary(
        {
            f"precision/{row['variant']}/mean_difference": row["mean_difference"]
            for row in table.to_dicts()
        }
    )
    own = s.config.hardware.craft_precision
    picture = s.outputs.figure(
        "differences",
        figure(rows, list(variants)),
        rows,
        f"The change of each score against {own} and the first seed; transfer: of targets on the "
        "same adversarial images. Grey: the 95% interval over images of each score itself.",
    )
    s.finish(
        f"Does the precision change the scores of {len(s.names)} models?",
        f"{s.source}, in {own}; then the same in other precisions, and with another seed of the "
        "attack, whose effect is chance alone; then targets alone in other precisions.",
        [*map(sentence, table.to_dicts()), speed_sentence(speed)],
        [
            Section("Differences", (), {"Differences of scores (nats)": table}, [picture]),
            Section("Time of a target", (), {"": speed}),
        ],
    )


def differences(pairs: pl.DataFrame, name: str, other: pl.DataFrame) -> pl.DataFrame:
    """One row a pair: variant, a, b, score, low, high, other, difference, inside (the interval)."""
    joined = pairs.select("a", "b", "score", "low", "high").join(
        other.select("a", "b", pl.col("score").alias("other")), on=["a", "b"], maintain_order="left"
    )
    return joined.with_columns(
        (pl.col("other") - pl.col("score")).alias("difference"),
        pl.col("other").is_between("low", "high").alias("inside"),
    ).insert_column(0, pl.Series("variant", [name] * joined.height))


def summary(name: str, rows: pl.DataFrame) -> dict[str, object]:
    """A row of summary.csv: one variant's differences over pairs, in nats."""
    difference = rows["difference"].to_numpy()
    half = (rows["high"] - rows["low"]).to_numpy() / 2
    several = np.ptp(rows["score"].to_numpy()) > 0 and np.ptp(rows["other"].to_numpy()) > 0
    r = np.corrcoef(rows["score"], rows["other"])[0, 1] if several else None
    return {
        "variant": name,
        "pairs": rows.height,
        "r": r,
        "mean_absolute_difference": float(np.abs(difference).mean()),
        "largest_difference": float(np.abs(difference).max()),
        "mean_half_width": float(half.mean()),
        "inside_interval": float(rows["inside"].to_numpy().mean()),
    }


def shift(
    scores: NDArray[np.float64],
    draws: NDArray[np.float64],
    other: Outcomes,
    bootstrap: int,
) -> dict[str, float]:
    """The mean difference over pairs, with its 95% interval over shared draws of images."""
    pair = np.tril_indices(len(scores), -1)
    theirs = similarity.bootstrap(other, bootstrap)
    differences = (theirs - draws)[:, *pair].mean(axis=1)
    low, high = similarity.interval(differences)
    mean = float((similarity.smoothed_matrix(other) - scores)[pair].mean())
    return {"mean_difference": mean, "mean_low": low, "mean_high": high}


@style()
def figure(rows: pl.DataFrame, variants: Sequence[str]) -> Figure:
    """Differences against scores, with the intervals of the scores behind them."""
    drawing, (ax,) = panels(1, 4.6, 3.2)
    one = rows.filter(variant=variants[0]).sort("score")
    s = one["score"].to_numpy()
    ax.vlines(s, one["low"] - s, one["high"] - s, color="#d5d9dd", lw=2.2, zorder=1)
    ax.axhline(0, color=INK, lw=0.6, zorder=2)
    for name, colour, marker in zip(variants, PALETTE, MARKERS, strict=False):
        points = rows.filter(variant=name)
        ax.scatter(
            points["score"],
            points["difference"],
            s=12,
            c=colour,
            marker=marker,
            lw=0,
            label=name,
            zorder=3,
        )
    ax.set_xlabel("s (nats)")
    ax.set_ylabel("difference of s (nats)")
    drawing.legend(loc="outside upper right", ncols=len(variants), handletextpad=0.2)
    return drawing


def sentence(row: dict) -> str:
    """A variant in words."""
    r = "" if row["r"] is None else f", r = {row['r']:.4f}"
    return (
        f"{row['variant']}: scores of {row['pairs']} pairs differ by "
        f"{row['mean_absolute_difference']:.3f} on average and {row['largest_difference']:.3f} at "
        f"most (half the width of a score's own interval is {row['mean_half_width']:.3f} on "
        f"average{r}); {row['inside_interval']:.0%} stay inside their interval. The mean over "
        f"pairs shifts by {row['mean_difference']:+.4f} (95% interval over images "
        f"{row['mean_low']:+.4f} to {row['mean_high']:+.4f}). "
        f"{row['differing_pixels']:.1%} of stored pixels differ, "
        f"{row['differing_predictions']:.2%} of predictions on them, and "
        f"{row['differing_outcomes']:.2%} of outcomes (fooled or not)."
    )
