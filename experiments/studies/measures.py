"""Which measure of similarity predicts what models are good for?

Similarity by transfer, equal mistakes on adversarial images, prediction agreement, error
consistency (Cohen's kappa; Geirhos et al. 2020), CAPA (Goel et al. 2025), the cosine of input
gradients and linear CKA of penultimate features (Kornblith et al. 2019, with the unbiased HSIC of
Song et al. 2012), of the same models and images. Each predicts which pairs ensemble well (error
reduction rate), and whose students learn more where the store has students, by a line that is
fitted on other models. The measures and the errors of ensembles are of different images: halves of
these, since equal errors on one image would predict themselves.

Writes a matrix for each (measure_<name>.csv), measures_uses.csv, measures.csv (stability),
measures_scatter.csv (intervals), the correlations of every two, and report.html. Features and
gradients are stored by model and shard, so that an interrupted run continues where it stopped.

On the 12 digits members (500 images, PGD-50, 66 pairs) no measure predicts ERR beyond chance: the
best has R2 = 0.02 (95% interval over models -0.06 to 0.10), and ERR of two halves of the images do
not correlate (experiments/results/measures.md). s correlates with the cosine of input gradients
(r = 0.63, Mantel p <= 0.0001), and not for certain with another.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig
from scipy.special import softmax

from experiments.cli.measured import Measured
from experiments.cli.study import Study, study
from experiments.studies.ensemble import ensembles_wrong
from netkin import similarity
from netkin.analysis import ensemble, measures, noise
from netkin.analysis.correlation import Definition, correlate
from netkin.analysis.matrix import Matrix, pair_values
from netkin.analysis.measures import Measure, Use, predict
from netkin.analysis.statistics import FEWEST, correlations, mean_known, p_text, trend
from netkin.analysis.verdict import Verdict, verdict
from netkin.jobs.progress import Bars
from netkin.passes import Item
from netkin.passes.features import Kind, draw_images, gradient_cosines
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import scatter
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.training.weights import students_of

MOST = 999  # permutations of the models, for what measures predict
BLIND = 0.1
"""The share of pairs whose intervals leave out the mean of all, below which a measure cannot tell
pairs apart: twice that of equal pairs, as pairs share models."""
PRELOAD = ("netkin.passes.features",)
TITLES = {
    "similarity": "similarity s (nats)",
    "same_mistake": "equal mistakes (share)",
    "prediction_agreement": "prediction agreement",
    "error_consistency": "error consistency (kappa)",
    "capa": "CAPA (kappa)",
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
        gather(s.measured, kinds)
        with s.console.status("comparing") if s.console.is_terminal else Bars(s.console):
            results = all_measures(s, s.measured, kinds)
            uses = all_uses(s, s.measured, results, positions)
        report(s, results, uses, positions)


def gather(m: Measured, kinds: Sequence[Kind]) -> None:
    """Compute what the store lacks of features and gradients."""
    r = m.run
    with r.working():
        for kind in kinds:
            missing = [(model, tuple(kind.missing(r.results, model))) for model in m.members]
            todo = [Item(model.name, model, shards) for model, shards in missing if shards]
            parts = kind.shards(r.results)
            images = sum(len(parts[i]) for item in todo for i in item.todo)
            r.stage(kind.name, kind.compute, todo, images)
    r.raise_failures()


def all_measures(s: Study, measured: Measured, kinds: Sequence[Kind]) -> list[Measure]:
    """The seven measures with their draws, of the same models and images."""
    found, members, (features, gradients) = measured.results, measured.members, kinds
    chosen = list(features.positions)
    images, bootstrap = len(chosen), s.config.measures.bootstrap
    outcomes = measured.outcomes.on(chosen)
    draws = similarity.resample(images, bootstrap), noise.halves(images)
    weights = np.vstack([np.ones(images), *draws])
    logits = np.stack([found.logits(m).numpy() for m in members])[:, chosen]
    predictions, labels = logits.argmax(axis=2), found.evaluation.labels.numpy()[chosen]
    probabilities = softmax(logits.astype(float), axis=2)
    classes = found.mistakes(members)[:, :, chosen]
    grams = [measures.gram(features.read(found, member).numpy()) for member in members]
    cosines = np.moveaxis(gradient_cosines(found, members, gradients), 0, 2)
    values: dict[str, tuple[measures.Matrices, measures.Limits | None]] = {
        "same_mistake": measures.same_mistake(classes, labels, weights),
        "prediction_agreement": measures.prediction_agreement(predictions, weights),
        "error_consistency": measures.error_consistency(outcomes.correct, weights),
        "capa": measures.capa(probabilities, labels, weights),
        "gradient_cosine": (measures.mean_over_images(cosines, weights), None),
        "linear_cka": (measures.linear_cka(np.stack(grams), weights), None),
    }
    results = [Measure("similarity", noise.sampled_scores(outcomes, bootstrap))]
    for name, (of, limits) in values.items():
        sampled = noise.Sampled(of[0], of[1 : bootstrap + 1], of[bootstrap + 1 :])
        results.append(Measure(name, sampled, limits))
    return results


class Used(NamedTuple):
    """A use, how well the measures predict it, and how well the models' accuracy does alone, of
    which one half of the images explains a share of the values of the other half."""

    name: str
    predicted: pl.DataFrame  # see `predict`
    alone: pl.DataFrame
    ceiling: float = 1.0

    @classmethod
    def of(
        cls, name: str, use: Use, accuracy: NDArray, permutations: int, ceiling: float = 1.0
    ) -> "Used":
        """By so many permutations, and the accuracies, of the form of the use's measures."""
        alone = use._replace(measures={"accuracy alone": accuracy})
        return cls(name, predict(use, permutations), predict(alone, permutations), ceiling)


def all_uses(s: Study, m: Measured, results: list[Measure], positions: Sequence[int]) -> list[Used]:
    """What the measures predict: the ERR of pairs, and what students of a teacher learn."""
    n, pairs = len(m.members), ensemble.pairs_of(len(m.members))
    if n < FEWEST:
        return []
    groups = [*((i,) for i in range(n)), *pairs]
    wrong = ensembles_wrong(s, m.results, m.members, groups)[:, list(positions)]
    weights = noise.halves(len(positions))
    err = ensemble.reduction_draws(wrong[:n], pairs, wrong[n:], weights)
    others = err.reshape(-1, 2, len(pairs))[:, ::-1].reshape(err.shape)
    right = weights @ ~wrong[:n].T / weights.sum(axis=1, keepdims=True)  # [halves, N]
    use = Use(others, np.array(pairs), {of.name: of.sampled.halves for of in results})
    ceiling = float(mean_known(correlations(err[::2], err[1::2])))
    most = min(s.config.measures.permutations, MOST)
    used = Used.of("pairs", use, (right[:, :, None] + right[:, None]) / 2, most, ceiling)
    return [used, *taught(s, m, results, most)]


def taught(s: Study, m: Measured, results: list[Measure], permutations: int) -> list[Used]:
    """The same for the mean accuracy of the stored students of each teacher among the models."""
    dataset, student = s.config.dataset.name, s.config.dataset.student
    taught_by = students_of(m.run.results.store, dataset, student)
    teachers = [name for name in s.names if name in taught_by and name != student]
    if student not in s.names or len(teachers) < FEWEST:
        return []
    at, row = [s.names.index(name) for name in teachers], s.names.index(student)
    y = [np.mean([notes["test_accuracy"] for notes in taught_by[name]]) for name in teachers]
    by = {of.name: of.sampled.values[row, at][None] for of in results}
    use = Use(np.array([y], float), np.arange(len(teachers))[:, None], by)
    return [Used.of("students", use, m.outcomes.correct[at].mean(axis=1)[None], permutations)]


def report(s: Study, results: list[Measure], uses: list[Used], positions: Sequence[int]) -> None:
    """Tables, figures and the page."""
    n, k, permutations = len(s.names), len(results), s.config.measures.permutations
    matrices = {of.name: of.sampled.values for of in results}
    for name, matrix in matrices.items():
        s.outputs.table(f"measure_{name}", Matrix(s.names, matrix).table())
    table = s.outputs.table("measures", pl.DataFrame([measure.summary() for measure in results]))
    of = [Definition(m.name, m.sampled.values, m.sampled) for m in results]
    rows = [correlate(*two, permutations) for two in combinations(of, 2)]
    names = {"reference": "a", "other": "b", "n": "pairs", "p": "mantel_p"}
    correlations = pl.DataFrame(rows, infer_schema_length=None).rename(names).drop("test")
    known = correlations.filter(a="similarity").drop_nulls("r").drop_nans("r")
    s.tracker.summary({f"measures/r/{r['b']}": r["r"] for r in known.iter_rows(named=True)})
    ends = {
        f"{m.name}_{end}": pl.Series(values).fill_nan(None)
        for m in results
        for end, values in zip(("low", "high"), m.ends, strict=True)
    }
    pairs = Matrix(s.names, results[0].sampled.values).pairs(**matrices).with_columns(**ends)
    drawn = measures_scatter(results, correlations)
    against = s.outputs.figure("measures_scatter", drawn, pairs.drop("score"), text("against"))
    values, at = np.eye(k), np.triu_indices(k, 1)
    values[at] = values.T[at] = correlations["r"].cast(pl.Float64).to_numpy()
    titles, label, order = [short_title(name) for name in matrices], text("r"), np.arange(k)
    drawn = heatmap_figure(
        values, titles, [""] * k, label, signed=True, order=order, limits=(-1.0, 1.0)
    )
    two = s.outputs.figure("measures_correlations", drawn, correlations, text("every_two"))
    used = {use.name: pl.concat([use.predicted, use.alone]) for use in uses}
    if uses:
        every = [of.select(pl.lit(name).alias("use"), pl.all()) for name, of in used.items()]
        s.outputs.table("measures_uses", pl.concat(every))
    assert s.measured is not None
    wrong = ~s.measured.outcomes.on(positions).correct
    shown = {text(f"table.{name}"): of for name, of in used.items()}
    s.finish(
        f"Which of {k} measures of similarity predicts what {n} models are good for?",
        f"Measured on {len(positions)} images of {s.source}.",
        answer(n, table, known.sort("r", descending=True), uses, wrong),
        [
            Section("What each measure predicts", [text("held_out")] if uses else [], shown, ()),
            Section("Against similarity by transfer", (), {}, [against]),
            Section("Every two measures", (), {"Correlations over pairs": correlations}, [two]),
            Section("Stability", [text("stability")], {"Measures": table}, ()),
        ],
    )


def short_title(name: str) -> str:
    """The name of a measure in a sentence, without its unit."""
    return TITLES[name].split(" (")[0]


@style()
def measures_scatter(measures: list[Measure], correlations: pl.DataFrame) -> Figure:
    """Each measure against the first one, with a point per pair of models."""
    first, *others = measures
    figure, axes = panels(3, 2.7, 2.6, rows=2)
    x = pair_values(first.sampled.values)
    for ax, other in zip(axes, others, strict=True):
        y = pair_values(other.sampled.values)
        r = correlations.filter(a=first.name, b=other.name)["r"][0]
        note = "" if r is None or np.isnan(r) else f"r = {r:.2f}"
        known, labels = ~np.isnan(y), (TITLES[first.name], TITLES[other.name])
        line = trend(x, y) if len(first.sampled.values) >= FEWEST else None
        scatter(ax, x[known], y[known], *labels, trend=line, text=note)
    return figure


def answer(
    n: int, table: pl.DataFrame, related: pl.DataFrame, uses: list[Used], wrong: NDArray[np.bool_]
) -> list[str]:
    """The findings on n models, the verdict first, by a table of the measures, the correlations of
    similarity with the others, the highest first, the uses, and which images [N, I] models
    misclassify."""
    sentences = [decided(use, len(uses)) for use in uses] or [text("verdict.few", n=n)]
    if uses and uses[-1].name != "students":
        sentences.append(text("no_students", fewest=FEWEST))
    blind = table.filter(pl.col("told_apart") < BLIND)["measure"].to_list()
    if blind and n >= FEWEST:
        named, images = " and ".join(map(short_title, blind)), int(wrong.any(axis=0).sum())
        sentences.append(text("blind", named=named, errors=images, images=wrong.shape[1]))
    if related.height:
        listed = "; ".join(map(correlated, related.to_dicts()))
        sentences.append(text("correlates", pairs=related["pairs"][0], n=n, listed=listed))
    else:
        sentences.append(text("none", n=n))
    ranked = table.drop_nulls("agreement").drop_nans("agreement").sort("agreement")
    if ranked.height:
        names, r = [short_title(name) for name in ranked["measure"]], ranked["agreement"]
        sentences.append(text("stable", first=names[-1], r=r[-1], last=names[0], low=r[0]))
    undefined = table.filter(pl.col("undefined_pairs") > 0).select("measure", "undefined_pairs")
    named = [text("undefined", measure=TITLES[name], pairs=k) for name, k in undefined.rows()]
    return [*sentences, *named]


def decided(use: Used, uses: int) -> str:
    """Which measure predicts a use, how well, and how certain that is: by p times the number of
    uses that are looked at, and by the interval over models."""
    found, best = predicts(use.predicted, uses)
    sentence = text(
        "verdict",
        found,
        best=short_title(best["measure"]),
        what=text(f"use.{use.name}"),
        p=p_text(best["p"]),
        more=text("more" if best["r"] > 0 else "less"),
        **{key: best[key] for key in ("r2", "low", "high")},
    )
    sentence = sentence[0].upper() + sentence[1:] + text("alone", r2=use.alone["r2"][0])
    return sentence + (text("ceiling", r=use.ceiling) if use.ceiling < 1 else "")


def predicts(predicted: pl.DataFrame, uses: int = 1) -> tuple[Verdict, dict[str, Any]]:
    """Whether the best of the measures predicts one of so many uses, and its row. That no measure
    predicts it is not certain either."""
    ranked = predicted.sort(pl.col("r2").fill_nan(-np.inf), descending=True)
    best = ranked.row(0, named=True)
    best["p"] = min(best["p"] * uses, 1.0)
    found = verdict(best["r2"], (best["low"], best["high"]), best["p"])
    return "Not certain" if found == "No" else found, best


def correlated(row: dict[str, Any]) -> str:
    """A correlation with similarity: r, the noise ceiling, r without noise, Mantel p."""
    p = f"Mantel p {p_text(row['mantel_p'], row['permutations'])}"
    parts = ", ".join(filter(None, (noise.text(row), p)))
    return f"{short_title(row['b'])} r = {row['r']:.2f} ({parts})"
