"""What do the ensembles of all pairs cost, from stored logits? Time and peak memory.

Writes made-up logits as the clean pass stores them, and reads and adds them up in a process of its
own, as `experiment=ensemble` does. Writes ensemble_benchmark.csv. Peak memory is the process's
resident set, files that it has mapped among it.
"""

import multiprocessing
import resource
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import torch
from omegaconf import DictConfig
from safetensors import safe_open

from experiments.cli.finish import terminal
from experiments.cli.values import positive_int, run_folder
from netkin.analysis import ensemble
from netkin.jobs.progress import Bars
from netkin.store.files import write, write_tensors


def run(config: DictConfig) -> None:
    """The study: how long, and how much memory."""
    options, console = config.benchmark, terminal()
    for name in ("models", "images", "classes", "threads"):
        positive_int(options[name], f"benchmark.{name}")
    with tempfile.TemporaryDirectory(prefix="netkin-ensemble-") as scratch:
        files = []
        generator = torch.Generator().manual_seed(0)
        with Bars(console) as bars:
            bars.start("logits", ["files"], options.models)
            for model in range(options.models):
                files.append(Path(scratch) / f"{model}.safetensors")
                logits = torch.randn(options.images, options.classes, generator=generator)
                write_tensors(files[-1], {"logits": logits})
                bars.advance("logits", 1)
            bars.end("logits")
        # A fresh process, so that its peak is that of the ensembles alone.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory, pairs = pool.apply(timed, (files, options.images, options.threads))
    row = {
        **{name: options[name] for name in ("models", "images", "classes", "threads")},
        "pairs": pairs,
        "seconds": seconds,
        "peak_memory_gib": memory,
    }
    folder = run_folder()
    write(folder / "ensemble_benchmark.csv", pl.DataFrame([row]).write_csv)
    console.print(
        f"{pairs} pairs of {options.models} models, {options.images} images, {options.classes} "
        f"classes: {seconds:.1f} s with {options.threads} threads, {memory:.2f} GiB",
    )
    console.print(f"Table    {folder / 'ensemble_benchmark.csv'}")


def timed(files: list[Path], images: int, threads: int) -> tuple[float, float, int]:
    """(seconds, peak GiB, pairs) of the ensembles of all pairs of some stored logits."""
    start = time.perf_counter()
    labels = np.random.default_rng(0).integers(0, 2, images)
    pairs = ensemble.pairs_of(len(files))
    with ExitStack() as stack:
        parts = [stack.enter_context(safe_open(f, "np")).get_slice("logits") for f in files]
        ensemble.ensembles_correct(
            lambda block: np.stack([part[block] for part in parts]), labels, pairs, threads
        )
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, len(pairs)
