"""What does `python evaluate.py` cost? Wall time and peak memory, in three states of the store.

Runs the real command as a process: with an empty store, with weights alone, and with everything.
Then one member (of the digits, the slowest) is attacked once more, for the share of that time that
the store takes: leases, checksums, flushed writes.
Writes benchmark.csv and store_overhead.csv into the run's folder. Peak memory is that of all its
processes together, as their proportional set sizes (a page that k processes share counts 1/k each).

Measured with the defaults (12 members, 500 images, PGD-50): see experiments/RESULTS.md.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import psutil
from omegaconf import DictConfig
from rich.console import Console

from experiments import setup
from netkin.errors import UserError
from netkin.store import write

ROOT = Path(__file__).parent.parent


def run(config: DictConfig) -> None:
    """The study; `benchmark.overrides` go to every run that is timed."""
    folder = setup.run_folder()
    console = Console(soft_wrap=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="netkin-benchmark-") as scratch:
        store = Path(scratch) / "store"
        for state in ("nothing cached", "weights cached", "everything cached"):
            if state == "weights cached":
                for entry in store.iterdir():
                    if entry.name != "weights":
                        shutil.rmtree(entry)
            console.print(f"{state}: running ...", highlight=False)
            overrides = [f"store.dir={store}", f"hydra.run.dir={scratch}/run"]
            seconds, memory = timed([*config.benchmark.overrides, *overrides])
            rows.append({"state": state, "seconds": seconds, "peak_memory_gib": memory})
            console.print(f"{state}: {seconds:.1f} s, {memory:.2f} GiB", highlight=False)
        overhead = store_overhead(config, f"store.dir={store}", Path(scratch) / "craft")
    said = ", ".join(f"{row['model']} {row['share_in_store']:.2%}" for row in overhead.to_dicts())
    console.print(f"share of crafting that the store takes: {said}", highlight=False)
    write(folder / "store_overhead.csv", overhead.write_csv)
    write(folder / "benchmark.csv", pl.DataFrame(rows).write_csv)
    console.print(f"Table    {folder / 'benchmark.csv'}", highlight=False)


def store_overhead(config: DictConfig, store: str, folder: Path) -> pl.DataFrame:
    """Craft benchmark.member anew, with another seed: model, seconds, shards, share_in_store."""
    name = config.benchmark.member
    given = [o for o in config.benchmark.overrides if not o.startswith("logger")]
    craft = ["experiment=craft", f"source=['{name}']", "attack.seed=1", "logger=csv"]
    timed([*given, *craft, store, f"hydra.run.dir={folder}"])
    found = dict(pl.read_csv(folder / "metrics.csv").select("name", "value").iter_rows())
    columns = ("seconds", "shards", "share_in_store")
    return pl.DataFrame({"model": name, **{key: found[f"craft/{key}/{name}"] for key in columns}})


def timed(overrides: list[str]) -> tuple[float, float]:
    """Run evaluate.py with overrides: (wall seconds, peak GiB of all its processes)."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, str(ROOT / "evaluate.py"), *overrides]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "WANDB_MODE": "offline"}
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.2)
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
    except psutil.Error:  # it ended while we looked
        pass
    return total
