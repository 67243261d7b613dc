"""Which components set models apart? (Sec. 3.1, Fig. 1; Appendix B.)

Gradient boosting of the similarity of two models on which of their components differ, and how much
R^2 drops when a component is shuffled: on all pairs, as the paper has it, and on the pairs of
models that were held out. Writes importance.csv with its figure, r2.csv, components.csv and
report.html.

On the published matrix and components: see experiments/results/digits.md.
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.common.components import components_of
from experiments.common.study import Study, study
from experiments.common.values import positive, positive_int
from netkin.analysis.components import differences
from netkin.analysis.importance import Boosting, Importance, boosted, held_out, pairs
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.bars import Bar, bars_figure
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
        with Bars(s.console) as bars:
            splits = config.importance.splits
            bars.start("importance", ["fits"], splits + 1)
            fitted = boosted(x, y, options=options)
            bars.advance("importance", 1)
            out = held_out(
                differ,
                s.scores,
                splits,
                config.importance.held_out,
                options,
                lambda: bars.advance("importance", 1),
            )
            bars.end("importance")
        names = components.columns[1:]
        table = _table(names, fitted, out).with_columns(
            pairs_that_differ=pl.Series(x.mean(axis=0)[_order(fitted)])
        )
        r2 = s.outputs.table("r2", _r2(fitted, out, len(y)))
        n = len(s.names)
        picture = s.outputs.figure(
            "importance",
            _figure(table),
            table,
            f"How much R² drops when a component is shuffled among pairs. Left: the {len(y)} pairs "
            f"of {n} models that the regressor was fitted on (as the paper's Fig. 1); lines: range "
            f"of {options.repeats} shuffles."
            + (
                f" Right: pairs of models that were held out; lines: 95% of {len(out)} splits."
                if out
                else ""
            ),
        )
        said = _said(s, table, fitted, out)
        s.tracker.metrics({"importance/r2": fitted.r2, **_held_out_metrics(out)})
        s.finish(
            f"Which components set {n} models apart?",
            f"Gradient boosting ({options.stages} stages, depth {options.depth}) predicts the "
            f"similarity of a pair, of {s.source}, from which of {len(names)} components differ.",
            said,
            [
                Section("Importance (Fig. 1)", (), {"": table}, [picture]),
                Section("Fit", (), {"R²": r2}),
                Section("Components", (), {"": components}),
            ],
        )


def _options(config: DictConfig) -> Boosting:
    chosen = config.importance
    for key in ("stages", "depth", "min_samples", "repeats", "splits"):
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


def _order(fitted: Importance) -> np.ndarray:
    return np.argsort(-fitted.drops.mean(axis=1), kind="stable")


def _table(names: list[str], fitted: Importance, out: list[Importance]) -> pl.DataFrame:
    """A row a component, the most important first."""
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


def _r2(fitted: Importance, out: list[Importance], n: int) -> pl.DataFrame:
    rows: list[tuple] = [("the pairs fitted on", n, fitted.r2, None, None)]
    if out:
        values = np.array([split.r2 for split in out])
        what = f"pairs of held-out models, {len(out)} splits"
        rows.append((what, None, float(values.mean()), *interval(values)))
    return pl.DataFrame(rows, schema=["judged_on", "pairs", "r2", "low", "high"], orient="row")


def _figure(table: pl.DataFrame) -> Figure:
    def bar(title: str, *columns: str) -> Bar:
        return Bar(title, LABEL, *(table[column].to_numpy() for column in columns))

    shown = [bar("All pairs", "importance", "lowest", "highest")]
    if "held_out" in table.columns:
        shown.append(bar("Held-out models", "held_out", "held_out_low", "held_out_high"))
    return bars_figure(table["component"].to_list(), shown)


def _said(s: Study, table: pl.DataFrame, fitted: Importance, out: list[Importance]) -> list[str]:
    ranked = table["component"].to_list()
    said = [
        f"What matters most is {ranked[0]}, then {', '.join(ranked[1:3])}; least {ranked[-1]} and "
        f"{ranked[-2]}. On the pairs that it was fitted on R² is {fitted.r2:.2f}."
    ]
    if not out:
        return [*said, f"{len(s.names)} models are too few to hold any out: no more can be said."]
    values = np.array([split.r2 for split in out])
    low, high = interval(values)
    best = table.sort("held_out", descending=True)["component"].to_list()
    said.append(
        f"On pairs of models that it has not seen R² is {values.mean():.2f} on average, 95% of "
        f"{len(out)} splits {low:.2f} to {high:.2f}"
        + (
            ": components do not tell the similarity of new models. "
            if values.mean() < 0.1
            else ". "
        )
        + f"There {best[0]} matters most, then {best[1]} and {best[2]}."
    )
    return said


def _held_out_metrics(out: list[Importance]) -> dict[str, float]:
    return {"importance/r2_held_out": float(np.mean([split.r2 for split in out]))} if out else {}
