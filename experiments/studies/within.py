"""How similar are models of one architecture, compared with all models? (Tab. D.1.)

Groups are families, or those of the key `groups`, or separate matrices (`within.matrices`, such as
those of `model=resnet50_regimes`). Writes within (Tab. D.1 as a figure, with its table)
and report.html.

On the published matrix: mean of all 2,346 pairs 2.665.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import bases_of
from experiments.cli.keys import naming
from experiments.cli.study import Study, study
from netkin.analysis import matrix
from netkin.analysis.groups import Mean, groups, mean_between, mean_within
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.errors import UserError
from netkin.report.plots import intervals_figure
from netkin.report.study import Section
from netkin.similarity import ALWAYS, interval

ALL = "all models"
BETWEEN = "different groups"
FAMILIES_UP_TO = 12
"""Families that are the groups; where there are more, base architectures are."""
WORDS = 8
"""Groups in the answer."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    with study(config) as s:
        with naming({"group": "groups: group"}):
            chosen = groups(config.groups, s.names, kinds(s))
        apart = own_matrices(config)
        if clash := sorted({*chosen} & {*apart}):
            raise UserError(f"groups and within.matrices both name {', '.join(clash)}")
        table = means(s, chosen, apart)
        named = table.filter(~pl.col("group").is_in([ALL, BETWEEN]))
        s.tracker.summary(
            {
                f"similarity/{group}": mean
                for group, mean in table.select("group", "mean").iter_rows()
                if group in (ALL, BETWEEN)
            }
        )
        figure = s.outputs.figure(
            "within",
            intervals_figure(
                table["group"].to_list(),
                pair_values(s, chosen, apart, table["group"].to_list()),
                table["mean"].to_numpy(),
                _columns(table, "images"),
                _columns(table, "models"),
                table.filter(group=ALL)["mean"].item(),
                "similarity s (nats)",
            ),
            table,
            "The pairs of each group, and their mean. Thin: 95% interval over models "
            "(jackknife, from 3 models on; cut to ln eps_s and ln 100, between which s lies)"
            f"{'; thick: over images' if s.measured else ''}.",
        )
        s.finish(
            "Are models of one kind more similar than others?",
            f"Mean similarity of the pairs within each group, compared with all pairs: {s.source}.",
            answer(table, named),
            [Section("Within groups, and all (Tab. D.1)", (), {"Means": table}, [figure])],
        )


def kinds(s: Study) -> list[str]:
    """What the models are grouped by: families, or base architectures where there are too many
    families to tell apart."""
    return s.families if len({*s.families}) <= FAMILIES_UP_TO else bases_of(s)


def own_matrices(config: DictConfig) -> dict[str, Matrix]:
    """The groups that have separate matrices."""
    return {
        str(name): matrix.read(path, bool(config.symmetrise))
        for name, path in (config.within.matrices or {}).items()
    }


def means(s: Study, chosen: dict[str, list[int]], apart: dict[str, Matrix]) -> pl.DataFrame:
    """A row per group, and rows for all pairs and for pairs of different groups."""
    draws = s.draws()
    rows: list[dict[str, Any]] = []
    limits = (float(np.log(s.config.score.eps_s)), ALWAYS)
    everything = mean_within(s.scores, draws, limits)
    all_draws = None if draws is None else _pair_means(draws, range(len(s.names)))
    for name, models in chosen.items():
        block = np.ix_(models, models)
        own = None if draws is None else draws[:, models][:, :, models]
        row = _row(name, mean_within(s.scores[block], own, limits))
        row["minus_all"] = row["mean"] - everything.mean
        if draws is not None and all_draws is not None:
            ends = interval(_pair_means(draws, models) - all_draws)
            row |= dict(zip(("minus_all_low", "minus_all_high"), ends, strict=True))
        rows.append(row)
    for name, own_matrix in apart.items():
        row = _row(name, mean_within(own_matrix.scores, limits=limits))
        rows.append({**row, "minus_all": row["mean"] - everything.mean})
    kinds = np.arange(len(s.names)) + len(chosen)
    for i, models in enumerate(chosen.values()):
        kinds[models] = i
    if chosen and (between := mean_between(s.scores, kinds, draws, limits)) is not None:
        rows.append(_row(BETWEEN, between))
    rows.append(_row(ALL, everything))
    ends = ("_low", "_high")
    schema = {
        **{"group": pl.String, "models": pl.Int64, "pairs": pl.Int64, "mean": pl.Float64},
        **{f"{of}{end}": pl.Float64 for of in ("images", "models") for end in ends},
        **{f"minus_all{end}": pl.Float64 for end in ("", *ends)},
    }
    return pl.DataFrame(rows, schema=schema)


def pair_values(
    s: Study, chosen: dict[str, list[int]], apart: dict[str, Matrix], names: list[str]
) -> list[NDArray]:
    """The scores of the pairs of each group of the table of means, in nats."""
    kinds = np.arange(len(s.names)) + len(chosen)
    for i, models in enumerate(chosen.values()):
        kinds[models] = i
    rows, columns = np.tril_indices(len(s.names), k=-1)
    scores, apart_from = s.scores[rows, columns], kinds[rows] != kinds[columns]
    values = {name: scores[(kinds[rows] == kinds[columns]) & (kinds[rows] == i)]
              for i, name in enumerate(chosen)}  # fmt: skip
    values |= {name: off_diagonal(own.scores) for name, own in apart.items()}
    values |= {ALL: scores, BETWEEN: scores[apart_from]}
    return [values[name] for name in names]


def _row(name: str, mean: Mean) -> dict[str, Any]:
    return {
        "group": name,
        "models": mean.models,
        "pairs": mean.pairs,
        "mean": mean.mean,
        **_ends("images", mean.images),
        **_ends("models", mean.models_interval),
    }


def _ends(name: str, ends: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = ends or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _pair_means(draws: NDArray, models: Any) -> NDArray:
    block = draws[:, list(models)][:, :, list(models)]
    rows, columns = np.tril_indices(block.shape[1], k=-1)
    return block[:, rows, columns].mean(axis=1)


def _columns(table: pl.DataFrame, name: str) -> NDArray:
    """[rows, 2] interval ends, NaN where there is none."""
    return table.select(f"{name}_low", f"{name}_high").to_numpy().astype(float)


def answer(table: pl.DataFrame, named: pl.DataFrame) -> list[str]:
    """The findings in words, the verdict first."""
    everything = table.filter(group=ALL).row(0, named=True)
    all_pairs = f"all {everything['pairs']:,} pairs" if everything["pairs"] > 1 else "the only pair"
    overall = f"The mean similarity of {all_pairs} is {everything['mean']:.2f}."
    if named.is_empty():
        text = "Not certain: no group has two models; name some with groups={name: [members]}."
        return [text, overall]
    ranked = named.sort("mean", descending=True)
    sentences = []
    for row in ranked.head(WORDS).iter_rows(named=True):
        words = f"{row['group']}: {row['mean']:.2f} over {row['pairs']} pair"
        words += "s" if row["pairs"] != 1 else ""
        if row["minus_all_low"] is not None:
            words += (
                f", {row['minus_all']:+.2f} relative to all (95% interval over images "
                f"{row['minus_all_low']:.2f} to {row['minus_all_high']:.2f})"
            )
        sentences.append(f"{words}.")
    if ranked.height > WORDS:
        sentences.append(f"The table has {ranked.height - WORDS} more groups.")
    return [verdict(table, named), overall, " ".join(sentences)]


def verdict(table: pl.DataFrame, named: pl.DataFrame) -> str:
    """Whether models within a group are more similar than models of different groups, by the
    pairs' means and their intervals over models."""
    inside = float(np.average(named["mean"], weights=named["pairs"]))
    between = table.filter(group=BETWEEN)
    if between.is_empty():
        return "Not certain: there is one group, so nothing to compare it with."
    other = between.row(0, named=True)
    factor = np.exp(inside - other["mean"])
    text = (
        f"a pair within a group has {inside:.2f} on average, a pair of different groups "
        f"{other['mean']:.2f}, a factor of {factor:.1f} in how often they fool each other"
    )
    above = named.filter(pl.col("mean") > other["mean"]).height
    text += f"; {above} of {named.height} groups are above that."
    if other["models_high"] is None or other["models_low"] <= inside <= other["models_high"]:
        return f"Not certain: {text}"
    return f"{'Yes' if inside > other['mean'] else 'No'}: {text}"
