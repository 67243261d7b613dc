"""How does similarity by transfer compare with four other measures of the same models and images?

Prediction agreement, error consistency (Cohen's kappa; Geirhos et al. 2020), the cosine of input
gradients and linear CKA of penultimate features (Kornblith et al. 2019, with the unbiased HSIC of
Song et al. 2012). Writes a matrix for each (measure_<name>.csv), measures.csv (stability and
costs), the correlations of every two, and report.html. Features and gradients are stored by model
and shard, so that an interrupted run continues where it stopped.

On the 12 digits members (500 images, PGD-50, 66 pairs) s correlates with the cosine of input
gradients (r = 0.57, Mantel p <= 0.0001) and linear CKA (0.49, 0.0005); for the others |r| < 0.25,
p > 0.05. Noise ceilings are 0.98 to 0.99, of agreement 0.91, of error consistency 0.63.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.cli.measured import Measured
from experiments.cli.study import Study, study
from netkin import similarity
from netkin.analysis import measures, noise
from netkin.analysis.correlation import Definition, correlate
from netkin.analysis.matrix import Matrix, pair_values
from netkin.analysis.measures import Measure
from netkin.analysis.statistics import FEWEST, p_text, trend
from netkin.analysis.verdict import verdict
from netkin.jobs.pool import Advance, Result
from netkin.jobs.progress import Bars
from netkin.passes import Item
from netkin.passes.features import Kind, draw_images, gradient_cosines
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import scatter
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import panels, style

PRELOAD = ("netkin.passes.features",)
TITLES = {
    "similarity": "similarity s (nats)",
    "prediction_agreement": "prediction agreement",
    "error_consistency": "error consistency (kappa)",
    "gradient_cosine": "cosine of input gradients",
    "linear_cka": "linear CKA of features",
}
"""The measures in the order of figures, with their names on axes."""
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    options = config.measures
    with study(config) as s:
        assert s.measured is not None
        images = len(s.measured.evaluation.subset)
        positions = draw_images(images, options.images, options.seed)
        kinds = (Kind("features", positions), Kind("gradients", positions))
        costs = gather(config, s.measured, kinds)
        with s.console.status("comparing") if s.console.is_terminal else Bars(s.console):
            results = all_measures(s, s.measured, kinds, costs)
        report(s, results, len(positions))


def gather(config: DictConfig, m: Measured, kinds: Sequence[Kind]) -> dict[str, float]:
    """Compute what the store lacks, and time a batch of each model.

    Returns the seconds per image of a forward pass, an attack (craft), features and gradients,
    each summed over the models.
    """
    r = m.run
    with r.working():
        for kind in kinds:
            missing = [(model, tuple(kind.missing(r.results, model))) for model in m.members]
            todo = [Item(model.name, model, shards) for model, shards in missing if shards]
            parts = kind.shards(r.results)
            images = sum(len(parts[i]) for item in todo for i in item.todo)
            r.stage(kind.name, kind.compute, todo, images)
        models = [Item(model.name, model) for model in m.members]
        timed = r.stage("cost", partial(_cost, config.measures.seconds), models, len(models))
    r.raise_failures()
    costs = [result.cost for _, result in timed]
    return {name: sum(cost[name] for cost in costs) for name in costs[0]}


@dataclass(frozen=True, kw_only=True)
class Timed(Result):
    """The seconds per image of each kind of pass."""

    cost: dict[str, float]


def _cost(seconds: float, context: tuple[Any, Any, Any], item: Item, advance: Advance) -> Timed:
    from netkin.passes.features import time_passes
    from netkin.passes.probe import probe

    start = time.perf_counter()
    timing = probe(*context[:2], item.of_model(), seconds, advance)
    cost = {"craft": timing.craft, "forward": timing.transfer}
    cost |= time_passes(*context[:2], item.of_model(), timing.batch)
    return Timed(cost=cost, seconds=time.perf_counter() - start)


def all_measures(
    s: Study, measured: Measured, kinds: Sequence[Kind], costs: dict[str, float]
) -> list[Measure]:
    """The five measures with their draws, of the same models and images."""
    found, members, (features, gradients) = measured.results, measured.members, kinds
    chosen = list(features.positions)
    n, images, bootstrap = len(members), len(chosen), s.config.measures.bootstrap
    outcomes = measured.outcomes.on(chosen)
    draws = similarity.resample(images, bootstrap), noise.halves(images)
    weights = np.vstack([np.ones(images), *draws])
    predictions = np.stack([found.predictions(m).numpy() for m in members])[:, chosen]
    grams = [measures.gram(features.read(found, member).numpy()) for member in members]
    cosines = gradient_cosines(found, members, gradients)
    cka = measures.linear_cka(np.stack(grams), weights)
    seconds = {name: cost * images for name, cost in costs.items()}
    forward = seconds["forward"]
    others = {
        "prediction_agreement": (measures.prediction_agreement(predictions, weights), forward),
        "error_consistency": (measures.error_consistency(outcomes.correct, weights), forward),
        "gradient_cosine": (measures.mean_cosine(cosines, weights), seconds["gradients"]),
        "linear_cka": (cka, seconds["features"]),
    }
    scores, total = noise.sampled_scores(outcomes, bootstrap), seconds["craft"] + (1 + n) * forward
    return [
        Measure("similarity", scores, total, n * forward),
        *(Measure.of(name, values, bootstrap, cost) for name, (values, cost) in others.items()),
    ]


def report(s: Study, results: list[Measure], images: int) -> None:
    """Tables, figures and the page."""
    n, k, permutations = len(s.names), len(results), s.config.measures.permutations
    for measure in results:
        s.outputs.table(f"measure_{measure.name}", Matrix(s.names, measure.matrix).table())
    table = s.outputs.table("measures", pl.DataFrame([measure.summary() for measure in results]))
    of = [Definition(m.name, m.matrix, m.sampled) for m in results]
    rows = [correlate(*two, permutations) for two in combinations(of, 2)]
    names = {"reference": "a", "other": "b", "n": "pairs", "p": "mantel_p"}
    correlations = pl.DataFrame(rows, infer_schema_length=None).rename(names).drop("test")
    known = correlations.filter(a="similarity").drop_nulls("r").drop_nans("r")
    s.tracker.summary({f"measures/r/{r['b']}": r["r"] for r in known.iter_rows(named=True)})
    pairs = Matrix(s.names, results[0].matrix).pairs(**{m.name: m.matrix for m in results})
    drawn = measures_scatter(results, correlations)
    against = s.outputs.figure("measures_scatter", drawn, pairs.drop("score"), text("against"))
    values, at = np.eye(k), np.triu_indices(k, 1)
    values[at] = values.T[at] = correlations["r"].cast(pl.Float64).to_numpy()
    titles, label, order = [short_title(m.name) for m in results], text("r"), np.arange(k)
    drawn = heatmap_figure(
        values, titles, [""] * k, label, signed=True, order=order, limits=(-1.0, 1.0)
    )
    two = s.outputs.figure("measures_correlations", drawn, correlations, text("every_two"))
    tables = {"Correlations over pairs": correlations}
    s.finish(
        f"How do five measures of the similarity of {n} models compare?",
        f"Measured on {images} images of {s.source}.",
        answer(n, table, known.sort("r", descending=True)),
        [
            Section("Against similarity by transfer", (), {}, [against]),
            Section("Every two measures", (), tables, [two]),
            Section("Stability and cost", [text("stability")], {"Measures": table}, ()),
        ],
    )


def short_title(name: str) -> str:
    """The name of a measure in a sentence, without its unit."""
    return TITLES[name].split(" (")[0]


@style()
def measures_scatter(measures: list[Measure], correlations: pl.DataFrame) -> Figure:
    """Each measure against the first one, with a point per pair of models."""
    first, *others = measures
    figure, axes = panels(2, 2.7, 2.6, rows=2)
    x = pair_values(first.matrix)
    for ax, other in zip(axes, others, strict=True):
        y = pair_values(other.matrix)
        r = correlations.filter(a=first.name, b=other.name)["r"][0]
        note = "" if r is None or np.isnan(r) else f"r = {r:.2f}"
        known, labels = ~np.isnan(y), (TITLES[first.name], TITLES[other.name])
        line = trend(x, y) if len(first.matrix) >= FEWEST else None
        scatter(ax, x[known], y[known], *labels, trend=line, text=note)
    return figure


def answer(n: int, table: pl.DataFrame, correlations: pl.DataFrame) -> list[str]:
    """The findings on n models, the verdict first, by a table of the measures and the correlations
    of similarity with the others, the highest first."""
    sentences = [decided(n, correlations)]
    if correlations.height:
        listed = "; ".join(map(correlated, correlations.to_dicts()))
        sentences.append(text("correlates", pairs=correlations["pairs"][0], n=n, listed=listed))
        if n < FEWEST:
            sentences.append(text("few", n=n, fewest=FEWEST))
    else:
        sentences.append(text("none", n=n))
    ranked = table.drop_nulls("agreement").drop_nans("agreement").sort("agreement")
    if ranked.height:
        names, r = [short_title(name) for name in ranked["measure"]], ranked["agreement"]
        sentences.append(text("stable", first=names[-1], r=r[-1], last=names[0], low=r[0]))
    costs = table.sort("seconds").to_dicts()
    cost = ", ".join(f"{short_title(r['measure'])} {r['seconds']:.1f} s" for r in costs)
    sentences.append(text("cost", cost=cost))
    undefined = table.filter(pl.col("undefined_pairs") > 0).select("measure", "undefined_pairs")
    named = [text("undefined", measure=TITLES[name], pairs=k) for name, k in undefined.rows()]
    return [*sentences, *named]


def decided(n: int, correlations: pl.DataFrame) -> str:
    """Whether another measure orders pairs as similarity by transfer does, and how closely."""
    if n < FEWEST or correlations.is_empty():
        return text("verdict.few", n=n)
    related = [verdict(r["r"], p=r["mantel_p"]) == "Yes" for r in correlations.to_dicts()]
    sure = correlations.filter(pl.Series(related))
    best = (sure if sure.height else correlations).row(0, named=True)
    values = {"best": short_title(best["b"]), "share": best["r"] ** 2, "n": correlations.height}
    return text("verdict", "Yes" if sure.height else "Not certain", sure=sure.height, **values)


def correlated(row: dict[str, Any]) -> str:
    """A correlation with similarity: r, the noise ceiling, r without noise, Mantel p."""
    p = f"Mantel p {p_text(row['mantel_p'], row['permutations'])}"
    parts = ", ".join(filter(None, (noise.text(row), p)))
    return f"{short_title(row['b'])} r = {row['r']:.2f} ({parts})"
