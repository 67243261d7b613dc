"""Do two runs, or two matrices, agree on which models are alike, and where do they differ most?

Over the models that both have: Pearson's r with its interval over models, the Mantel test, the
mean difference, and the pairs and models that differ most. Writes compare (the scatter with its
table of pairs), differences (a heatmap with its table), models.csv and report.html.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli import sat69
from experiments.cli.finish import finish, terminal
from experiments.cli.runs import file_info, tracked, used
from experiments.cli.study import described, family
from experiments.cli.values import positive_int
from netkin.analysis import matrix
from netkin.analysis.matrix import Matrix
from netkin.analysis.statistics import FEWEST, Association, associate, pearson, trend
from netkin.errors import UserError, and_more
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import scatter_figure
from netkin.report.study import Outputs, Section

ALIKE = 0.9
"""Pearson's r from which two matrices agree on which models are alike."""
RELATED = 0.05
"""Of the p-value below which two matrices are surely related."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    shown = positive_int(config.compare.pairs, "compare.pairs")
    positive_int(config.compare.permutations, "compare.permutations")
    a, b = (load(config, key, str(value)) for key, value in (("a", config.a), ("b", config.b)))
    names = tuple(name for name in a.names if name in b.names)
    if len(names) < 3:
        raise UserError(
            f"a={config.a} and b={config.b} share {len(names)} models, expected 3 or more (a has "
            f"{and_more(a.names, 3)}; b has {and_more(b.names, 3)})"
        )
    x, y = a.of(names).scores, b.of(names).scores
    association = associate(x, y, config.compare.permutations)
    pairs, models = pair_table(names, x, y), model_table(names, x, y)
    info = file_info(config, len(names), Path(str(config.a)).stem)
    with tracked(config, info) as tracker:
        outputs = Outputs(info.folder, tracker)
        outputs.table("models", models)
        if not np.isnan(association.pairs.r):
            tracker.summary({"compare/r": association.pairs.r})
        against = outputs.figure(
            "compare",
            scatter_figure(
                pairs["s_a"].to_numpy(),
                pairs["s_b"].to_numpy(),
                f"s, a = {config.a} (nats)",
                f"s, b = {config.b} (nats)",
                trend=trend(pairs["s_a"], pairs["s_b"]) if len(names) >= FEWEST else None,
                text=str(association),
            ),
            pairs,
            "The same pairs in both matrices. Line and band: least squares and the 90% confidence "
            "band of its mean for independent pairs.",
        )
        difference = np.where(np.eye(len(x), dtype=bool), 0.0, x - y)
        heatmap = outputs.figure(
            "differences",
            heatmap_figure(
                difference,
                names,
                list(map(family, names)),
                "s of a less s of b (nats)",
                signed=True,
            ),
            Matrix(names, difference).table(),
            "Differences of the scores, a less b; the diagonal is not compared.",
        )
        answer = [verdict(association), *differ_most(pairs, models), association.sentence()]
        most = {f"The {shown} pairs that differ most": pairs.head(shown), "Models": models}
        finish(
            *(outputs, terminal(), f"Do {config.a} and {config.b} agree on {len(names)} models?"),
            f"The scores of {pairs.height} pairs of models that are in both.",
            [*answer, *left_out(a, b, names)],
            [
                Section("One against the other", (), {}, [against]),
                Section("Where they differ", (), most, [heatmap]),
            ],
            described(used(config)),
        )


def left_out(a: Matrix, b: Matrix, names: tuple[str, ...]) -> list[str]:
    """How many models are in one of the two only."""
    return [
        f"{len(m.names) - len(names)} models are in {key} only and are left out."
        for key, m in (("a", a), ("b", b))
        if len(m.names) > len(names)
    ]


def load(config: DictConfig, key: str, value: str) -> Matrix:
    """The matrix that a key names: sat69, a run's folder with a similarity.csv, or a CSV file."""
    if value == "sat69":
        return sat69.load(config)[0]
    path = Path(value).expanduser()
    if path.is_dir():
        path = path / "similarity.csv"
        if not path.is_file():
            raise UserError(
                f"{key}={value} has no similarity.csv; name the folder of a run of "
                "experiment=pairwise, a CSV file of scores, or sat69"
            )
    return matrix.read(path, bool(config.symmetrise))


def pair_table(names: tuple[str, ...], x: NDArray, y: NDArray) -> pl.DataFrame:
    """A row a pair: a, b (models), s_a, s_b and their difference (nats); the largest first."""
    rows, columns = np.tril_indices(len(names), k=-1)
    table = pl.DataFrame(
        {
            "model": [names[i] for i in columns],
            "other": [names[i] for i in rows],
            "s_a": x[rows, columns],
            "s_b": y[rows, columns],
            "difference": x[rows, columns] - y[rows, columns],
        }
    )
    return table.sort(pl.col("difference").abs(), descending=True)


def model_table(names: tuple[str, ...], x: NDArray, y: NDArray) -> pl.DataFrame:
    """A row a model: mean difference to the others (nats), r of its row, nearest in each; those
    with the largest mean difference first."""
    n, rows = len(names), []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        rows.append(
            {
                "model": names[i],
                "mean_difference": float((x[i, others] - y[i, others]).mean()),
                "r": pearson(x[i, others], y[i, others]).r,
                "nearest_in_a": names[others[x[i, others].argmax()]],
                "nearest_in_b": names[others[y[i, others].argmax()]],
            }
        )
    table = pl.DataFrame(rows)
    return table.sort(pl.col("mean_difference").abs(), descending=True)


def verdict(association: Association) -> str:
    """Whether the two agree, with the variance that they share."""
    r, low, high = association.pairs.r, association.low, association.high
    if np.isnan(r) or association.models < FEWEST:
        return f"Not certain: {association.models} models are too few for a verdict."
    share = f"they share {r**2:.0%} of the variance of scores (r = {r:.2f})"
    if low >= ALIKE:
        return f"Yes, they agree on which models are alike: {share}."
    if association.test.p >= RELATED:
        return f"Not certain: {share}, which may be chance."
    if high >= ALIKE:
        return f"Not certain: {share}, which may be close agreement or not."
    return f"No, only in part: {share}."


def differ_most(pairs: pl.DataFrame, models: pl.DataFrame) -> list[str]:
    """The pairs and the model that differ most, and how many nearest relatives change."""
    mean = float(pairs["difference"].to_numpy().mean())
    parts = [
        f"{row['model']} and {row['other']} ({row['s_a']:.2f} in a, {row['s_b']:.2f} in b)"
        for row in pairs.head(3).iter_rows(named=True)
    ]
    first = models.row(0, named=True)
    changed = models.filter(pl.col("nearest_in_a") != pl.col("nearest_in_b")).height
    return [
        f"Scores of a are {abs(mean):.2f} {'higher' if mean >= 0 else 'lower'} than those of b on "
        f"average. They differ most for {', '.join(parts)}; of the models most for "
        f"{first['model']} (by {first['mean_difference']:+.2f} on average). {changed} of "
        f"{models.height} models have another nearest relative."
    ]
