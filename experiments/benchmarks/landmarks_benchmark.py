"""How many landmarks predict a matrix? `experiment=landmarks` over numbers and draws of them.

The scores of pairs without a landmark are hidden, predicted and compared: R2, mean error, and the
share inside the intervals, with and without components where these are known. Writes
landmarks_draws.csv (a row a draw), landmarks_table.csv (their means), the figure landmarks_curve
with its table, and report.html.

On the published 69 models and on digits: experiments/results/landmarks.md.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.cli.components import components_of
from experiments.cli.landmarks import check_level, choose
from experiments.cli.study import Study, study
from experiments.cli.values import positive_int
from netkin.analysis.landmarks import USEFUL, complete, verdict
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.study import Section
from netkin.report.style import INK, legend_above, panels, style


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    check_level(config.level)
    number, first = positive_int(config.draws, "draws"), config.seed
    with study(config) as s:
        values, missing = _components(s)
        works = [
            (m, with_components, seed)
            for m in config.landmarks
            for with_components in ((False, True) if values is not None else (False,))
            for seed in range(first, first + number)
        ]
        for m in config.landmarks:
            choose(m, s.names, 0)  # mistakes, before any work
        rows = []
        with Bars(s.console) as bars:
            bars.start("predict", [f"{m} landmarks" for m in config.landmarks], len(works))
            for m, with_components, seed in works:
                marks = choose(m, s.names, seed)
                found = complete(
                    s.scores, marks, values if with_components else None, config.level, seed
                )
                row = {"landmarks": m, "components": with_components, "seed": seed}
                own = {"run_r2": found.held_out.r2, "verdict": verdict(found.held_out)}
                rows.append({**row, **found.against(s.scores), **own})
                bars.advance("predict", 1)
            bars.end("predict")
        each = s.outputs.table("landmarks_draws", pl.DataFrame(rows))
        table = s.outputs.table("landmarks_table", means(each))
        caption = (
            f"Means of {number} draws of landmarks, and the lowest and the highest draw. R2 and "
            f"coverage of {config.level:.0%} intervals are of the hidden pairs."
        )
        picture = s.outputs.figure("landmarks_curve", curve(table, config.level), table, caption)
        s.finish(
            f"How many landmarks predict the scores of {len(s.names)} models?",
            f"Scores of {s.source}: those without a landmark are hidden and predicted.",
            [answer(table), *missing],
            [Section("By the number of landmarks", (), {"": table}, [picture])],
        )


def _components(s: Study) -> tuple[Any, list[str]]:
    """The components of the models, [N, C], or the reason why they are not known."""
    try:
        return components_of(s)[:, 1:].to_numpy(), []
    except UserError as error:
        if s.config.components is not None:
            raise
        return None, [f"Without components: {error}."]


def means(each: pl.DataFrame) -> pl.DataFrame:
    """A row a number of landmarks, with or without components: means and extremes over draws."""
    ends = [
        expression
        for name in ("r2", "coverage")
        for expression in (
            pl.col(name).min().alias(f"{name}_low"),
            pl.col(name).max().alias(f"{name}_high"),
        )
    ]
    words = [
        (pl.col("verdict") == word).sum().alias(word.lower().replace(" ", "_"))
        for word in ("Yes", "Not certain", "No")
    ]
    by = each.group_by("landmarks", "components", maintain_order=True)
    return by.agg(
        pl.len().alias("draws"), pl.mean("r2", "r", "error", "coverage", "run_r2"), *ends, *words
    )


def answer(table: pl.DataFrame) -> str:
    """The fewest landmarks whose mean R2 is useful, in a sentence."""
    parts = [
        f"{row['landmarks']} landmarks{' with components' if row['components'] else ''}: R2 = "
        f"{row['r2']:.3f} ({row['r2_low']:.2f} to {row['r2_high']:.2f}), coverage "
        f"{row['coverage']:.1%} ({row['coverage_low']:.1%} to {row['coverage_high']:.1%})"
        for row in table.iter_rows(named=True)
    ]
    least = table.group_by("landmarks", maintain_order=True).agg(pl.col("r2").min()).reverse()
    useful = least.filter((pl.col("r2") >= USEFUL).cum_min())["landmarks"]
    begin = (
        f"Yes, from {useful[-1]} landmarks on more than half of their variance. {parts[0]}"
        if len(useful)
        else f"No, not half of the variance of the hidden scores. {parts[0]}"
    )
    return "; ".join([begin, *parts[1:]]) + "."


@style()
def curve(table: pl.DataFrame, level: float) -> Figure:
    """R2 and coverage over the number of landmarks, with the range over draws."""
    figure, axes = panels(2, 3.4, 2.7)
    labels: Sequence[tuple[str, str]] = (("r2", "R2 of hidden scores"), ("coverage", "coverage"))
    handles = {}
    for ax, (name, label) in zip(axes, labels, strict=True):
        for shift, (with_components, rows) in enumerate(
            (key[0], rows) for key, rows in table.group_by("components", maintain_order=True)
        ):
            x, y = rows["landmarks"].to_numpy() + 0.3 * shift, rows[name].to_numpy()
            ends = y - rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy() - y
            line = ax.errorbar(x, y, ends, marker="os"[shift], ms=4, capsize=2, elinewidth=0.8)
            handles["with components" if with_components else "scores alone"] = line
        ax.set(xlabel="landmarks", ylabel=label, xticks=sorted(set(table["landmarks"])))
    axes[1].axhline(level, color=INK, lw=0.8, ls=(0, (4, 3)))
    if len(handles) > 1:
        legend_above(figure, list(handles.values()), list(handles))
    return figure
