"""How does similarity by transfer compare with five other measures of the same models and images?

Prediction agreement, error consistency (Cohen's kappa; Geirhos et al. 2020), the cosine of input
gradients, linear CKA of penultimate features (Kornblith et al. 2019, with the unbiased HSIC of Song
et al. 2012) and decision-boundary agreement on planes through triplets (Somepalli et al. 2022).
Writes a matrix for each (measure_<name>.csv), measures.csv (stability and costs), the correlations
of every two, and report.html. Features, gradients and predictions on planes are stored by model and
shard, so that an interrupted run continues where it stopped.

On the 12 digits members (500 images, PGD-50, 66 pairs) s correlates with the cosine of input
gradients (r = 0.57, Mantel p <= 0.0001) and linear CKA (0.49, 0.0005); for the others |r| < 0.25,
p > 0.05. Noise ceilings are 0.98 to 0.99, of agreement 0.91, of error consistency 0.63.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.cli.study import Measured, Study, study
from experiments.cli.values import positive_int
from netkin import similarity
from netkin.analysis import measures, noise
from netkin.analysis.matrix import Matrix, pair_values
from netkin.analysis.measures import Measure, correlate
from netkin.analysis.statistics import FEWEST, p_text, trend
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.jobs.results import Result
from netkin.model import Model
from netkin.passes import Item
from netkin.passes.features import (
    Kind,
    Sample,
    draw_sample,
    gradient_cosines,
    kinds,
    missing,
    read,
    shards,
)
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.results import Results

PRELOAD = ("netkin.passes.features",)
STABILITY = (
    "Noise is the standard deviation of a pair over bootstrap draws of images (of triplets, for "
    "boundaries); spread is the standard deviation over pairs; agreement is the mean correlation "
    "between the matrix of a draw and that of all images. Seconds are for all models on this "
    "device, one after another, estimated from a timed batch of each. Those of similarity include "
    "its attacks and the evaluation of every model on every other's images (seconds for pairs)."
)

LEVEL = 0.05
"""Of the p-value below which a relation is certain."""

TITLES = {
    "similarity": "similarity s (nats)",
    "prediction_agreement": "prediction agreement",
    "error_consistency": "error consistency (kappa)",
    "gradient_cosine": "cosine of input gradients",
    "linear_cka": "linear CKA of features",
    "boundary_agreement": "decision-boundary agreement",
}
"""The measures in the order of figures, with their names on axes."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = config.measures
    for name in ("images", "triplets", "grid", "bootstrap", "permutations"):
        positive_int(options[name], f"measures.{name}")
    with study(config) as s:
        assert s.measured is not None
        sample = draw_sample(
            len(s.measured.evaluation.subset),
            *(options.images, options.triplets, options.grid, options.seed),
        )
        costs = gather(config, s.measured, sample)
        with s.console.status("comparing") if s.console.is_terminal else Bars(s.console):
            results = all_measures(s, s.measured, sample, costs)
        report(s, results, sample)


def gather(config: DictConfig, m: Measured, sample: Sample) -> dict[str, float]:
    """Compute what the store lacks, and time a batch of each model.

    Returns the seconds per image of a forward pass, an attack (craft), features and gradients,
    each summed over the models.
    """
    r, seconds = m.run, config.measures.seconds
    with r.working():
        for kind in kinds(sample):
            todo = [
                Todo(model, kind, sample, tuple(lacking))
                for model in m.members
                if (lacking := missing(r.results, sample, model, kind))
            ]
            r.stage(kind.name, _measure, todo, sum(item.units(r.results) for item in todo))
        timed = r.stage(
            "cost", partial(_cost, seconds), [Item(m.name, m) for m in m.members], len(m.members)
        )
    r.raise_failures()
    costs = [result.cost for _, result in timed]
    return {name: sum(cost[name] for cost in costs) for name in costs[0]}


@dataclass(frozen=True)
class Todo:
    """A model, and the shards of one kind that the store lacks."""

    model: Model
    kind: Kind
    sample: Sample
    shards: tuple[int, ...]

    @property
    def name(self) -> str:
        """The model's, for the display."""
        return self.model.name

    def units(self, results: Results) -> int:
        """How many images or planes the shards have."""
        parts = shards(results, self.sample, self.kind)
        return sum(len(parts[i]) for i in self.shards)


def _measure(context: tuple, item: Todo, advance: Advance) -> Result:
    from netkin.passes.features import measure_pass

    return measure_pass(*context[:2], item.sample, item.model, item.kind, advance)


@dataclass(frozen=True, kw_only=True)
class Timed(Result):
    """The seconds per image of each kind of pass."""

    cost: dict[str, float]


def _cost(seconds: float, context: tuple, item: Item, advance: Advance) -> Timed:
    from netkin.passes.features import time_passes
    from netkin.passes.probe import probe

    start = time.perf_counter()
    timing = probe(*context[:2], item.of_model(), seconds, advance)
    cost = {"craft": timing.craft, "forward": timing.transfer}
    cost |= time_passes(*context[:2], item.of_model(), timing.batch)
    return Timed(cost=cost, seconds=time.perf_counter() - start)


def all_measures(
    s: Study, measured: Measured, sample: Sample, costs: dict[str, float]
) -> list[Measure]:
    """The six measures with their draws, of the same models and images."""
    found, members = measured.results, measured.members
    positions = list(sample.positions)
    n, images, triplets = len(members), len(positions), len(sample.triplets)
    bootstrap = s.config.measures.bootstrap
    outcomes = measured.outcomes.on(positions)
    weights, plane_weights = (
        np.vstack([np.ones(count), similarity.resample(count, bootstrap), noise.halves(count)])
        for count in (images, triplets)
    )
    predictions = np.stack([found.predictions(m).numpy() for m in members])[:, positions]
    features_of, gradients_of, planes_of = kinds(sample)
    cosines = gradient_cosines(found, members, sample, gradients_of)
    grams = np.stack([measures.gram(read(found, sample, m, features_of).numpy()) for m in members])
    planes = np.stack([read(found, sample, m, planes_of).numpy() for m in members])
    forward = costs["forward"] * images
    return [
        Measure(
            "similarity",
            similarity.smoothed_matrix(outcomes),
            noise.sampled_scores(outcomes, bootstrap),
            forward + costs["craft"] * images + n * forward,
            n * forward,
        ),
        *(
            Measure.of(name, matrices, bootstrap, seconds)
            for name, matrices, seconds in (
                (
                    "prediction_agreement",
                    measures.prediction_agreement(predictions, weights),
                    forward,
                ),
                (
                    "error_consistency",
                    measures.error_consistency(outcomes.correct, weights),
                    forward,
                ),
                (
                    "gradient_cosine",
                    measures.mean_cosine(cosines, weights),
                    costs["gradients"] * images,
                ),
                ("linear_cka", measures.linear_cka(grams, weights), costs["features"] * images),
                (
                    "boundary_agreement",
                    measures.boundary_agreement(planes, plane_weights),
                    costs["forward"] * triplets * sample.grid**2,
                ),
            )
        ),
    ]


def report(s: Study, results: list[Measure], sample: Sample) -> None:
    """Tables, figures and the page."""
    names, n, permutations = s.names, len(s.names), s.config.measures.permutations
    for measure in results:
        s.outputs.table(f"measure_{measure.name}", Matrix(names, measure.matrix).table())
    table = s.outputs.table("measures", pl.DataFrame([measure.summary() for measure in results]))
    correlations = pl.DataFrame(
        [correlate(a, b, permutations) for a, b in combinations(results, 2)],
        infer_schema_length=None,
    )
    known = correlations.filter(a="similarity").drop_nulls("r").drop_nans("r")
    s.tracker.summary({f"measures/r/{r['b']}": r["r"] for r in known.iter_rows(named=True)})
    rows, columns = np.tril_indices(n, k=-1)
    pairs = pl.DataFrame(
        {
            "a": [names[i] for i in rows],
            "b": [names[i] for i in columns],
            **{measure.name: measure.matrix[rows, columns] for measure in results},
        }
    )
    against = s.outputs.figure(
        "measures_scatter",
        measures_scatter(results, correlations),
        pairs,
        "Each measure against the similarity by transfer, a point per pair of models.",
    )
    every_two = s.outputs.figure(
        "measures_correlations",
        correlation_matrix(results, correlations),
        correlations,
        "Pearson's r between every two measures over the pairs of models.",
    )
    planes = f"{len(sample.triplets)} planes of {sample.grid} x {sample.grid} points"
    s.finish(
        f"How do six measures of the similarity of {n} models compare?",
        f"Measured on {len(sample.positions)} images of {s.source}; decision boundaries on "
        f"{planes}.",
        answer(n, table, known.sort("r", descending=True)),
        [
            Section("Against similarity by transfer", (), {}, [against]),
            Section(
                "Every two measures", (), {"Correlations over pairs": correlations}, [every_two]
            ),
            Section("Stability and cost", [STABILITY], {"Measures": table}, ()),
        ],
    )


def short_title(name: str) -> str:
    """The name of a measure in a sentence, without its unit."""
    return TITLES[name].split(" (")[0]


@style()
def measures_scatter(measures: list[Measure], correlations: pl.DataFrame) -> Figure:
    """Each of 2 to 7 measures against the first one, with a point per pair of models."""
    figure, axes = panels(3, 2.7, 2.6, rows=2)
    first, others = measures[0], measures[1:]
    x = pair_values(first.matrix)
    for ax, other in zip(axes, others, strict=False):
        y = pair_values(other.matrix)
        r = correlations.filter(a=first.name, b=other.name)["r"][0]
        text = "" if r is None or np.isnan(r) else f"r = {r:.2f}"
        known, labels = ~np.isnan(y), (TITLES[first.name], TITLES[other.name])
        line = trend(x, y) if len(first.matrix) >= FEWEST else None
        scatter(ax, x[known], y[known], *labels, trend=line, text=text)
    for ax in axes[len(others) :]:
        ax.set_axis_off()
    return figure


def correlation_matrix(measures: list[Measure], correlations: pl.DataFrame) -> Figure:
    """r between every two measures, as a matrix with its numbers."""
    values, index = np.eye(len(measures)), {m.name: i for i, m in enumerate(measures)}
    for a, b, r in correlations.select("a", "b", "r").iter_rows():
        values[index[a], index[b]] = values[index[b], index[a]] = np.nan if r is None else r
    return heatmap_figure(
        values,
        [short_title(measure.name) for measure in measures],
        [""] * len(measures),
        "Pearson's r over pairs",
        signed=True,
        order=np.arange(len(measures)),
        limits=(-1.0, 1.0),
    )


def answer(n: int, table: pl.DataFrame, correlations: pl.DataFrame) -> list[str]:
    """The findings in words.

    Args:
        n: number of models.
        table: a row per measure.
        correlations: of similarity with the other measures, the highest first.
    """
    sentences = [verdict(n, correlations)]
    if correlations.height:
        first = correlations.row(0, named=True)
        parts = [correlated(r) for r in correlations.iter_rows(named=True)]
        sentences.append(
            f"Similarity by transfer correlates, over {first['pairs']} pairs of {n} models, with "
            f"{'; '.join(parts)}."
        )
        if n < FEWEST:
            sentences.append(
                f"{n} models are too few for intervals or a verdict (fewer than {FEWEST})."
            )
    else:
        sentences.append(f"{n} models are too few for correlations.")
    ranked = table.drop_nulls("agreement").drop_nans("agreement").sort("agreement")
    if ranked.height:
        last, first = ranked.row(0, named=True), ranked.row(-1, named=True)
        sentences.append(
            f"The most stable measure over draws is {short_title(first['measure'])} (the matrix of "
            f"a draw correlates with that of all images with r = {first['agreement']:.3f}), the "
            f"least stable {short_title(last['measure'])} ({last['agreement']:.3f})."
        )
    cost = ", ".join(
        f"{short_title(r['measure'])} {r['seconds']:.1f} s"
        for r in table.sort("seconds").iter_rows(named=True)
    )
    sentences.append(f"Time for all models, one after another: {cost}.")
    for r in table.filter(pl.col("undefined_pairs") > 0).iter_rows(named=True):
        sentences.append(
            f"{TITLES[r['measure']]} is undefined for {r['undefined_pairs']} pairs: neither model "
            "errs on these images."
        )
    return sentences


def verdict(n: int, correlations: pl.DataFrame) -> str:
    """Whether another measure orders pairs as similarity by transfer does, and how closely."""
    if n < FEWEST or correlations.is_empty():
        return f"Not certain: {n} models are too few to say whether measures agree."
    sure = correlations.filter((pl.col("mantel_p") < LEVEL) & (pl.col("r") > 0))
    best = (sure if sure.height else correlations).row(0, named=True)
    closest = (
        f"the closest is {short_title(best['b'])}, which shares {best['r'] ** 2:.0%} of the "
        "variance of similarity by transfer"
    )
    if sure.is_empty():
        return f"Not certain: no other measure is surely related to it; {closest}."
    return (
        f"Yes, {sure.height} of {correlations.height} other measures are related to it: {closest}."
    )


def correlated(row: dict[str, Any]) -> str:
    """A correlation with similarity in words: r, the noise ceiling, r without noise, Mantel p."""
    p = f"Mantel p {p_text(row['mantel_p'], row['permutations'])}"
    parts = ", ".join(part for part in (noise.text(row, row["r"]), p) if part)
    return f"{short_title(row['b'])} r = {row['r']:.2f} ({parts})"
