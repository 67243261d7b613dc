"""What will a run cost, and what does it lack? Answers before any model is attacked.

Checks weights, labels and every image, times one small batch of each member's craft and transfer
steps on this device, and computes time, disk and memory for what the store lacks. With
`score.half_width` it says how many images that needs: half-widths shrink with the root of the
number of images, n = n0 (h0 / h)^2, of n0 images that gave a half-width h0. This pilot is any run
in the store of the same models under the same attack on images of the dataset; of several, the one
with the most images.

A model that cannot be built gets a row with the reason, and the others are timed. The exit code is
0 then, as for unreadable images: this study reports both, and only the run itself stops at them.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from omegaconf import DictConfig
from rich.table import Table

from experiments.cli.members import unreadable
from experiments.cli.runs import command
from experiments.cli.setting import Opened, opened
from experiments.cli.study import describe
from netkin import similarity
from netkin.analysis.sequential import images_needed, index_of_share
from netkin.attacks import PGD
from netkin.data.subset import from_manifest
from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.model import Model
from netkin.passes import Item
from netkin.passes.probe import Cost, probe
from netkin.report.study import Section
from netkin.report.text import and_more, duration, size
from netkin.results import Results
from netkin.run import Run
from netkin.runner import Runner
from netkin.similarity import Outcomes
from netkin.store import folder
from netkin.store.outcomes import outcomes_folder
from netkin.training.weights import is_trained

ROW_BYTES = 12
"""Bytes of an outcome in its parquet file, measured on digits with a hundred images a pair."""
FEWER = 10
"""Steps of attack=pgd10."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    with opened(config, check_members=False, stops=True) as o:
        r, images = o.run, o.run.evaluation.images
        with Bars(o.console) as bars:
            bad = unreadable(images, r.evaluation.subset.positions, "images", bars)
            training = r.training
            untrained = [
                m.name for m in r.models if training and not is_trained(training, m.member)
            ]
            if training and untrained:
                images = training.images
                bad |= unreadable(images, range(len(images.ids)), "training images", bars)
        readable = r.under(subset=r.evaluation.subset.without(bad))
        costs, problems = _costs(config.plan.seconds, readable)
        if untrained or bad:  # models without weights, or a subset that will change: no outcomes
            left = {model.name: len(r.models) for model in r.models}
        else:
            left = {name: len(todo) for name, todo in r.results.missing_sources(r.models).items()}
        table = o.outputs.table("plan", cost_table(r, costs, left, problems))
        workers = r.settings.processes.workers
        seconds = total(table, "craft_seconds") + total(table, "transfer_seconds")
        o.tracker.summary({"plan/seconds": seconds / workers})
        o.console.print(_terminal_table(table, workers))
        work = ("craft_seconds", "transfer_seconds", "adversarial_bytes", "outcome_bytes")
        timed = ("batch", "craft_ms_per_image", "transfer_ms_per_image", "peak_memory_bytes")
        text = ["Time and disk for what the store lacks, one model at a time on one such device."]
        to_do = table.select("model", "images_to_craft", "sources_left", *work)
        o.finish(
            f"What would {len(r.models)} models on {r.evaluation.task.dataset} cost?",
            f"For {describe(r.evaluation, len(r.models))}: a small batch of each model's crafting "
            "and transfer was timed on this device, and multiplied by what the store lacks.",
            [
                *(f"Without {name}: {problem}" for name, problem in problems.items()),
                *_sentences(config, r, table, untrained, bad),
                *_images_needed(o, costs),
            ],
            [
                Section("What is left to do", text, {"": to_do}),
                Section("Timings", (), {"": table.select("model", "params", "input_size", *timed)}),
            ],
        )


def _probe(
    most_s: float, context: tuple[Results, Runner, Any], item: Item, advance: Advance
) -> Cost:
    return probe(*context[:2], item.of_model(), most_s, advance)


def _costs(most_s: float, r: Run) -> tuple[dict[str, Cost], dict[str, str]]:
    """The cost of each model, and the problem of each that cannot be built, by name."""
    items = [Item(model.name, model) for model in r.models]
    found = r.stage("plan", partial(_probe, most_s), items, len(items))
    for failure in r.failures:
        if not isinstance(failure.error, UserError):
            raise failure.error
    costs = {item.name: cost for item, cost in found}
    return costs, {failure.model.name: str(failure.error) for failure in r.failures}


def cost_table(
    r: Run, costs: Mapping[str, Cost], left: Mapping[str, int], problems: Mapping[str, str]
) -> pl.DataFrame:
    """A row a model: seconds and bytes for what the store lacks, on one device, one at a time.

    Args:
        r: the open run.
        costs: by model.
        left: how many sources a model has not been evaluated on yet.
        problems: of models that cannot be built, which have `model` and `problem` alone.
    """
    images, width = len(r.evaluation.subset), r.evaluation.bytes_per_value
    rows = []
    for name in (model.name for model in r.models):
        if name in problems:
            rows.append({"model": name, "problem": problems[name]})
            continue
        cost = costs[name]
        rows.append(
            {
                "model": name,
                "params": cost.params,
                "input_size": cost.input_size,
                "batch": cost.batch,
                "craft_ms_per_image": cost.craft * 1000,
                "transfer_ms_per_image": cost.transfer * 1000,
                "images_to_craft": cost.uncrafted,
                "sources_left": left[name],
                "craft_seconds": cost.craft * cost.uncrafted,
                "transfer_seconds": cost.transfer * images * left[name],
                "adversarial_bytes": 3 * cost.input_size**2 * width * cost.uncrafted,
                "outcome_bytes": ROW_BYTES * images * left[name],
                "peak_memory_bytes": cost.memory,
                "problem": None,
            }
        )
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len)[::-1] for key in row))
    overrides = {"problem": pl.String}
    table = pl.DataFrame(rows, schema_overrides=overrides, infer_schema_length=None)
    return table.select(columns)


def _terminal_table(table: pl.DataFrame, workers: int) -> Table:
    printed = Table("model", title="What is left to do, on one such device")
    for name in ("pixels", "params", "craft", "transfer", "disk", "memory"):
        printed.add_column(name, justify="right")
    for row in table.to_dicts():
        if row["problem"]:
            printed.add_row(row["model"], "cannot be built", *"-----")
            continue
        memory = row["peak_memory_bytes"]
        printed.add_row(
            row["model"],
            str(row["input_size"]),
            f"{row['params'] / 1e6:.1f} M",
            duration(row["craft_seconds"] / workers),
            duration(row["transfer_seconds"] / workers),
            size(row["adversarial_bytes"]),
            size(memory) if memory else "?",
        )
    return printed


def _sentences(
    config: DictConfig, r: Run, table: pl.DataFrame, untrained: list[str], bad: dict[str, str]
) -> list[str]:
    workers, views = r.settings.processes.workers, {model.view for model in r.models}
    craft = total(table, "craft_seconds") / workers
    transfer = total(table, "transfer_seconds") / workers
    decoded = sum(3 * view.input_size**2 for view in views) * len(r.evaluation.subset)
    need = total(table, "adversarial_bytes") + total(table, "outcome_bytes") + decoded
    free = shutil.disk_usage(r.results.store.root).free
    sentences = [
        f"Crafting takes {duration(craft)}, transfer {duration(transfer)}"
        f"{f' with {workers} workers' if workers > 1 else ''}. In all: "
        + ", ".join(
            f"{duration((craft + transfer) / n)} on {n} device{'s' * (n > 1)}"
            for n in config.plan.devices
        )
        + ". At most, since models are attacked only on images that they classify correctly.",
        f"Disk: {size(need)} at most in {r.results.store.root} ({size(decoded)} of it the decoded "
        f"images, for {len(views)} geometr{'y' if len(views) == 1 else 'ies'}); {size(free)} free.",
    ]
    if need > free:
        sentences.append(
            "This does not fit: choose another disk with store.dir=PATH, or fewer models."
        )
    if untrained:
        sentences.append(
            f"{len(untrained)} of {table.height} models must be trained first, whose time is not "
            f"included: {and_more(untrained, 8)}."
        )
    if bad:
        image, reason = next(iter(bad.items()))
        sentences.append(
            f"{len(bad)} images are unreadable, such as {image} ({reason}): repair or remove them, "
            "or leave such images out with dataset.on_error=skip."
        )
    elif not untrained and table["problem"].null_count() == table.height:
        sentences.append(
            f"No weights, labels or images are missing ({len(r.evaluation.subset)} images)."
        )
    return sentences


def total(table: pl.DataFrame, column: str) -> float:
    """The sum of a column; 0 where no model has it."""
    return float(table[column].sum()) if column in table.columns else 0.0


def _images_needed(o: Opened, costs: Mapping[str, Cost]) -> list[str]:
    """How many images the half-width needs, and their cost.

    A pair that the pilot has no transfer of needs an unknown number: its half-width is not one that
    shrinks.

    Args:
        o: the open run; nothing is to say where it has no half-width.
        costs: of one image, by model; of those that can be built.
    """
    r, rule = o.run, o.run.settings.rule
    if rule is None:
        return []
    found, evaluation = pilot(r), r.evaluation
    if found is None:
        first = command("score.half_width=1", "score.share=0.5")
        return [
            f"How many images a half-width of {rule.half_width:g} nats needs is not known: the "
            "store has no pilot, a run of these models under this attack on images of the dataset. "
            f"A few images are enough, and a longer run goes on from them: {first}"
        ]
    outcomes, name = found
    images, pairs = len(outcomes.image_ids), similarity.pairs(outcomes, rule.eps_s)
    some = (pairs["a_fools_b"] + pairs["b_fools_a"]).to_numpy() > 0
    widths = np.sort(np.where(some, (pairs["high"] - pairs["low"]).to_numpy() / 2, np.inf))
    parts = []
    for who, share in (("the median pair", 0.5), (f"{rule.share:.0%} of pairs", rule.share)):
        width = float(widths[index_of_share(share, len(widths))])
        needed = images_needed(images, width, rule.half_width)
        parts.append(_need(who, needed, costs, evaluation.bytes_per_value))
    sentences = [
        f"A half-width of {rule.half_width:g} nats needs {'; '.join(parts)}. The subset has "
        f"{len(evaluation.subset):,} images, the dataset {len(evaluation.images.ids):,}. Computed "
        f"as n0 (h0 / h)^2 from a pilot of {images:,} images ({name}) in the store."
    ]
    if not some.all():
        without = int((~some).sum())
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


def pilot(r: Run) -> tuple[Outcomes, str] | None:
    """The outcomes of the models on most images in the store, and the name of their subset.

    None where the store has none of all models.
    """
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
            images = _covered(other, r.models)
        except UserError:  # of images that the dataset has no longer, or of other models
            continue
        if images and (best is None or images > best[0]):
            best = images, other
    if best is None:
        return None
    return best[1].outcomes(r.models, images=best[0]), best[1].evaluation.subset.name


def _covered(results: Results, models: Sequence[Model]) -> int:
    """How many images of a subset the outcomes of all pairs of models cover."""
    if not all(results.has(model) for model in models):
        return 0
    return min(min(results.covered(target, models).values()) for target in models)


def _need(who: str, images: float, costs: Mapping[str, Cost], width: int) -> str:
    """The images of a pair or share of pairs in words, with time and disk for all models."""
    if math.isinf(images):
        return f"an unknown number for {who}"
    images, n = math.ceil(images), len(costs)
    seconds = sum(cost.craft + n * cost.transfer for cost in costs.values())
    bytes_ = sum(3 * cost.input_size**2 * width + n * ROW_BYTES for cost in costs.values())
    return (
        f"{images:,} images for {who} ({duration(images * seconds)} on one such device, "
        f"{size(images * bytes_)} of disk, from the start)"
    )
