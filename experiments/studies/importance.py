"""Which components determine the similarity of models? (Sec. 3.1, Fig. 1; Appendix B.)

Gradient boosting predicts the similarity of two models from which of their components differ. The
importance of a component is the drop in R^2 when it is shuffled: on all pairs, as in the paper, and
on the pairs of held-out models, there of shallow trees, which overfit less. Writes importance.csv
with its figure, r2.csv, components.csv and report.html.

On the published matrix and components: see experiments/results/digits.md.
"""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import components_of
from experiments.cli.study import Study, study
from netkin.analysis import importance
from netkin.analysis.components import differences
from netkin.analysis.importance import SHALLOW, Boosting, Importance
from netkin.analysis.verdict import verdict
from netkin.jobs.progress import Bars
from netkin.report.plots import ranked_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.similarity import ALPHA, interval

text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    options = Boosting(**{f.name: config.importance[f.name] for f in fields(Boosting)})
    with study(config) as s:
        components = components_of(s)
        differ = differences(components)
        x, y, *_ = importance.pairs(differ, s.scores)
        s.outputs.table("components", components)
        fitted, deep, out = _fits(s, differ, options)
        names, n = components.columns[1:], len(s.names)
        alone_of = importance.alone(differ, s.scores, config.importance.permutations)
        table = _table(names, fitted, out, x.mean(axis=0), alone_of)
        r2 = s.outputs.table("r2", _r2(fitted, deep, out, len(y)))
        caption = text("all_pairs", pairs=len(y), n=n, repeats=options.repeats)
        caption += text("held_out_pairs", trees=_trees(SHALLOW), n=len(out)) if out else ""
        bars = {"All pairs": ("importance", "lowest", "highest")}
        if out:
            bars["Held-out models"] = ("held_out", "held_out_low", "held_out_high")
        values = {title: table.select(columns).to_numpy() for title, columns in bars.items()}
        drawn = ranked_figure(table["component"].to_list(), values, "drop in R² when shuffled")
        picture = s.outputs.figure("importance", drawn, table, caption)
        splits = {"importance/r2_held_out": deep, "importance/r2_held_out_shallow": out}
        means = {key: float(np.mean([each.r2 for each in of])) for key, of in splits.items() if of}
        s.tracker.summary({"importance/r2": fitted.r2, **means})
        s.finish(
            f"Do components determine the similarity of {n} models?",
            f"Gradient boosting ({_trees(options)}) predicts the "
            f"similarity of a pair, of {s.source}, from which of {len(names)} components differ.",
            [
                *_answer(table, fitted, deep, out, n),
                *_concluded(table, importance.lookup_r2(x, y), n, config.importance.permutations),
            ],
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
    x, y, *_ = importance.pairs(differ, s.scores)
    with Bars(s.console) as bars:
        bars.start("importance", ["fits"], 2 * splits + 1)
        fitted = importance.boosted(x, y, options=options)
        bars.advance("importance", 1)
        shallow = replace(SHALLOW, repeats=options.repeats, seed=options.seed)
        deep, out = (
            importance.held_out(
                differ, s.scores, splits, share, o, lambda: bars.advance("importance", 1)
            )
            for o in (options, shallow)
        )
        bars.end("importance")
    return fitted, deep, out


def _trees(options: Boosting) -> str:
    return f"{options.stages} trees of depth {options.depth}"


def _table(
    names: list[str],
    fitted: Importance,
    out: list[Importance],
    differ: NDArray[np.float64],
    alone_of: list[tuple[float, float, float]],
) -> pl.DataFrame:
    """A row per component, the most important first: importance with the range of its shuffles, the
    same on held-out models with 95% of the splits, the share of pairs that differ, and Mantel r
    and p with scores, and p after Holm's correction."""
    drops = fitted.drops
    columns = {
        "component": np.array(names),
        "importance": drops.mean(axis=1),
        "lowest": drops.min(axis=1),
        "highest": drops.max(axis=1),
    }
    if out:
        each = np.stack([split.drops.mean(axis=1) for split in out])  # [splits, C]
        low, high = np.array([interval(component) for component in each.T]).T
        columns |= {"held_out": each.mean(axis=0), "held_out_low": low, "held_out_high": high}
    columns["pairs_that_differ"] = differ
    columns |= dict(zip(("mantel_r", "mantel_p", "holm_p"), np.array(alone_of).T, strict=True))
    order = np.argsort(-columns["importance"], kind="stable")
    tested = pl.col("mantel_r", "mantel_p", "holm_p").fill_nan(None)
    return pl.DataFrame(columns)[order.tolist()].with_columns(tested)


def _r2(fitted: Importance, deep: list[Importance], out: list[Importance], n: int) -> pl.DataFrame:
    schema = ["trees", "evaluated_on", "pairs", "r2", "low", "high"]
    rows: list[tuple] = [("as in the paper", "the pairs fitted on", n, fitted.r2, None, None)]
    for trees, splits in (("as in the paper", deep), ("shallow", out)):
        if splits:
            values = np.array([split.r2 for split in splits])
            what = f"pairs of held-out models, {len(splits)} splits"
            rows.append((trees, what, None, float(values.mean()), *interval(values)))
    return pl.DataFrame(rows, schema=schema, orient="row")


def _answer(
    table: pl.DataFrame, fitted: Importance, deep: list[Importance], out: list[Importance], n: int
) -> list[str]:
    """The findings in words, the verdict first: whether components predict the similarity of models
    that were not seen, and which do."""
    ranked = table["component"].to_list()
    differ = table.filter(pl.col("pairs_that_differ") > 0)["component"].to_list()
    least = text("least", a=differ[-1], b=differ[-2]) if len(differ) > 4 else ""
    first = text("most", first=ranked[0], next=", ".join(ranked[1:3]), least=least, r2=fitted.r2)
    if not out:
        return [text("verdict.few", models=n), first, text("none_out", n=n)]
    values = np.array([split.r2 for split in out])
    low, high = interval(values)
    a, b, c = table.sort("held_out", descending=True)["component"].to_list()[:3]
    share, low_share, high_share = (max(v, 0) for v in (values.mean(), low, high))
    what = text("splits", share=share, n=len(out), low=low_share, high=high_share)
    decision = text("verdict", verdict(values.mean(), (low, high)), what=what, first=a, second=b)
    found = {"r2": values.mean(), "n": len(out), "low": low, "high": high}
    found["deep"] = np.mean([split.r2 for split in deep])
    predicted = text("unpredicted") if low <= 0 else text("best", a=a, b=b, c=c)
    tested = text("held_out", trees=_trees(SHALLOW), predicted=predicted, **found)
    return [decision, first, tested]


def _concluded(
    table: pl.DataFrame, lookup: tuple[float, int], models: int, permutations: int
) -> list[str]:
    """What the components say by themselves, and what R^2 is worth."""
    known = table.drop_nulls("mantel_p").sort("mantel_p", "mantel_r")
    least = importance.least_holm_p(models, max(known.height, 1), permutations)
    sure = known.filter(pl.col("holm_p") < ALPHA)
    listed = ", ".join(text("related", **row) for row in sure.to_dicts()) or "none"
    verb = "is" if sure.height < 2 else "are"
    alone = text("alone", tested=known.height, listed=listed, verb=verb)
    if least >= ALPHA:
        alone = text("few", models=models, tested=known.height, least=least)
    constant = table.filter(pl.col("pairs_that_differ").is_in([0.0, 1.0]))["component"].to_list()
    same = text("constant", listed=", ".join(constant)) if constant else ""
    return [alone, text("patterns", r2=lookup[0], n=lookup[1]) + same]
