"""How few steps and images give the same matrix, and what do they save?

The reference is the config's attack on all of the run's images. The same models are attacked with
fewer and longer steps, which can cross the ball (attack.step_size=null), and both matrices are also
computed from fewer images, drawn at random several times. Order and level are two questions: r says
whether the order of the pairs is the same, the bias whether the level is. Writes budget (figure and
table) and report.html.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig
from sklearn.metrics import adjusted_rand_score

from experiments.cli.runs import command
from experiments.cli.setting import build_attack
from experiments.cli.study import Measured, Study, measured
from experiments.cli.values import positive, positive_int, whole_numbers
from netkin import similarity
from netkin.analysis.clusters import choose_k, spectral
from netkin.analysis.matrix import off_diagonal
from netkin.analysis.statistics import pearson
from netkin.attacks import PGD, as_attack
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.plots import Line, lines_figure
from netkin.report.study import Section
from netkin.report.text import percent
from netkin.similarity import Outcomes

BACKWARD = 2
"""Forward passes that the backward pass of a step costs."""
FEWEST = 6
"""Models from which clusters say anything."""


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    own, attack = config.budget, build_attack(config)
    given = whole_numbers(own.steps, "budget.steps")
    whole_numbers(own.images, "budget.images")
    positive_int(own.draws, "budget.draws")
    for name in ("least_r", "most_bias", "least_inside", "least_clusters"):
        positive(own[name], f"budget.{name}")
    if not isinstance(attack, PGD):
        name = build_attack(config).name
        raise UserError(f"experiment=budget takes an attack of steps, such as pgd, got {name}")
    fewer = sorted({steps for steps in given if steps < attack.steps})
    if not fewer:
        raise UserError(
            f"budget.steps must have a number below attack.steps={attack.steps}, got {given}"
        )
    with measured(config) as s:
        assert s.measured is not None
        found = {steps: outcomes(s.measured, steps) for steps in fewer}
        found[attack.steps] = s.measured.outcomes
        report(s, table(s, found, attack.steps), attack.steps)


def outcomes(m: Measured, steps: int) -> Outcomes:
    """The outcomes under the same attack with other steps, of 2.5 eps / steps."""
    attack = m.evaluation.attack
    values = {**attack.identity, "steps": steps}
    fields = {key: value for key, value in values.items() if key != "_target_"}
    cheaper = PGD(**{**fields, "step_size": None})
    values["step_size"] = cheaper.step_size
    r = m.run.under(attack=as_attack(cheaper, attack.name, values))
    return replace(r, settings=replace(r.settings, watch=None)).measure()


def table(s: Study, found: dict[int, Outcomes], steps: int) -> pl.DataFrame:
    """A row for each number of steps and images: steps, images, r, r_low and r_high (the 95% range
    over draws of images), bias (nats), inside (the share of pairs inside the reference's interval),
    clusters (adjusted Rand index), passes (in forward passes) and cost (a share of the
    reference's)."""
    own, reference = s.config.budget, found[steps]
    total, whole = len(reference.image_ids), passes(reference, steps)
    compared = comparison(reference, s.config.score.eps_s)
    rng, rows = np.random.default_rng(0), []
    sizes = [*sorted({n for n in own.images if n < total}), total]
    with Bars(s.console) as bars:
        bars.start("compare", ["matrices"], len(sizes) * len(found), "cells")
        for size in sizes:
            draws = own.draws if size < total else 1
            drawn = [rng.choice(total, size, replace=False) for _ in range(draws)]
            for number, outcome in sorted(found.items()):
                parts = [outcome.on(list(images)) for images in drawn]
                cost = float(np.mean([passes(part, number) for part in parts]))
                values = compared(parts)
                if values is not None:
                    cell = {"steps": number, "images": size, **values}
                    rows.append({**cell, "passes": cost, "cost": cost / whole})
                bars.advance("compare", 1)
    return pl.DataFrame(rows)


def comparison(
    reference: Outcomes, eps_s: float
) -> Callable[[Sequence[Outcomes]], dict[str, float] | None]:
    """Compares draws of outcomes with the reference: r, r_low, r_high, bias, inside and clusters of
    `table`; None where in every draw a pair has no image that both classify correctly."""
    truth, intervals = similarity.smoothed_matrix(reference), similarity.pairs(reference, eps_s)
    k, _ = choose_k(None, truth)
    labels = _clusters(truth, k, 100)

    def compared(parts: Sequence[Outcomes]) -> dict[str, float] | None:
        matrices = [m for m in map(_smoothed, parts) if m is not None]
        if not matrices:
            return None
        r = [_r(truth, m) for m in matrices]
        low, high = similarity.interval(np.array(r))
        same = [adjusted_rand_score(labels, _clusters(m, k, 20)) for m in matrices[:5]]
        return {
            "r": float(np.mean(r)),
            "r_low": low,
            "r_high": high,
            "bias": float(np.mean([off_diagonal(m) - off_diagonal(truth) for m in matrices])),
            "inside": float(np.mean([_inside(m, intervals) for m in matrices])),
            "clusters": float(np.mean(same)),
        }

    return compared


def _r(truth: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The correlation of scores; 0 where those of one matrix are all the same."""
    return float(np.nan_to_num(pearson(off_diagonal(truth), off_diagonal(scores)).r))


def _clusters(scores: NDArray[np.float64], k: int, restarts: int) -> NDArray[np.intp]:
    """The clusters; a single one where all scores are the same."""
    if np.ptp(off_diagonal(scores)) == 0:
        return np.zeros(len(scores), dtype=np.intp)
    return spectral(scores, k, restarts=restarts)


def _smoothed(outcome: Outcomes) -> NDArray[np.float64] | None:
    """The scores; None where a pair has no image that both classify correctly."""
    try:
        return similarity.smoothed_matrix(outcome)
    except UserError:
        return None


def _inside(scores: NDArray[np.float64], intervals: pl.DataFrame) -> float:
    values = scores[np.triu_indices(len(scores), k=1)]
    low, high = intervals["low"].to_numpy(), intervals["high"].to_numpy()
    return float(((values >= low) & (values <= high)).mean())


def passes(outcome: Outcomes, steps: int) -> float:
    """The cost of the outcomes in forward passes of one image: crafting and transfer.

    Args:
        outcome: of N models on I images.
        steps: of the attack, each a forward and a backward pass.
    """
    correct = outcome.correct.astype(float)
    both = correct @ correct.T
    return float(correct.sum() * steps * (1 + BACKWARD) + both.sum())


def cheapest(rows: pl.DataFrame, own: Any) -> dict[str, Any] | None:
    """The cheapest row whose matrix is the reference's within the tolerance; None without one."""
    good = rows.filter(
        (pl.col("r") >= own.least_r)
        & (pl.col("bias").abs() <= own.most_bias)
        & (pl.col("inside") >= own.least_inside)
        & (pl.col("cost") < 1)
    ).sort("cost")
    return good.row(0, named=True) if good.height else None


def report(s: Study, rows: pl.DataFrame, steps: int) -> None:
    """The figure, the table and the page."""
    total = int(rows["images"].max())  # type: ignore[arg-type]
    s.tracker.summary(
        {f"budget/r/{r['steps']}": r["r"] for r in rows.to_dicts() if r["images"] == total}
    )
    picture = s.outputs.figure(
        "budget",
        figure(rows),
        rows,
        f"The matrix of fewer steps and images against that of {steps} steps on all {total} "
        "images: r, the mean difference of scores, and how far clusters agree (adjusted Rand "
        "index). Along a line there are more images; bars: 95% range over "
        f"{s.config.budget.draws} draws of images.",
    )
    level = [
        f"{r['steps']} steps shift scores by {r['bias']:+.2f}, with r = {r['r']:.3f}"
        for r in rows.filter(images=total).to_dicts()
        if r["steps"] != steps
    ]
    s.finish(
        f"How few steps and images give the matrix of {len(s.names)} models?",
        f"The reference is {s.source}. Fewer steps are longer ones, which can cross the ball.",
        [
            *in_words(s, rows, steps, total),
            f"On all images: {'; '.join(level)}. A matrix must not mix attacks.",
        ],
        [Section("Cost and certainty", figures=[picture], tables={"Settings": rows})],
    )


def in_words(s: Study, rows: pl.DataFrame, steps: int, total: int) -> list[str]:
    """The verdict, the command that uses the cheapest setting, and what holds for clusters."""
    own, best = s.config.budget, cheapest(rows, s.config.budget)
    bounds = (
        f"r of {own.least_r} or more, a bias of at most {own.most_bias} and "
        f"{percent(own.least_inside)} of pairs inside their interval"
    )
    words = [f"No. Nothing cheaper that was tried gives the same scores ({bounds})."]
    if best is not None:
        words = [
            f"Yes. {_named(best, total)} give the scores of {steps} steps on {total} images at "
            f"{percent(best['cost'])} of the cost: r = {best['r']:.3f}, bias {best['bias']:+.2f}, "
            f"{percent(best['inside'])} of pairs inside their interval (asked: {bounds}).",
            f"To use it: {_command(s, best, steps, total)}",
        ]
    if len(s.names) < FEWEST:
        return words
    same = rows.filter(pl.col("clusters") >= own.least_clusters, pl.col("cost") < 1).sort("cost")
    if best is None or best["clusters"] < own.least_clusters:
        which = "nothing that was tried"
        if same.height:
            row = same.row(0, named=True)
            which = f"{_named(row, total)} at {percent(row['cost'])} of the cost"
        begin = "" if best is None else f"Its clusters are others (ARI {best['clusters']:.2f}). "
        words.append(
            f"{begin}The cheapest with the clusters of the reference (ARI of {own.least_clusters} "
            f"or more): {which}."
        )
    return words


def _named(row: dict[str, Any], total: int) -> str:
    """The steps and images of a row."""
    images = f" on {row['images']} of {total} images" if row["images"] < total else ""
    return f"{row['steps']} steps{images}"


def _command(s: Study, row: dict[str, Any], steps: int, total: int) -> str:
    """A pairwise run with the steps and images of a row, of the same subset."""
    changes = ["experiment=pairwise"]
    if row["steps"] != steps:
        changes += [f"attack.steps={row['steps']}", "attack.step_size=null"]
    assert s.measured is not None
    subset = s.config.subset
    if row["images"] < total and "file" not in subset:
        classes = len({*s.measured.evaluation.subset.labels})
        share = (subset.fraction or 1) * row["images"] / total
        each = f"subset.per_class={max(1, row['images'] // classes)}"
        changes.append(each if subset.per_class else f"subset.fraction={share:.3g}")
    return command(*changes)


def figure(rows: pl.DataFrame) -> Figure:
    """r, bias and clusters over the cost, a line for each number of steps."""
    panels: list[tuple[str, Sequence[Line]]] = []
    labels = {"r": "r with the reference", "bias": "bias (nats)", "clusters": "clusters (ARI)"}
    for column, label in labels.items():
        lines = []
        for (steps,), part in rows.sort("steps", "images").group_by("steps", maintain_order=True):
            y = part[column].to_numpy()
            low, high = (part[f"r_{e}"].to_numpy() if column == "r" else y for e in ("low", "high"))
            lines.append(Line(f"{steps} steps", part["cost"].to_numpy(), y, low, high))
        panels.append((label, lines))
    return lines_figure(panels, "cost (share of the reference's)", 2.6, shares=True)
