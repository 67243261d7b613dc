"""What do 12 to 1,000 models cost, beside the models' own passes? Time and memory by stage.

    python -m experiments.benchmarks.scale --models 12 69 200 1000

Made-up outcomes of N clustered models, in a process of its own for each N: scores, controls,
intervals, family means, clusters, and then the tables, figures and page of `experiment=pairwise`,
in a folder of their own. Peak memory is the process's resident set since its start, files that it
has mapped among it.

On two CPU cores: experiments/results/landmarks.md.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin import similarity
from netkin.analysis import clusters, landmarks
from netkin.analysis.groups import Draws
from netkin.comparison import relate
from netkin.report.study import Outputs
from netkin.results import outcome_array
from netkin.similarity import Outcomes

FAMILY = 13
"""Models of a family, about as in timm."""


def alone(function: Callable, *arguments: Any) -> Any:
    """The result of a function in a fresh process, so that the peak of memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def made_up(models: int, images: int, seed: int = 0) -> tuple[Outcomes, list[str]]:
    """Outcomes of clustered models, and their families: the nearer two families are on a circle,
    the more often their models fool each other."""
    rng = np.random.default_rng(seed)
    family = np.arange(models) * max(models // FAMILY, 3) // models
    angle = 2 * np.pi * family / (family.max() + 1) + rng.normal(0, 0.1, models)
    near = np.exp(2 * (np.cos(angle[:, None] - angle) - 1))
    strength, brittle = rng.uniform(0.6, 1.4, (2, models))
    rate = 0.05 + 0.35 * near + 0.15 * (family[:, None] == family)
    rate *= strength[:, None] * brittle
    hard = rng.uniform(0.2, 1.8, images).astype(np.float32)
    fooled = outcome_array((models, models, images))
    for a in range(models):
        chance = rng.random((models, images), dtype=np.float32)
        fooled[a] = chance < rate[a, :, None].astype(np.float32) * hard
        fooled[a, a] = True
    names = tuple(f"family{f:02d}_model{i:04d}" for i, f in enumerate(family))
    return Outcomes(
        names,
        tuple(f"image/{i:05d}" for i in range(images)),
        rng.random((models, images)) < 0.8,
        fooled,
        rng.random((models, images)) < 0.05 * brittle[:, None],
    ), [f"family{f:02d}" for f in family]


def timed(
    models: int, images: int, draws: int, chosen: int, folder: Path
) -> list[tuple[str, float, float, float]]:
    """(stage, seconds, seconds of CPU time, peak GiB) of made-up models; writes their page."""
    rows = []

    def stage(name: str, function: Callable[[], Any]) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        result = function()
        times = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append((name, *times, peak))
        return result

    outcomes, families = stage("outcomes", lambda: made_up(models, images))
    scores = stage("scores", lambda: similarity.smoothed_matrix(outcomes))
    drawn = Draws(outcomes, draws)
    kinds = dict(zip(outcomes.members, families, strict=True))
    sizes = [25_000_000] * models, [224] * models
    title = f"How related are {models} made-up models?"
    result = stage(
        "scores, confounders, intervals and answer",
        lambda: relate(title, title, outcomes, drawn, kinds, *sizes),
    )
    k = clusters.choose_k(None, scores)[0]
    stage("clusters", lambda: clusters.spectral(scores, k))
    stage(f"{chosen} landmarks", lambda: predicted(scores, chosen))
    outputs = Outputs(folder)
    sections = stage("tables and figures", lambda: result.write(outputs))
    stage("page", lambda: outputs.report(title, title, result.answer, sections, ""))
    return rows


def predicted(scores: NDArray[np.float64], number: int) -> landmarks.Completed:
    """All scores, predicted from those with random models."""
    drawn = np.random.default_rng(0).choice(len(scores), number, replace=False)
    return landmarks.complete(scores, drawn.tolist())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory of many made-up models.")
    parser.add_argument("--models", type=int, nargs="*", default=[40])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000, help="of images, for intervals")
    parser.add_argument("--landmarks", type=int, default=6, help="that predict other scores")
    parser.add_argument("--out", type=Path, default=Path("scale"), help="a folder for the pages")
    options = parser.parse_args(arguments)
    for n in options.models:
        folder = options.out / str(n)
        rows = alone(timed, n, options.images, options.draws, options.landmarks, folder)
        table = pl.DataFrame(rows, ["stage", "seconds", "cpu_seconds", "peak_gib"], orient="row")
        table.write_csv(folder / "scale.csv")
        size = (folder / "report.html").stat().st_size / 1e6
        sums = table.select(pl.sum("seconds", "cpu_seconds"), pl.max("peak_gib")).row(0)
        print("{} models: {:.1f} s, {:.1f} s of CPU, {:.2f} GiB; page".format(n, *sums), end="")
        print(f" {size:.1f} MB")
        with pl.Config(tbl_rows=-1, float_precision=2):
            print(table)


if __name__ == "__main__":
    main()
