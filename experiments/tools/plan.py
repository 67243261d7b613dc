"""What will a run cost, and what does it lack? Answers before any model is attacked.

Checks weights, labels and every image, times one small batch of each member's craft and transfer
steps on this device, and computes time, disk and memory for what the store lacks.

A model that cannot be run, or whose weights cannot be had, gets a row with the reason, and the
others are timed. The exit code is 0 then, as for unreadable images: this study reports both, and
only the run itself stops at them.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import polars as pl
from omegaconf import DictConfig

from experiments.cli.finish import printed
from experiments.cli.measured import describe
from experiments.cli.members import unreadable
from experiments.cli.setting import Opened, opened
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.passes import Item
from netkin.passes.probe import Cost, probe
from netkin.report.study import Section
from netkin.report.text import and_more, duration, size
from netkin.results import Results
from netkin.run import Run
from netkin.runner import Runner
from netkin.training.weights import is_trained

ROW_BYTES = 12
"""Bytes of an outcome in its parquet file, measured on digits with a hundred images a pair."""
PACKED = 0.85
"""Bytes of stored 8-bit adversarial images, as a share of those that name a difference within eps.

Measured after 50 steps of PGD: 0.84 at 8/255 (224 x 224), 0.75 to 0.83 at 48/255 (digits).
"""
SHOWN = (
    *("model", "input_size", "params", "craft_seconds", "transfer_seconds"),
    *("adversarial_bytes", "peak_memory_bytes"),
)
"""Columns of the table in the terminal."""


def run(config: DictConfig) -> None:
    with opened(config, complete=False) as o:
        r, images = o.run, o.run.evaluation.images
        with Bars(o.console) as bars:
            bad = unreadable(images, r.evaluation.subset.positions, "images", bars)
            problems, untrained = _lacking(r)
            if r.training and untrained:
                images = r.training.images
                bad |= unreadable(images, range(len(images.ids)), "training images", bars)
        readable = r.under(subset=r.evaluation.subset.without(bad))
        costs, failed = _costs(config.plan.seconds, readable)
        for name, problem in failed.items():
            problems[name] = "; ".join(filter(None, [problems.get(name), problem]))
        left = {model.name: len(r.models) for model in r.models}
        if not (untrained or bad):  # models without weights, or a subset that will change
            there = [m for m in r.models if m.name not in problems]
            missing = r.results.missing_sources(there)
            left |= {name: len(r.models) - len(there) + len(m) for name, m in missing.items()}
        table = o.outputs.table("plan", cost_table(r, costs, left, problems))
        seconds = float(table.select("craft_seconds", "transfer_seconds").sum_horizontal().sum())
        o.tracker.summary({"plan/seconds": seconds / r.settings.processes.workers})
        title = "What is left to do, on one such device"
        o.console.print(printed(table.select(SHOWN), title, o.console.width))
        text = ["Time and disk for what the store lacks, one model at a time on one such device."]
        o.finish(
            f"What would {len(r.models)} models on {r.evaluation.task.dataset} cost?",
            f"For {describe(r.evaluation, len(r.models))}: a small batch of each model's crafting "
            "and transfer was timed on this device, and multiplied by what the store lacks.",
            [
                *(
                    f"{'' if name in costs else 'Without '}{name}: {problem}"
                    for name, problem in problems.items()
                ),
                *_sentences(o, table, untrained, bad),
            ],
            [Section("What is left to do", text, {"": table})],
        )


def _probe(
    most_s: float, context: tuple[Results, Runner, Any], item: Item, advance: Advance
) -> Cost:
    return probe(*context[:2], item.of_model(), most_s, advance)


def _lacking(r: Run) -> tuple[dict[str, str], list[str]]:
    """What is wrong with the weights of models, by name, and the names of those to be trained."""
    problems, untrained = dict[str, str](), []
    for model in r.models:
        try:
            if model.lacks:
                problems[model.name] = f"its weights cannot be had ({model.lacks})"
            elif r.training and not is_trained(r.training, model.member):
                untrained.append(model.name)
        except UserError as error:  # the store's are of another training
            problems[model.name] = str(error)
    return problems, untrained


def _costs(most_s: float, r: Run) -> tuple[dict[str, Cost], dict[str, str]]:
    """The cost of each model that can be run, and why others cannot, by name."""
    items = [Item(model.name, model) for model in r.models]
    found = r.stage("plan", partial(_probe, most_s), items, len(items))
    problems = {failure.model.name: failure.reason for failure in r.failures}
    if not found:
        raise UserError("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
    return {item.name: cost for item, cost in found}, problems


def cost_table(
    r: Run, costs: Mapping[str, Cost], left: Mapping[str, int], problems: Mapping[str, str]
) -> pl.DataFrame:
    """A row a model: seconds and bytes for what the store lacks, on one device, one at a time.

    `left` is how many sources a model has not been evaluated on yet. Models that cannot be run
    have `model` and `problem` alone.
    """
    images, width, rows = len(r.evaluation.subset), bytes_per_value(r.evaluation), []
    for name in (model.name for model in r.models):
        row: dict[str, Any] = {"model": name}
        if cost := costs.get(name):
            pixels = 3 * cost.input_size**2 * width
            row |= {
                "params": cost.params,
                "input_size": cost.input_size,
                "batch": cost.batch,
                "craft_ms_per_image": cost.craft * 1000,
                "transfer_ms_per_image": cost.transfer * 1000,
                "images_to_craft": cost.uncrafted,
                "sources_left": left[name],
                "craft_seconds": cost.craft * cost.uncrafted,
                "transfer_seconds": cost.transfer * images * left[name],
                "adversarial_bytes": pixels * cost.uncrafted,
                "outcome_bytes": ROW_BYTES * images * left[name],
                "peak_memory_bytes": cost.memory,
            }
        rows.append(row | {"problem": problems.get(name)})
    overrides = {"problem": pl.String}
    table = pl.DataFrame(rows, schema_overrides=overrides, infer_schema_length=None)
    return table.select(pl.exclude("problem"), "problem")


def bytes_per_value(evaluation: Evaluation) -> float:
    """Bytes that a colour of a stored adversarial pixel takes, on average: an estimate."""
    eps = evaluation.attack.eps
    if evaluation.dtype != "uint8":
        return 4
    return 1 if eps is None else min(1, PACKED * math.log2(2 * 255 * eps + 1) / 8)


def _sentences(
    o: Opened, table: pl.DataFrame, untrained: list[str], bad: dict[str, str]
) -> Iterator[str]:
    r, views = o.run, {model.view for model in o.run.models}
    workers, images, root = r.settings.processes.workers, len(r.evaluation.subset), r.results.store
    craft, transfer = (
        float(table[f"{stage}_seconds"].sum()) / workers for stage in ("craft", "transfer")
    )
    decoded = sum(3 * view.input_size**2 for view in views) * images
    stored = table.select("adversarial_bytes", "outcome_bytes").sum_horizontal().sum()
    need = float(stored) + decoded
    free = shutil.disk_usage(root.root).free
    on_devices = ", ".join(
        f"{duration((craft + transfer) / n)} on {n} device{'s' * (n > 1)}"
        for n in o.config.plan.devices
    )
    yield (
        f"Crafting takes {duration(craft)}, transfer {duration(transfer)}"
        f"{f' with {workers} workers' if workers > 1 else ''}. In all: {on_devices}. At most, "
        "since models are attacked only on images that they classify correctly."
    )
    yield (
        f"Disk: {size(need)} at most in {root.root} ({size(decoded)} of it the decoded images, for "
        f"{len(views)} geometr{'y' if len(views) == 1 else 'ies'}); {size(free)} free."
    )
    if need > free:
        yield "This does not fit: choose another disk with store.dir=PATH, or fewer models."
    if untrained:
        yield (
            f"{len(untrained)} of {table.height} models must be trained first, whose time is not "
            f"included: {and_more(untrained, 8)}."
        )
    if bad:
        image, reason = next(iter(bad.items()))
        yield (
            f"{len(bad)} images are unreadable, such as {image} ({reason}): repair or remove them, "
            "or leave such images out with dataset.on_error=skip."
        )
    elif not untrained and table["problem"].null_count() == table.height:
        yield f"No weights, labels or images are missing ({images} images)."
