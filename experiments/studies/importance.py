"""Which components determine the similarity of models? (Sec. 3.1, Fig. 1; Appendix B.)

Gradient boosting predicts the similarity of two models from which of their components differ. The
importance of a component is the drop in R^2 when it is shuffled: on all pairs, as in the paper, and
on the pairs of held-out models, there of shallow trees, which overfit less. Writes importance.csv
with its figure, r2.csv, components.csv and report.html.

On the published matrix and components: see experiments/results/digits.md.
"""

from dataclasses import replace

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import components_of
from experiments.cli.study import Study, study
from experiments.cli.values import positive, positive_int
from netkin.analysis.components import differences
from netkin.analysis.importance import (
    SHALLOW,
    Boosting,
    Importance,
    alone,
    boosted,
    held_out,
    least_holm_p,
    lookup_r2,
    pairs,
)
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.plots import Bar, bars_figure
from netkin.report.study import Section
from netkin.similarity import interval

LABEL = "drop in R² when shuffled"


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = _options(config)
    with study(config) as s:
        components = components_of(s)
        differ = differences(components)
        x, y, *_ = pairs(differ, s.scores)
        s.outputs.table("components", components)
        fitted, deep, out = _fits(s, differ, options)
        names = components.columns[1:]
        table = _table(names, fitted, out).with_columns(
            pairs_that_differ=pl.Series(x.mean(axis=0)[_order(fitted)])
        )
        table = table.join(_alone(names, differ, s), on="component", maintain_order="left")
        r2 = s.outputs.table("r2", _r2(fitted, deep, out, len(y)))
        n = len(s.names)
        picture = s.outputs.figure(
            "importance",
            _figure(table),
            table,
            f"Drop in R² when a component is shuffled among pairs. Left: the {len(y)} pairs of {n} "
            f"models that the regressor was fitted on (as in the paper's Fig. 1); lines: range of "
            f"{options.repeats} shuffles."
            + (
                f" Right: pairs of held-out models, by {_words(SHALLOW)}; lines: 95% of {len(out)} "
                "splits."
                if out
                else ""
            ),
        )
        paragraphs = [
            _verdict(table, out, n),
            *_answer(s, table, fitted, deep, out),
            *_concluded(table, lookup_r2(x, y), n, config.importance.permutations),
        ]
        s.tracker.summary({"importance/r2": fitted.r2, **_held_out_metrics(deep, out)})
        s.finish(
            f"Do components determine the similarity of {n} models?",
            f"Gradient boosting ({_words(options)}) predicts the "
            f"similarity of a pair, of {s.source}, from which of {len(names)} components differ.",
            paragraphs,
            [
                Section("Importance (Fig. 1)", (), {"": table}, [picture]),
                Section("Fit", (), {"R²": r2}),
                Section("Components", (), {"": components}),
            ],
        )


def _fits(
    s: Study, differ: NDArray[np.bool_], options: Boosting
) -> tuple[Importance, list[Importance], list[Importance]]:
    """On all pairs; and on held-out models with the same trees, and with shallow ones."""
    splits, share = s.config.importance.splits, s.config.importance.held_out
    x, y, *_ = pairs(differ, s.scores)
    with Bars(s.console) as bars:
        bars.start("importance", ["fits"], 2 * splits + 1)
        fitted = boosted(x, y, options=options)
        bars.advance("importance", 1)
        deep, shallow = (
            held_out(
                differ,
                s.scores,
                splits,
                share,
                replace(each, repeats=options.repeats, seed=options.seed),
                lambda: bars.advance("importance", 1),
            )
            for each in (options, SHALLOW)
        )
        bars.end("importance")
    return fitted, deep, shallow


def _options(config: DictConfig) -> Boosting:
    chosen = config.importance
    for key in ("stages", "depth", "min_samples", "repeats", "splits", "permutations"):
        positive_int(chosen[key], f"importance.{key}")
    positive(chosen.learning_rate, "importance.learning_rate")
    if chosen.min_samples < 2:
        raise UserError(f"importance.min_samples must be 2 or more, got {chosen.min_samples}")
    if not isinstance(chosen.held_out, float) or not 0 < chosen.held_out < 1:
        raise UserError(
            f"importance.held_out must be a share of the models in (0, 1), got {chosen.held_out!r}"
        )
    return Boosting(
        chosen.stages,
        chosen.depth,
        chosen.min_samples,
        chosen.learning_rate,
        chosen.repeats,
        chosen.seed,
    )


def _words(options: Boosting) -> str:
    return f"{options.stages} trees of depth {options.depth}"


def _order(fitted: Importance) -> np.ndarray:
    return np.argsort(-fitted.drops.mean(axis=1), kind="stable")


def _table(names: list[str], fitted: Importance, out: list[Importance]) -> pl.DataFrame:
    """A row per component, the most important first."""
    drops = fitted.drops
    columns = {
        "component": np.array(names),
        "importance": drops.mean(axis=1),
        "lowest": drops.min(axis=1),
        "highest": drops.max(axis=1),
    }
    if out:
        each = np.stack([split.drops.mean(axis=1) for split in out])  # [splits, C]
        ends = np.array([interval(component) for component in each.T])
        columns |= {
            "held_out": each.mean(axis=0),
            "held_out_low": ends[:, 0],
            "held_out_high": ends[:, 1],
        }
    return pl.DataFrame(columns)[_order(fitted).tolist()]


def _alone(names: list[str], differ: NDArray[np.bool_], s: Study) -> pl.DataFrame:
    """A row per component: Mantel r and p with scores, and p after Holm's correction."""
    rows = alone(differ, s.scores, s.config.importance.permutations)
    columns = dict(zip(("mantel_r", "mantel_p", "holm_p"), zip(*rows, strict=True), strict=True))
    return pl.DataFrame({"component": names, **columns}).fill_nan(None)


def _concluded(
    table: pl.DataFrame, lookup: tuple[float, int], models: int, permutations: int
) -> list[str]:
    """What the components say by themselves, and what R^2 is worth."""
    r2, patterns = lookup
    known = table.drop_nulls("mantel_p").sort("mantel_p", "mantel_r")
    least = least_holm_p(models, max(known.height, 1), permutations)
    sure = known.filter(pl.col("holm_p") < 0.05)
    listed = ", ".join(
        f"{row['component']} (r = {row['mantel_r']:.2f}, p = {row['holm_p']:.2g})"
        for row in sure.to_dicts()
    )
    related = f"{listed or 'none'} {'is' if sure.height < 2 else 'are'} related to similarity"
    text = (
        "By themselves, with the models permuted (Mantel) and Holm's correction for "
        f"{known.height} components: {related}."
    )
    if least >= 0.05:
        text = (
            f"{models} models are too few to tell whether a component is related to similarity: "
            f"after Holm's correction for {known.height} components no p-value of the Mantel test "
            f"can be below {least:.2g}."
        )
    told = (
        f"The means of the {patterns} patterns of differences that occur have R² {r2:.2f} on the "
        "same pairs, which no regressor of these components exceeds: R² there says how finely the "
        "patterns divide the pairs. Only components that are also related by themselves, or that "
        "help on held-out models, may be called determinants; which of those that occur together "
        "is the cause cannot be told."
    )
    constant = table.filter(pl.col("pairs_that_differ").is_in([0.0, 1.0]))["component"].to_list()
    if constant:
        told += (
            f" Nothing can be told here about {', '.join(constant)}: all pairs are alike in that."
        )
    return [text, told]


def _r2(fitted: Importance, deep: list[Importance], out: list[Importance], n: int) -> pl.DataFrame:
    schema = ["trees", "evaluated_on", "pairs", "r2", "low", "high"]
    rows: list[tuple] = [("as in the paper", "the pairs fitted on", n, fitted.r2, None, None)]
    for trees, splits in (("as in the paper", deep), ("shallow", out)):
        if splits:
            values = np.array([split.r2 for split in splits])
            what = f"pairs of held-out models, {len(splits)} splits"
            rows.append((trees, what, None, float(values.mean()), *interval(values)))
    return pl.DataFrame(rows, schema=schema, orient="row")


def _figure(table: pl.DataFrame) -> Figure:
    def bar(title: str, *columns: str) -> Bar:
        return Bar(title, LABEL, *(table[column].to_numpy() for column in columns))

    bars = [bar("All pairs", "importance", "lowest", "highest")]
    if "held_out" in table.columns:
        bars.append(bar("Held-out models", "held_out", "held_out_low", "held_out_high"))
    return bars_figure(table["component"].to_list(), bars)


def _verdict(table: pl.DataFrame, out: list[Importance], models: int) -> str:
    """Whether components predict the similarity of models that were not seen, and which do."""
    if not out:
        return f"Not certain: {models} models are too few to try components on models not seen."
    values = np.array([split.r2 for split in out])
    low, high = interval(values)
    first, second = table.sort("held_out", descending=True)["component"].to_list()[:2]
    share = f"{max(values.mean(), 0):.0%} of the variance of similarity"
    ends = f"95% of {len(out)} splits: {max(low, 0):.0%} to {max(high, 0):.0%}"
    if low > 0:
        return (
            f"Yes, in part: of models that were not seen, components predict {share} ({ends}), "
            f"most of all {first} and {second}."
        )
    verdict = "Not certain" if high > 0 else "No"
    return f"{verdict}: of models that were not seen, components predict {share} ({ends})."


def _answer(
    s: Study,
    table: pl.DataFrame,
    fitted: Importance,
    deep: list[Importance],
    out: list[Importance],
) -> list[str]:
    """The findings in words."""
    ranked = table["component"].to_list()
    differ = table.filter(pl.col("pairs_that_differ") > 0)["component"].to_list()
    least = f"; the least important are {differ[-1]} and {differ[-2]}" if len(differ) > 4 else ""
    first = (
        f"The most important component is {ranked[0]}, followed by {', '.join(ranked[1:3])}"
        f"{least}. R² is {fitted.r2:.2f} on the pairs that the regressor was fitted on."
    )
    if not out:
        note = (
            f"{len(s.names)} models are too few to hold any out, so this is not tested on others."
        )
        return [first, note]
    values = np.array([split.r2 for split in out])
    low, high = interval(values)
    best = table.sort("held_out", descending=True)["component"].to_list()
    predicted = (
        "components do not predict the similarity of new models"
        if low <= 0
        else f"the most important there are {best[0]}, {best[1]} and {best[2]}"
    )
    second = (
        f"On pairs of held-out models R² is {np.mean([split.r2 for split in deep]):.2f} on average "
        f"with the same trees, and {values.mean():.2f} with {_words(SHALLOW)} (95% of {len(out)} "
        f"splits: {low:.2f} to {high:.2f}): {predicted}."
    )
    return [first, second]


def _held_out_metrics(deep: list[Importance], out: list[Importance]) -> dict[str, float]:
    splits = {"importance/r2_held_out": deep, "importance/r2_held_out_shallow": out}
    return {key: float(np.mean([each.r2 for each in of])) for key, of in splits.items() if of}
