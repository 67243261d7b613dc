"""How similar are models of one architecture, compared with all models? (Tab. D.1)

Groups are families, or those of the key `groups`, or separate matrices (`within.matrices`, such as
those of `model=resnet50_regimes`). Writes within (Tab. D.1 as a figure, with its table) and
report.html.

On the published matrix: mean of all 2,346 pairs 2.665.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import bases_of
from experiments.cli.study import Study, study
from experiments.cli.values import naming
from netkin.analysis import matrix
from netkin.analysis.confounders import related_test
from netkin.analysis.groups import groups, mean_of
from netkin.analysis.statistics import Tested
from netkin.analysis.verdict import verdict
from netkin.errors import UserError
from netkin.report.plots import intervals_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.similarity import ALWAYS, interval

ALL = "all models"
BETWEEN = "different groups"
FAMILIES_UP_TO = 12  # families that are the groups; where there are more, base architectures are
NAMED = 8  # groups in the answer
text = Sentences(Path(__file__).with_suffix(".toml"))


class Part(NamedTuple):
    """Some pairs [N, N] of a matrix [N, N], with bootstrap draws [draws, N, N] if there are any."""

    pairs: NDArray[np.bool_]
    scores: NDArray[np.float64]
    draws: NDArray[np.float64] | None = None


def run(config: DictConfig) -> None:
    with study(config) as s:
        parts = parts_of(s)
        table = means(parts, (float(np.log(config.score.eps_s)), ALWAYS))
        named = table.filter(~pl.col("group").is_in([ALL, BETWEEN]))
        totals = table.filter(pl.col("group").is_in([ALL, BETWEEN])).select("group", "mean").rows()
        s.tracker.summary({f"similarity/{group}": mean for group, mean in totals})
        picture = s.outputs.figure(
            "within",
            intervals_figure(
                table["group"].to_list(),
                [part.scores[part.pairs] for part in parts.values()],
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
            answer(table, named, *compared(parts)),
            [Section("Within groups, and all (Tab. D.1)", (), {"Means": table}, [picture])],
        )


def parts_of(s: Study) -> dict[str, Part]:
    """The pairs of each group, those of different groups, and all pairs."""
    n, draws = len(s.names), s.draws()
    kinds = s.families if len({*s.families}) <= FAMILIES_UP_TO else bases_of(s)
    with naming({"group": "groups: group"}):
        chosen = groups(s.config.groups, s.names, kinds)
    apart = {
        str(name): matrix.read(path, bool(s.config.symmetrise)).scores
        for name, path in (s.config.within.matrices or {}).items()
    }
    if clash := sorted({*chosen} & {*apart}):
        raise UserError(f"groups and within.matrices both name {', '.join(clash)}")
    every, together = np.tri(n, k=-1, dtype=bool), np.zeros((n, n), dtype=bool)
    parts = {}
    for name, models in chosen.items():
        inside = np.isin(np.arange(n), models)
        parts[name] = Part(every & np.outer(inside, inside), s.scores, draws)
        together |= parts[name].pairs
    parts |= {name: Part(np.tri(len(x), k=-1, dtype=bool), x) for name, x in apart.items()}
    if chosen and (every & ~together).any():
        parts[BETWEEN] = Part(every & ~together, s.scores, draws)
    return {**parts, ALL: Part(every, s.scores, draws)}


def means(parts: dict[str, Part], limits: tuple[float, float]) -> pl.DataFrame:
    """A row for each part; limits are the ends of the scale."""
    rows, (every, scores, draws) = [], parts[ALL]
    for name, part in parts.items():
        row = {"group": name, **mean_of(*part, limits)}
        if name not in (ALL, BETWEEN):
            row["minus_all"] = row["mean"] - float(scores[every].mean())
            if part.draws is not None and draws is not None:
                drawn = part.draws[:, part.pairs].mean(axis=1) - draws[:, every].mean(axis=1)
                row["minus_all_low"], row["minus_all_high"] = interval(drawn)
        rows.append(row)
    ends = [f"{of}{end}" for of in ("images", "models", "minus_all") for end in ("_low", "_high")]
    numbers = ["mean", *ends[:4], "minus_all", *ends[4:]]
    schema = {"group": pl.String, "models": pl.Int64, "pairs": pl.Int64}
    return pl.DataFrame(rows, schema={**schema, **dict.fromkeys(numbers, pl.Float64)})


def compared(parts: dict[str, Part]) -> tuple[float, Tested, tuple[float, float] | None]:
    """The mean of the pairs within groups less that of different groups, in nats, its test by
    permuting which models are in which group, on scores without main effects, and its interval
    over images, if these are known."""
    if BETWEEN not in parts:
        return np.nan, Tested(np.nan, np.nan, 0), None
    (every, scores, draws), between = parts[ALL], parts[BETWEEN].pairs
    within = every & ~between
    test = related_test(scores, within | within.T)
    more = float(scores[within].mean() - scores[between].mean())
    if draws is None:
        return more, test, None
    return more, test, interval(draws[:, within].mean(axis=1) - draws[:, between].mean(axis=1))


def answer(
    table: pl.DataFrame,
    named: pl.DataFrame,
    more: float,
    test: Tested,
    images: tuple[float, float] | None,
) -> list[str]:
    """The findings, the verdict first, by `compared`."""
    everything = table.filter(group=ALL).row(0, named=True)
    what = f"all {everything['pairs']:,} pairs" if everything["pairs"] > 1 else "the only pair"
    overall = text("overall", what=what, mean=everything["mean"])
    if named.is_empty():
        return [text("no_groups"), overall]
    ranked = named.sort("mean", descending=True).head(NAMED).to_dicts()
    relative = ["" if r["minus_all_low"] is None else text("relative", **r) for r in ranked]
    sentences = [
        text("group", relative=part, **row) for row, part in zip(ranked, relative, strict=True)
    ]
    if named.height > NAMED:
        sentences.append(text("more", n=named.height - NAMED))
    listed, between = " ".join(sentences), table.filter(group=BETWEEN)
    if between.is_empty():
        return [text("one_group"), overall, listed]
    other = between["mean"].item()
    above = named.filter(pl.col("mean") > other).height
    over = "" if images is None else text("images", low=images[0], high=images[1])
    values = {"inside": other + more, "other": other, "more": more, "images": over}
    values |= {"above": above, "groups": named.height, "test": test.text()}
    return [text("verdict", verdict=verdict(more, images, test.p), **values), overall, listed]
