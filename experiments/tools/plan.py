"""What will a run cost, and what does it lack? Answers before any model is attacked.

Checks weights, labels and every image, times one small batch of each member's craft and transfer
steps on this device, and computes time, disk and memory for what the store lacks.

A model that cannot be built gets a row with the reason, and the others are timed. The exit code is
0 then, as for unreadable images: this study reports both, and only the run itself stops at them.
"""

import shutil
import time
from dataclasses import dataclass
from typing import Any

import polars as pl
from omegaconf import DictConfig
from rich.table import Table

from experiments.cli.members import unreadable
from experiments.cli.setting import opened
from experiments.cli.study import describe
from experiments.tools import pilot
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.jobs.pool import Advance, Result
from netkin.jobs.progress import Bars
from netkin.model import Model
from netkin.passes.probe import Cost, probe
from netkin.report.study import Section
from netkin.report.text import and_more, duration, size
from netkin.results import Results
from netkin.run import Run
from netkin.runner import Runner
from netkin.training.weights import is_trained


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
        costs, problems = _costs(config, readable)
        pairs = _missing_pairs(r, {*untrained} | {*bad})
        table = cost_table(r.evaluation, r.models, costs, pairs, problems)
        o.outputs.table("plan", table)
        workers = r.settings.processes.workers
        seconds = total(table, "craft_seconds") + total(table, "transfer_seconds")
        o.tracker.summary({"plan/seconds": seconds / workers})
        o.console.print(_terminal_table(table, workers))
        o.finish(
            f"What would {len(r.models)} models on {r.evaluation.task.dataset} cost?",
            f"For {describe(r.evaluation, len(r.models))}: a small batch of each model's crafting "
            "and transfer was timed on this device, and multiplied by what the store lacks.",
            [
                *_unbuilt(problems),
                *_sentences(config, r, table, untrained, bad, workers),
                *pilot.report(o, costs),
            ],
            _sections(table),
        )


def _sections(table: pl.DataFrame) -> list[Section]:
    """The page's tables: the work that is left, and the timings that it is computed from."""
    left = ("craft_seconds", "transfer_seconds", "adversarial_bytes", "outcome_bytes")
    timed = ("batch", "craft_ms_per_image", "transfer_ms_per_image", "peak_memory_bytes")
    return [
        Section(
            "What is left to do",
            ["Time and disk for what the store lacks, one model at a time on one such device."],
            {"": table.select("model", "images_to_craft", "sources_left", *left)},
        ),
        Section("Timings", (), {"": table.select("model", "params", "input_size", *timed)}),
    ]


def _costs(config: DictConfig, r: Run) -> tuple[dict[str, Cost], dict[str, str]]:
    """The cost of each model, and the problem of each that cannot be built, by name."""
    items = [Probe(model, config.plan.seconds) for model in r.models]
    found = r.stage("plan", _probe, items, len(items))
    for failure in r.failures:
        if not isinstance(failure.error, UserError):
            raise failure.error
    costs = {item.name: result.cost for item, result in found}
    return costs, {failure.model.name: str(failure.error) for failure in r.failures}


@dataclass(frozen=True)
class Probe:
    """A model, and about how many seconds its timing may take."""

    model: Model
    seconds: float

    @property
    def name(self) -> str:
        """The model's, for the display."""
        return self.model.name


@dataclass(frozen=True, kw_only=True)
class Probed(Result):
    """A model's cost."""

    cost: Cost


def _probe(context: tuple[Results, Runner, Any], item: Probe, advance: Advance) -> Probed:
    start = time.perf_counter()
    cost = probe(*context[:2], item.model, item.seconds, advance)
    return Probed(cost=cost, seconds=time.perf_counter() - start)


def _missing_pairs(r: Run, new: set[str]) -> dict[str, int]:
    """The number of sources that each target has not been evaluated on yet."""
    if new:  # models without weights, or a subset that will change, have no outcomes yet
        return {model.name: len(r.models) for model in r.models}
    return {name: len(left) for name, left in r.results.missing_sources(r.models).items()}


def cost_table(
    evaluation: Evaluation,
    members: list[Model],
    costs: dict[str, Cost],
    pairs: dict[str, int],
    problems: dict[str, str],
) -> pl.DataFrame:
    """A row a member: seconds and bytes for what the store lacks, on one device, one at a time.

    A member that could not be built has `model` and `problem` alone.
    """
    images, width = len(evaluation.subset), evaluation.bytes_per_value
    rows = []
    for member in members:
        if member.name in problems:
            rows.append({"model": member.name, "problem": problems[member.name]})
            continue
        cost = costs[member.name]
        rows.append(
            {
                "model": member.name,
                "params": cost.params,
                "input_size": cost.input_size,
                "batch": cost.batch,
                "craft_ms_per_image": cost.craft * 1000,
                "transfer_ms_per_image": cost.transfer * 1000,
                "images_to_craft": cost.uncrafted,
                "sources_left": pairs[member.name],
                "craft_seconds": cost.craft * cost.uncrafted,
                "transfer_seconds": cost.transfer * images * pairs[member.name],
                "adversarial_bytes": 3 * cost.input_size**2 * width * cost.uncrafted,
                "outcome_bytes": pilot.ROW_BYTES * images * pairs[member.name],
                "peak_memory_bytes": cost.memory,
                "problem": None,
            }
        )
    rows.sort(key=len, reverse=True)  # a full row first, for the order of the columns
    order = {member.name: i for i, member in enumerate(members)}
    table = pl.DataFrame(rows, schema_overrides={"problem": pl.String}, infer_schema_length=None)
    return table.sort(pl.col("model").replace_strict(order))


def _terminal_table(table: pl.DataFrame, workers: int) -> Table:
    printed = Table("model", title="What is left to do, on one such device")
    for name in ("pixels", "params", "craft", "transfer", "disk", "memory"):
        printed.add_column(name, justify="right")
    for row in table.to_dicts():
        if row["problem"]:
            printed.add_row(row["model"], *["cannot be built", "-", "-", "-", "-", "-"])
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


def _unbuilt(problems: dict[str, str]) -> list[str]:
    """A line for each model that cannot be built: its error names it."""
    return [f"Without {name}: {problem}" for name, problem in problems.items()]


def _sentences(
    config: DictConfig,
    r: Run,
    table: pl.DataFrame,
    untrained: list[str],
    bad: dict[str, str],
    workers: int,
) -> list[str]:
    craft = total(table, "craft_seconds") / workers
    transfer = total(table, "transfer_seconds") / workers
    views = {model.view for model in r.models}
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
