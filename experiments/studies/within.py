"""How similar are models of one architecture, compared with all models? (Tab. D.1)

Groups are families, or those of the key `groups`, or separate matrices (`within.matrices`, such as
those of `model=resnet50_regimes`). Writes within (Tab. D.1 as a figure, with its table) and
report.html.

On the published matrix: mean of all 2,346 pairs 2.665.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import bases_of
from experiments.cli.study import Study, study
from experiments.cli.values import naming
from netkin.analysis import matrix
from netkin.analysis.groups import Mean, groups, mean_between, mean_within
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.analysis.verdict import verdict
from netkin.errors import UserError
from netkin.report.plots import intervals_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.similarity import ALWAYS, interval

ALL = "all models"
BETWEEN = "different groups"
FAMILIES_UP_TO = 12
"""Families that are the groups; where there are more, base architectures are."""
NAMED = 8
"""Groups in the answer."""
ENDS = ("models_low", "models_high")
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    with study(config) as s:
        with naming({"group": "groups: group"}):
            chosen = groups(config.groups, s.names, kinds(s))
        apart = {
            str(name): matrix.read(path, bool(config.symmetrise))
            for name, path in (config.within.matrices or {}).items()
        }
        if clash := sorted({*chosen} & {*apart}):
            raise UserError(f"groups and within.matrices both name {', '.join(clash)}")
        table = means(s, chosen, apart)
        named = table.filter(~pl.col("group").is_in([ALL, BETWEEN]))
        totals = table.filter(pl.col("group").is_in([ALL, BETWEEN])).select("group", "mean").rows()
        s.tracker.summary({f"similarity/{group}": mean for group, mean in totals})
        picture = s.outputs.figure(
            "within",
            intervals_figure(
                table["group"].to_list(),
                pair_values(s, chosen, apart, table["group"].to_list()),
                table["mean"].to_numpy(),
                table.select("images_low", "images_high").to_numpy().astype(float),
                table.select("models_low", "models_high").to_numpy().astype(float),
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
            [Section("Within groups, and all (Tab. D.1)", (), {"Means": table}, [picture])],
        )


def kinds(s: Study) -> list[str]:
    """What the models are grouped by: families, or base architectures where there are too many
    families to tell apart."""
    return s.families if len({*s.families}) <= FAMILIES_UP_TO else bases_of(s)


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
    if (
        chosen
        and (between := mean_between(s.scores, labels_of(s, chosen), draws, limits)) is not None
    ):
        rows.append(_row(BETWEEN, between))
    rows.append(_row(ALL, everything))
    ends = ("_low", "_high")
    schema = {
        **{"group": pl.String, "models": pl.Int64, "pairs": pl.Int64, "mean": pl.Float64},
        **{f"{of}{end}": pl.Float64 for of in ("images", "models") for end in ends},
        **{f"minus_all{end}": pl.Float64 for end in ("", *ends)},
    }
    return pl.DataFrame(rows, schema=schema)


def labels_of(s: Study, chosen: dict[str, list[int]]) -> NDArray[np.intp]:
    """The group of each model, [N]; models of no group have one each of their own."""
    labels = np.arange(len(s.names)) + len(chosen)
    for i, models in enumerate(chosen.values()):
        labels[models] = i
    return labels


def pair_values(
    s: Study, chosen: dict[str, list[int]], apart: dict[str, Matrix], names: list[str]
) -> list[NDArray]:
    """The scores of the pairs of each group of the table of means, in nats."""
    labels, lower = labels_of(s, chosen), np.tri(len(s.names), k=-1, dtype=bool)
    same = labels[:, None] == labels
    values = {name: s.scores[lower & same & (labels == i)] for i, name in enumerate(chosen)}
    values |= {name: off_diagonal(own.scores) for name, own in apart.items()}
    values |= {ALL: s.scores[lower], BETWEEN: s.scores[lower & ~same]}
    return [values[name] for name in names]


def _row(name: str, mean: Mean) -> dict[str, Any]:
    row: dict[str, Any] = {"group": name, "models": mean.models, "pairs": mean.pairs}
    row["mean"] = mean.mean
    for of, ends in (("images", mean.images), ("models", mean.models_interval)):
        row[f"{of}_low"], row[f"{of}_high"] = ends or (None, None)
    return row


def _pair_means(draws: NDArray, models: Any) -> NDArray:
    block = draws[:, list(models)][:, :, list(models)]
    rows, columns = np.tril_indices(block.shape[1], k=-1)
    return block[:, rows, columns].mean(axis=1)


def answer(table: pl.DataFrame, named: pl.DataFrame) -> list[str]:
    """The findings, the verdict first: by the pairs' means, and their interval over models."""
    everything = table.filter(group=ALL).row(0, named=True)
    what = f"all {everything['pairs']:,} pairs" if everything["pairs"] > 1 else "the only pair"
    overall = text("overall", what=what, mean=everything["mean"])
    if named.is_empty():
        return [text("no_groups"), overall]
    sentences = [
        text(
            "group",
            relative="" if row["minus_all_low"] is None else text("relative", **row),
            **row,
        )
        for row in named.sort("mean", descending=True).head(NAMED).iter_rows(named=True)
    ]
    if named.height > NAMED:
        sentences.append(text("more", n=named.height - NAMED))
    listed, between = " ".join(sentences), table.filter(group=BETWEEN)
    if between.is_empty():
        return [text("one_group"), overall, listed]
    other = between.row(0, named=True)
    inside = float(np.average(named["mean"], weights=named["pairs"]))
    ends = [None if other[end] is None else inside - other[end] for end in ENDS]
    decided = text(
        "verdict",
        verdict=verdict(inside - other["mean"], (ends[1], ends[0])),
        inside=inside,
        other=other["mean"],
        factor=np.exp(inside - other["mean"]),
        above=named.filter(pl.col("mean") > other["mean"]).height,
        groups=named.height,
    )
    return [decided, overall, listed]
