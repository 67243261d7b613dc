"""What does `python evaluate.py` cost with an empty store, with weights alone, and with everything?

    python -m experiments.benchmarks.commands subset=quick

Arguments are overrides of every run. Prints a row a state: seconds and peak memory, the sum of the
proportional set sizes of all processes (a page that k processes share counts 1/k for each). Then,
of the run with weights alone, seconds by stage.

Measured with the defaults: experiments/results/speed.md and digits.md.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil

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


def states(folder: Path, overrides: Sequence[str] = ()) -> Iterator[tuple[str, float, float, Path]]:
    """(state, seconds, peak GiB, folder of its outputs) of three runs on one store in a folder."""
    store = folder / "store"
    for state in ("nothing", "weights", "everything"):
        if state == "weights":
            for entry in store.iterdir():
                if entry.is_dir() and entry.name != "weights":
                    shutil.rmtree(entry)
        evaluate = [sys.executable, str(ROOT / "evaluate.py"), "logger=csv", *overrides]
        outputs = folder / state
        seconds, peak = timed([*evaluate, f"store.dir={store}", f"hydra.run.dir={outputs}"])
        print(f"{state} stored: {seconds:.1f} s, {peak:.2f} GiB", flush=True)
        yield state, seconds, peak, outputs


def main(overrides: Sequence[str] | None = None) -> None:
    overrides = sys.argv[1:] if overrides is None else overrides
    with tempfile.TemporaryDirectory(prefix="netkin-benchmark-") as scratch:
        for state, _, _, outputs in states(Path(scratch), overrides):
            if state == "weights":
                stages = pl.read_csv(outputs / "stages.csv", glob=False)
    by = stages.group_by("stage", maintain_order=True)
    with pl.Config(tbl_rows=-1, float_precision=3):
        print(by.agg(pl.len().alias("models"), pl.sum("seconds")))


if __name__ == "__main__":
    main()
