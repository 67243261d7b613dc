"""How fast are craft and transfer, and what does `python evaluate.py` cost?

`speed` times the attack's step on full-size models with random weights and on members of the
dataset with trained ones: a bare loop, netkin in each precision and memory format, and other
libraries (`checks.speed`); then the target pass (`checks.passes`). Writes speed.csv,
bytes.csv (what fusing and precision do to the stored images) and transfer.csv.

`evaluate` runs the real command as a process: with an empty store, with weights alone, and with
everything stored. Then one member (the slowest of the digits) is attacked once more, to measure the
share of time spent in the store: leases, checksums, flushed writes. Writes benchmark.csv and
store_overhead.csv. Peak memory is the sum of the proportional set sizes of all processes (a page
that k processes share counts 1/k for each).

Measured with the defaults: see experiments/results/speed.md.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import passes, speed
from experiments.benchmarks.batch import correct_batch
from experiments.cli.devices import cores, device
from experiments.cli.finish import Terminal
from experiments.cli.keys import naming
from experiments.cli.members import build_members
from experiments.cli.setting import Opened, opened
from experiments.cli.values import lists, one_of, positive_int, run_folder
from netkin.attacks.units import fraction
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.jobs.results import Result
from netkin.model import Model
from netkin.run import Run
from netkin.store.files import write
from netkin.zoo.member import parse_members

ROOT = Path(__file__).parents[2]
PARTS = ("speed", "evaluate")


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    own = config.benchmark
    lists(own, "benchmark", "parts", "models", "overrides")
    for part in own.parts:
        one_of(part, PARTS, "benchmark.parts")
    positive_int(own.steps, "benchmark.steps")
    positive_int(own.rounds, "benchmark.rounds")
    if own.images != "auto":
        positive_int(own.images, "benchmark.images")
    check_models(config)
    tables: dict[str, pl.DataFrame] = {}
    with opened(config, build_members(config, at_least=0)) as o:
        if "speed" in own.parts:
            tables |= time_steps(config, o)
        if "evaluate" in own.parts:
            tables |= time_runs(config, o.console)
        folder = run_folder()
        for name, table in tables.items():
            write(folder / f"{name}.csv", table.write_csv)
            o.tracker.table(name, table)
            Terminal(max(o.console.width, 140)).print(_terminal_table(table), "")
        o.console.print(f"Tables   {folder}/{', '.join(f'{n}.csv' for n in tables)}")


def check_models(config: DictConfig) -> None:
    """Raises UserError for a model that timm does not have, or that is a member, too."""
    with naming({"members": "benchmark.models"}):
        models = parse_members(list(config.benchmark.models), at_least=0)
    names = {member.name for member in build_members(config, at_least=0)}
    for model in models:
        if model.name in names:
            raise UserError(
                f"{model.name} is in benchmark.models and in model.members: rows of one name "
                "cannot be told apart, so leave it out of one, or give the member another name"
            )


def time_steps(config: DictConfig, o: Opened) -> dict[str, pl.DataFrame]:
    """speed, bytes and transfer: craft and transfer of one batch, in this process."""
    own, on, r = config.benchmark, device(config), o.run
    images = (8 if on.type == "cpu" else 64) if own.images == "auto" else own.images
    members = r.clean() if r.models else []
    r.raise_failures()
    tables: dict[str, list[pl.DataFrame]] = {"speed": [], "bytes": [], "transfer": []}
    with Bars(o.console) as bars:
        torch.set_num_threads(cores())
        names = [*own.models, *(member.name for member in members)]
        bars.start("speed", names, len(names), "models")
        for name in own.models:
            rows, transfer = time_model(config, name, images, on)
            tables["speed"].append(rows)
            tables["transfer"].append(transfer)
            bars.advance("speed", 1)
            bars.finish("speed", name, Result())
        for member in members:
            rows, stored = time_member(config, r, member, on)
            tables["speed"].append(rows)
            tables["bytes"].append(stored)
            bars.advance("speed", 1)
            bars.finish("speed", member.name, Result())
        bars.end("speed")
    return {name: pl.concat(parts) for name, parts in tables.items() if parts}


def time_model(
    config: DictConfig, name: str, images: int, on: torch.device
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A full-size timm model with random weights on random images: rows of speed and transfer."""
    own = config.benchmark
    classifier, size = speed.with_random_weights(name, on.type)
    pixels = torch.rand(images, 3, size, size, device=on)
    labels = torch.arange(images, device=on)
    ways = speed.ways(classifier, pixels, labels, bool(own.compile))
    seconds = speed.timed(ways, own.rounds, own.steps)
    step = min(s for way, s in zip(ways, seconds, strict=True) if way.method == "craft")
    rows = speed.rates(name, ways, seconds, images)
    return rows, passes.target_pass(classifier, size, images, own.rounds, step)


def time_member(
    config: DictConfig, r: Run, member: Model, on: torch.device
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A member of the dataset on images that it classifies correctly: rows of speed and bytes."""
    own, eps = config.benchmark, fraction(config.dataset.eps, "dataset.eps")
    batch = correct_batch(r.results, member, r.runner.batch_size, on)
    ways = speed.ways(batch.classifier, batch.pixels, batch.labels, bool(own.compile))
    seconds = speed.timed(ways, own.rounds, own.steps)
    stored = speed.differing(
        member.name, batch.classifier, batch.clean, batch.labels, eps, speed.STEPS
    )
    return speed.rates(member.name, ways, seconds, len(batch.labels)), stored


HEADINGS = {
    "memory_format": "format",
    "images_per_second": "images/s",
    "times_bare_loop": "x bare",
    "times_torchattacks_style": "x torchattacks",
}


def _terminal_table(table: pl.DataFrame) -> Table:
    """A table for a terminal."""
    names = [HEADINGS.get(name, name.replace("_", " ")) for name in table.columns]
    out = Table(*names, box=None, pad_edge=False)
    for row in table.rows():
        out.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    return out


def time_runs(config: DictConfig, console: Console) -> dict[str, pl.DataFrame]:
    """benchmark and store_overhead; `benchmark.overrides` go to every run that is timed."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="netkin-benchmark-") as scratch:
        store = Path(scratch) / "store"
        for state in ("nothing cached", "weights cached", "everything cached"):
            if state == "weights cached":
                for entry in store.iterdir():
                    if entry.is_dir() and entry.name != "weights":
                        shutil.rmtree(entry)
            console.print(f"{state}: running ...")
            overrides = [f"store.dir={store}", f"hydra.run.dir={scratch}/run"]
            seconds, memory = timed([*config.benchmark.overrides, *overrides])
            rows.append({"state": state, "seconds": seconds, "peak_memory_gib": memory})
            console.print(f"{state}: {seconds:.1f} s, {memory:.2f} GiB")
        overhead = store_overhead(config, f"store.dir={store}", Path(scratch) / "craft")
    shares = ", ".join(f"{row['model']} {row['share_in_store']:.2%}" for row in overhead.to_dicts())
    console.print(f"share of crafting time spent in the store: {shares}")
    return {"benchmark": pl.DataFrame(rows), "store_overhead": overhead}


def store_overhead(config: DictConfig, store: str, folder: Path) -> pl.DataFrame:
    """Craft benchmark.member again with another seed: model, seconds, shards, share_in_store."""
    name = config.benchmark.member
    given = [o for o in config.benchmark.overrides if not o.startswith("logger")]
    craft = ["experiment=craft", f"source=['{name}']", "attack.seed=1", "logger=csv"]
    timed([*given, *craft, store, f"hydra.run.dir={folder}"])
    stages = pl.read_csv(folder / "stages.csv", glob=False).filter(stage="craft", model=name)
    return stages.select("model", "seconds", "shards", "share_in_store")


def timed(overrides: list[str]) -> tuple[float, float]:
    """Run evaluate.py with overrides: (wall seconds, peak GiB of all its processes)."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, str(ROOT / "evaluate.py"), *overrides]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "WANDB_MODE": "offline"}
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            peak = max(peak, memory(process))
            # Reading the sizes takes 50 ms.
            with suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
                process.wait(1.0)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"the timed run failed ({process.returncode}): {lines[-1:]}")
    return seconds, peak / 2**30


def memory(process: psutil.Process) -> int:
    """Bytes that a process and its descendants hold."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_full_info().pss if psutil.LINUX else one.memory_info().rss
    except psutil.Error:  # it has ended meanwhile
        pass
    return total
