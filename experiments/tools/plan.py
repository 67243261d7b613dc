"""What will a run cost, and what does it lack? Answers before any model is attacked.

Checks weights, labels and every image, times one small batch of each member's craft and transfer
steps on this device, and computes time, disk and memory for what the store lacks.

A model that cannot be built gets a row with the reason, and the others are timed. The exit code is
0 then, as for unreadable images: this study reports both, and only the run itself stops at them.
"""

import shutil
import time
from dataclasses import dataclass, replace

import polars as pl
from omegaconf import DictConfig
from rich.table import Table

from experiments.cli.devices import build_jobs, members_at_once
from experiments.cli.finish import finish, print_notes, terminal
from experiments.cli.members import build_members, build_training, unreadable
from experiments.cli.runs import run_info, tracked
from experiments.cli.sequential import rule
from experiments.cli.setting import build_setting, check_sources, prepare
from experiments.cli.study import describe, described
from experiments.cli.values import positive, whole_numbers
from experiments.tools import pilot
from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.jobs.results import Result
from netkin.passes.probe import Cost, probe
from netkin.passes.setting import Setting
from netkin.passes.stored import missing_sources
from netkin.report.study import Outputs, Section
from netkin.report.text import and_more, duration, size
from netkin.training.weights import is_trained
from netkin.zoo.member import Member


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    whole_numbers(config.plan.devices, "plan.devices")
    setting = build_setting(config)
    members = build_members(config)
    info = run_info(config, setting, len(members))
    console = terminal()
    print_notes(console, setting.images.notes)
    with tracked(config, info) as tracker:
        with Bars(console) as bars:
            check_sources(setting, members, members)
            setting = prepare(config, setting, members, bars, checked=False)
            bad = unreadable(setting.images, setting.subset.positions, "images", bars)
            readable = replace(setting, subset=setting.subset.without(bad))
            training = build_training(config, setting, members, bars)
            untrained = [m.name for m in members if training and not is_trained(training, m)]
            if training and untrained:
                images = training.images
                bad |= unreadable(images, range(len(images.ids)), "training images", bars)
            costs, problems = _costs(config, readable, members, bars)
        pairs = _missing_pairs(setting, members, {*untrained} | {*bad})
        table = cost_table(setting, members, costs, pairs, problems)
        outputs = Outputs(info.folder, tracker)
        outputs.table("plan", table)
        workers = members_at_once(config)
        seconds = total(table, "craft_seconds") + total(table, "transfer_seconds")
        tracker.summary({"plan/seconds": seconds / workers})
        stop, images = rule(config), []
        if stop is not None:
            images = pilot.report(config, setting, members, costs, stop, outputs)
        console.print(_terminal_table(table, workers))
        finish(
            outputs,
            console,
            f"What would {len(members)} models on {setting.task.dataset} cost?",
            f"For {describe(setting, len(members))}: a small batch of each model's crafting and "
            "transfer was timed on this device, and multiplied by what the store lacks.",
            [
                *_unbuilt(problems),
                *_sentences(config, setting, table, untrained, bad, workers),
                *images,
            ],
            _sections(table),
            described(config),
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


def _costs(
    config: DictConfig, setting: Setting, members: list[Member], bars: Bars
) -> tuple[dict[str, Cost], dict[str, str]]:
    """The cost of each member, and the problem of each that cannot be built, by name."""
    problems: dict[str, str] = {}

    def failed(member: Member, error: Exception) -> None:
        if not isinstance(error, UserError):
            raise error
        problems[member.name] = str(error)

    seconds = positive(config.plan.seconds, "plan.seconds")
    context = (setting, seconds)
    with build_jobs(config, context, bars, ("netkin.passes.probe",)) as jobs:
        results = jobs.run("plan", _probe, members, len(members), failed)
        return {member.name: result.cost for member, result in results}, problems


@dataclass(frozen=True, kw_only=True)
class Probed(Result):
    """A member's cost."""

    cost: Cost


def _probe(context: tuple[Setting, float], member: Member, advance: Advance) -> Probed:
    start = time.perf_counter()
    cost = probe(context[0], member, context[1], advance)
    return Probed(cost=cost, seconds=time.perf_counter() - start)


def _missing_pairs(setting: Setting, members: list[Member], new: set[str]) -> dict[str, int]:
    """The number of sources that each target has not been evaluated on yet."""
    if new:  # members without weights, or a subset that will change, have no outcomes yet
        return {member.name: len(members) for member in members}
    left = {target.name: len(target.sources) for target in missing_sources(setting, members)}
    return {member.name: left.get(member.name, 0) for member in members}


def cost_table(
    setting: Setting,
    members: list[Member],
    costs: dict[str, Cost],
    pairs: dict[str, int],
    problems: dict[str, str],
) -> pl.DataFrame:
    """A row a member: seconds and bytes for what the store lacks, on one device, one at a time.

    A member that could not be built has `model` and `problem` alone.
    """
    images, width = len(setting.subset), pilot.width(setting)
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
    setting: Setting,
    table: pl.DataFrame,
    untrained: list[str],
    bad: dict[str, str],
    workers: int,
) -> list[str]:
    craft = total(table, "craft_seconds") / workers
    transfer = total(table, "transfer_seconds") / workers
    views = {setting.view(m) for m in build_members(config)}
    decoded = sum(3 * view.input_size**2 for view in views) * len(setting.subset)
    need = total(table, "adversarial_bytes") + total(table, "outcome_bytes") + decoded
    free = shutil.disk_usage(setting.store.root).free
    sentences = [
        f"Crafting takes {duration(craft)}, transfer {duration(transfer)}"
        f"{f' with {workers} workers' if workers > 1 else ''}. In all: "
        + ", ".join(
            f"{duration((craft + transfer) / n)} on {n} device{'s' * (n > 1)}"
            for n in config.plan.devices
        )
        + ". At most, since models are attacked only on images that they classify correctly.",
        f"Disk: {size(need)} at most in {setting.store.root} ({size(decoded)} of it the decoded "
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
            f"No weights, labels or images are missing ({len(setting.subset)} images)."
        )
    return sentences


def total(table: pl.DataFrame, column: str) -> float:
    """The sum of a column; 0 where no model has it."""
    return float(table[column].sum()) if column in table.columns else 0.0
