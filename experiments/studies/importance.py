"""Which components does the similarity of models go with? (Sec. 3.1, Fig. 1; Appendix B.)

Components are ranked by how much less similar two models are that differ in one, each by itself,
without main effects and with the models permuted. Beside it stands the paper's importance: the drop
in R^2 of gradient boosting when a component is shuffled among the pairs that it was fitted on,
which is what it adds to the others there. Whether components predict the similarity of models that
were not fitted is measured with shallow trees, which overfit less. Writes importance.csv with its
figure, r2.csv, components.csv and report.html.

On the published matrix and components: see experiments/results/digits.md.
"""

from dataclasses import fields, replace
from pathlib import Path

import polars as pl
from omegaconf import DictConfig

from experiments.cli.components import components_of
from experiments.cli.study import study
from netkin.analysis import importance
from netkin.analysis.components import differences
from netkin.analysis.importance import SHALLOW, Boosting, HeldOut
from netkin.analysis.verdict import verdict
from netkin.errors import and_more
from netkin.jobs.progress import Bars
from netkin.report.plots import ranked_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.similarity import ALPHA

text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    wanted = config.importance
    options = Boosting(**{f.name: wanted[f.name] for f in fields(Boosting)})
    with study(config) as s:
        components, n = components_of(s), len(s.names)
        differ = differences(components)
        x, y, *_ = importance.pairs(differ, s.scores)
        s.outputs.table("components", components)
        with Bars(s.console) as bars:
            bars.start("importance", ["fits"], wanted.splits + 1)
            fitted = importance.boosted(x, y, options)
            bars.advance("importance", 1)
            out = importance.held_out(
                *(differ, s.scores, wanted.splits, wanted.held_out),
                replace(SHALLOW, seed=options.seed),
                lambda: bars.advance("importance", 1),
            )
            bars.end("importance")
        alone = importance.alone(differ, s.scores, wanted.permutations)
        alone = alone.insert_column(0, pl.Series("component", components.columns[1:]))
        drops = {"importance": fitted.drops.mean(axis=1), "lowest": fitted.drops.min(axis=1)}
        table = alone.with_columns(
            pairs_that_differ=x.mean(axis=0), **drops, highest=fitted.drops.max(axis=1)
        ).sort(pl.col("mantel_r").abs(), "importance", descending=True, nulls_last=True)
        rows: list[tuple] = [
            ("as in the paper", "the pairs fitted on", len(y), fitted.r2, None, None)
        ]
        if out is not None:
            what = f"pairs of held-out models, {len(out.splits)} splits"
            rows.append(("shallow", what, None, *out[:3]))
        schema = ["trees", "evaluated_on", "pairs", "r2", "low", "high"]
        r2 = s.outputs.table("r2", pl.DataFrame(rows, schema, orient="row"))
        shown = {
            "r with similarity, each by itself": table.select("mantel_r"),
            "drop in R², beside all others": table.select("importance", "lowest", "highest"),
        }
        drawn = ranked_figure(
            table["component"].to_list(),
            {title: columns.to_numpy() for title, columns in shown.items()},
            "",
            ["related" if sure else "not certain" for sure in table["holm_p"].fill_null(1) < ALPHA],
        )
        caption = text("caption", pairs=len(y), n=n, repeats=options.repeats)
        picture = s.outputs.figure("importance", drawn, table, caption)
        held = {} if out is None else {"importance/r2_held_out": out.r2}
        s.tracker.summary({"importance/r2": fitted.r2, **held})
        best, patterns = importance.lookup_r2(x, y)
        fit = text("fit", r2=fitted.r2, trees=_trees(options), best=best, n=patterns)
        if same := table.filter(pl.col("pairs_that_differ").is_in([0.0, 1.0]))[
            "component"
        ].to_list():
            fit += text("constant", listed=", ".join(same))
        s.finish(
            f"Which components does the similarity of {n} models go with?",
            "Of each pair of models it is known in which of "
            f"{table.height} components they differ; similarities are those of {s.source}.",
            [related(table, n, wanted.permutations), predicted(out, n), fit],
            [
                Section("Importance (Fig. 1)", (), {"": table}, [picture]),
                Section("Fit", (), {"R²": r2}),
                Section("Components", (), {"": components}),
            ],
        )


def _trees(options: Boosting) -> str:
    return f"{options.stages} trees of depth {options.depth}"


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
    listed = and_more([text("one", **row) for row in sure.to_dicts()])
    values = {"n": sure.height, "tested": known.height, "largest": sure["holm_p"].max()}
    return text("related.some", listed=listed, **values)


def predicted(out: HeldOut | None, models: int) -> str:
    """Whether components predict the similarity of models that were not fitted."""
    if out is None:
        return text("predicted.few", models=models)
    decided = verdict(out.r2, (out.low, out.high))
    values = {"r2": out.r2, "low": out.low, "high": out.high, "n": len(out.splits)}
    return text("predicted", decided, share=max(out.r2, 0), trees=_trees(SHALLOW), **values)
