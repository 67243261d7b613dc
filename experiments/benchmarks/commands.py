"""What does `python evaluate.py` cost with an empty store, with weights alone, and with everything?

    python -m experiments.benchmarks.commands subset=quick

Arguments are overrides of every run. Prints a row a state: seconds and peak memory, the sum of the
proportional set sizes of all processes (a page that k processes share counts 1/k for each). Then,
of the run with weights alone, seconds by stage; and how small and how fast its adversarial images
are packed.

Measured with the defaults: experiments/results/speed.md and digits.md.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil

from netkin.store.files import pack, read_metadata, read_tensors, unpack
from netkin.store.inventory import identity

ROOT = Path(__file__).parents[2]


def timed(command: Sequence[str]) -> tuple[float, float]:
    """(wall seconds, peak GiB of all its processes) of a command."""
    start, peak = time.perf_counter(), 0
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
            sys.exit(f"the timed run failed ({process.returncode}):\n{log.read().decode()}")
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


def packing(store: Path) -> str:
    """How stored adversarial images are packed, in words: share of their bytes, and speeds."""
    size, packed, seconds = 0, 0, [0.0, 0.0]
    for file in store.glob("*/*/*/adversarial/*/*.safetensors"):
        tensors, views = read_tensors(file), file.parents[3] / "views"
        pixels = read_tensors(views / read_metadata(file)["view"] / file.name)["pixels"]
        clean = pixels[tensors["index"] % identity(file.parent)["shard_size"]]
        times = [time.perf_counter()]
        images = unpack(tensors["difference"], clean)
        times.append(time.perf_counter())
        packed += pack(images, clean).nbytes
        times.append(time.perf_counter())
        size += images.nbytes
        seconds = [total + b - a for total, a, b in zip(seconds, times, times[1:], strict=False)]
    reading, writing = (size / total / 1e6 for total in seconds)
    return (
        f"{size / 1e6:.0f} MB of adversarial images take {packed / size:.3f} of that: packed at "
        f"{writing:.0f} MB/s, unpacked at {reading:.0f}"
    )


def main(overrides: Sequence[str] | None = None) -> None:
    overrides = sys.argv[1:] if overrides is None else overrides
    rows = []
    with tempfile.TemporaryDirectory(prefix="netkin-benchmark-") as scratch:
        store = Path(scratch) / "store"
        for state in ("nothing stored", "weights stored", "everything stored"):
            if state == "weights stored":
                for entry in store.iterdir():
                    if entry.is_dir() and entry.name != "weights":
                        shutil.rmtree(entry)
            folder = Path(scratch) / state.split()[0]
            evaluate = [sys.executable, str(ROOT / "evaluate.py"), "logger=csv", *overrides]
            seconds, peak = timed([*evaluate, f"store.dir={store}", f"hydra.run.dir={folder}"])
            rows.append({"state": state, "seconds": seconds, "peak_memory_gib": peak})
            print(f"{state}: {seconds:.1f} s, {peak:.2f} GiB", flush=True)
        print(packing(store), flush=True)
        stages = pl.read_csv(Path(scratch) / "weights" / "stages.csv", glob=False)
    by = stages.group_by("stage", maintain_order=True)
    with pl.Config(tbl_rows=-1, float_precision=3):
        print(by.agg(pl.len().alias("models"), pl.sum("seconds")))


if __name__ == "__main__":
    main()
