"""Which components does the similarity of models go with? (Sec. 3.1, Fig. 1; Appendix B.)

Components are ranked by how much less similar two models are that differ in one, each by itself,
with the models permuted. Beside it stands the paper's importance: the drop in R^2 of gradient
boosting when a component is shuffled among the pairs that it was fitted on, which is what it adds
to the others there. Whether components predict the similarity of models that were not fitted is
measured with shallow trees, which overfit less. Writes importance.csv with its figure, r2.csv,
components.csv and report.html.

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
from netkin.analysis.importance import SHALLOW, Boosting, HeldOut, Importance
from netkin.analysis.verdict import verdict
from netkin.jobs.progress import Bars
from netkin.report.plots import ranked_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.similarity import ALPHA

text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    options = Boosting(**{f.name: config.importance[f.name] for f in fields(Boosting)})
    with study(config) as s:
        components = components_of(s)
        differ, permutations = differences(components), config.importance.permutations
        x, y, *_ = importance.pairs(differ, s.scores)
        s.outputs.table("components", components)
        fitted, out = _fits(s, differ, options)
        names, n = components.columns[1:], len(s.names)
        alone = importance.alone(differ, s.scores, permutations)
        table = _table(names, fitted, x.mean(axis=0), alone)
        r2 = s.outputs.table("r2", _r2(fitted, out, len(y)))
        bars = {
            "r with similarity, each by itself": table.select("mantel_r"),
            "drop in R², beside all others": table.select("importance", "lowest", "highest"),
        }
        drawn = ranked_figure(
            table["component"].to_list(),
            {title: columns.to_numpy() for title, columns in bars.items()},
            "",
            ["related" if sure else "not certain" for sure in table["holm_p"].fill_null(1) < ALPHA],
        )
        caption = text("caption", pairs=len(y), n=n, repeats=options.repeats)
        picture = s.outputs.figure("importance", drawn, table, caption)
        held = {} if out is None else {"importance/r2_held_out": out.r2}
        s.tracker.summary({"importance/r2": fitted.r2, **held})
        s.finish(
            f"Which components does the similarity of {n} models go with?",
            f"Of each pair of models it is known in which of {len(names)} components they differ; "
            f"similarities are those of {s.source}.",
            [
                related(table, n, permutations),
                predicted(out, n),
                _fit(table, fitted, importance.lookup_r2(x, y), _trees(options)),
            ],
            [
                Section("Importance (Fig. 1)", (), {"": table}, [picture]),
                Section("Fit", (), {"R²": r2}),
                Section("Components", (), {"": components}),
            ],
        )


def _fits(
    s: Study, differ: NDArray[np.bool_], options: Boosting
) -> tuple[Importance, HeldOut | None]:
    """The paper's trees on all pairs, and shallow ones on the pairs of held-out models."""
    splits, share = s.config.importance.splits, s.config.importance.held_out
    x, y, *_ = importance.pairs(differ, s.scores)
    shallow = replace(SHALLOW, seed=options.seed)
    with Bars(s.console) as bars:
        bars.start("importance", ["fits"], splits + 1)
        fitted = importance.boosted(x, y, options)
        bars.advance("importance", 1)
        out = importance.held_out(
            differ, s.scores, splits, share, shallow, lambda: bars.advance("importance", 1)
        )
        bars.end("importance")
    return fitted, out


def _trees(options: Boosting) -> str:
    return f"{options.stages} trees of depth {options.depth}"


def _table(
    names: list[str],
    fitted: Importance,
    differ: NDArray[np.float64],
    alone: list[tuple[float, float, float]],
) -> pl.DataFrame:
    """A row per component, by falling |r| of similarity with whether models differ in it: Mantel r
    and p, p after Holm's correction, the share of pairs that differ, and importance with the range
    of its shuffles."""
    columns = dict(zip(("mantel_r", "mantel_p", "holm_p"), np.array(alone).T, strict=True))
    drops = fitted.drops
    table = pl.DataFrame(
        {
            "component": names,
            **columns,
            "pairs_that_differ": differ,
            "importance": drops.mean(axis=1),
            "lowest": drops.min(axis=1),
            "highest": drops.max(axis=1),
        }
    ).with_columns(pl.col(list(columns)).fill_nan(None))
    order = [pl.col("mantel_r").abs(), pl.col("importance")]
    return table.sort(order, descending=True, nulls_last=True)


def _r2(fitted: Importance, out: HeldOut | None, n: int) -> pl.DataFrame:
    schema = ["trees", "evaluated_on", "pairs", "r2", "low", "high"]
    rows: list[tuple] = [("as in the paper", "the pairs fitted on", n, fitted.r2, None, None)]
    if out is not None:
        what = f"pairs of held-out models, {len(out.splits)} splits"
        rows.append(("shallow", what, None, *out[:3]))
    return pl.DataFrame(rows, schema=schema, orient="row")


def related(table: pl.DataFrame, models: int, permutations: int) -> str:
    """The components that similarity goes with beyond chance, in the order of the table."""
    known = table.drop_nulls("mantel_p")
    if known.is_empty():
        return text("related.constant")
    least = importance.least_holm_p(models, known.height, permutations)
    if least >= ALPHA:
        return text("related.few", models=models, tested=known.height, least=least)
    sure = known.filter(pl.col("holm_p") < ALPHA)
    if sure.is_empty():
        smallest = known["holm_p"].min()
        return text("related.none", tested=known.height, smallest=smallest)
    listed = ", ".join(text("one", **row) for row in sure.to_dicts())
    values = {"n": sure.height, "tested": known.height, "largest": sure["holm_p"].max()}
    return text("related.some", listed=listed, **values)


def predicted(out: HeldOut | None, models: int) -> str:
    """Whether components predict the similarity of models that were not fitted."""
    if out is None:
        return text("predicted.few", models=models)
    decided = verdict(out.r2, (out.low, out.high))
    values = {"r2": out.r2, "low": out.low, "high": out.high, "n": len(out.splits)}
    return text("predicted", decided, share=max(out.r2, 0), trees=_trees(SHALLOW), **values)


def _fit(table: pl.DataFrame, fitted: Importance, lookup: tuple[float, int], trees: str) -> str:
    """What R^2 on the pairs that were fitted is worth."""
    constant = table.filter(pl.col("pairs_that_differ").is_in([0.0, 1.0]))["component"].to_list()
    same = text("constant", listed=", ".join(constant)) if constant else ""
    return text("fit", r2=fitted.r2, trees=trees, best=lookup[0], n=lookup[1]) + same
