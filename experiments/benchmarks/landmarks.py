"""How many landmarks predict a matrix? Hidden scores against predicted ones, over random landmarks.

    python -m experiments.benchmarks.landmarks scores.csv --landmarks 10 20 30 --draws 20

Prints and writes a row a number of landmarks, means over the draws: R2, r and mean absolute error
of hidden scores, the share of them that have intervals, of these the share inside, and of the 5%
highest; the share of nearest relatives found; and what the run states itself.
On the published 69 models: experiments/results/landmarks.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from netkin.analysis import matrix
from netkin.analysis.landmarks import complete
from netkin.analysis.matrix import Matrix


def draw(scores: Matrix, landmarks: int, seed: int, level: float) -> dict[str, float | str]:
    """One draw of landmarks: a row."""
    chosen = np.random.default_rng(seed).choice(len(scores.names), landmarks, replace=False)
    found = complete(scores.scores, sorted(chosen.tolist()), level, seed)
    row = {"landmarks": landmarks, "seed": seed, **found.against(scores.scores)}
    held = found.held_out
    run = {"r2": held.r2, "highest": held.highest_covered, "nearest": held.nearest_found.mean()}
    return {**row, **{f"run_{of}": value for of, value in run.items()}, "verdict": found.verdict}


def means(rows: pl.DataFrame) -> pl.DataFrame:
    """A row a number of landmarks: means, the lowest R2, extremes of coverage, and verdicts."""
    verdicts = [(pl.col("verdict") == v).sum().alias(v) for v in ("Yes", "Not certain", "No")]
    return rows.group_by("landmarks", maintain_order=True).agg(
        pl.len().alias("draws"),
        pl.mean("r2", "r", "error", "with_interval", "coverage", "coverage_of_highest"),
        pl.mean("nearest_found", "run_r2", "run_highest", "run_nearest"),
        pl.col("r2").min().alias("lowest_r2"),
        pl.col("coverage").min().alias("lowest_coverage"),
        pl.col("coverage").max().alias("highest_coverage"),
        *verdicts,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scores", help="a CSV file of scores of all pairs")
    parser.add_argument("--landmarks", type=int, nargs="+", default=[5, 6, 7, 8])
    parser.add_argument("--draws", type=int, default=5, help="of each number of landmarks")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--level", type=float, default=0.9, help="of the intervals")
    parser.add_argument("--out", type=Path, help="a CSV file for the rows of all draws")
    options = parser.parse_args(arguments)
    scores = matrix.read(options.scores)
    seeds = range(options.seed, options.seed + options.draws)
    rows = pl.DataFrame(
        [draw(scores, m, k, options.level) for m in options.landmarks for k in seeds]
    )
    if options.out:
        rows.write_csv(options.out)
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=200, float_precision=3):
        print(means(rows))


if __name__ == "__main__":
    main()
