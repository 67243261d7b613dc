"""Do less similar models make better ensembles? (Sec. 4.1; Fig. 2, 3 and 4.)

Ensembles average the stored clean logits of their members. Writes ensemble_pairs (Fig. 2),
ensemble_clusters (Fig. 3) and ensemble_groups (Fig. 4), each as a figure with its table,
ensembles.csv and report.html.

On the 12 digits members (500 images, PGD-50) no relation was found: r = -0.07 over 66 pairs (noise
ceiling 0.38), Mantel p = 0.65; given the members' errors, partial r = -0.08, p = 0.58. They err on
1% of the images, too few to measure one.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.measured import with_logits
from experiments.cli.study import Study, study
from experiments.cli.values import naming
from netkin.analysis import ensemble
from netkin.analysis.clusters import choose_k, spectral
from netkin.analysis.correlation import Definition, correlate, note, sentence
from netkin.analysis.groups import groups
from netkin.analysis.matrix import Matrix, pair_index, square
from netkin.analysis.noise import Sampled, halves, over_images, sampled_scores
from netkin.analysis.statistics import FEWEST, mantel, paired, trend
from netkin.analysis.verdict import verdict
from netkin.jobs.progress import Bars
from netkin.model import Model
from netkin.report.plots import Line, lines_figure, scatter_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Picture, Section
from netkin.results import Results
from netkin.similarity import interval, resample

PANELS = (
    ("top1_error", "top-1 error (%)"),
    ("err", "error reduction rate (%)"),
    ("all_wrong", "wrong in all members (%)"),
)
"""The three metrics of Fig. 3 and 4: column, and label of the axis."""
ALL = "all (N = k)"
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    with study(config) as s:
        r, members, matrix = with_logits(s)
        n = len(members)
        sizes = [size for size in config.ensemble.sizes if size <= n]
        with naming({"k": "ensemble.clusters"}):
            clusters, _ = choose_k(config.ensemble.clusters, matrix.scores)
        labels = spectral(matrix.scores, clusters, config.ensemble.seed)
        with naming({"group": "groups: group"}):
            chosen = groups(config.groups, matrix.names, [member.family for member in members])
        drawn = draw(labels.tolist(), chosen, sizes, config)
        pairs = ensemble.pairs_of(n)
        every = [(i,) for i in range(n)] + pairs
        every += sorted({group for ensembles, _ in drawn.values() for group in ensembles})
        rows = ensembles_wrong(s, r.results, members, every)
        wrong, alone = dict(zip(every, rows, strict=True)), rows[:n]
        counts = resample(rows.shape[1], config.score.bootstrap)
        by_pair = pair_section(s, matrix, alone, rows[n:][: len(pairs)], counts)
        table = pl.DataFrame(
            {
                **{"kind": kind, "n": size, "k": k},
                **{"ensembles": len(some), "complete": complete},
                **ensemble.metrics(alone, some, np.stack([wrong[g] for g in some]), counts),
            }
            for (kind, size, k), (some, complete) in drawn.items()
        )
        by_cluster = cluster_section(s, table, clusters, rows.shape[1])
        sections = [by_pair, by_cluster, *([group_section(s, table)] if chosen else [])]
        tables = {"Means over the ensembles of a row": s.outputs.table("ensembles", table)}
        intervals = text("intervals", few=ensemble.FEW)
        s.finish(
            f"Do less similar ones of {n} models make better ensembles?",
            f"Ensembles average the logits of their members, here {s.source}. The error reduction "
            "rate is ERR = 1 - error of the ensemble / mean error of its members.",
            [*by_pair.paragraphs, *by_cluster.paragraphs[:1]],
            [*sections, Section("All ensembles", [intervals], tables)],
        )


# Ensembles of stored logits


def ensembles_wrong(
    s: Study, results: Results, models: Sequence[Model], groups: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Which images each of G ensembles of models with clean logits misclassifies, [G, I]."""
    with Bars(s.console) as bars, results.logits_by_block(models) as read:
        bars.start("ensemble", ["images"], len(results.evaluation.subset))
        correct = ensemble.ensembles_correct(
            read,
            results.evaluation.labels.numpy(),
            groups,
            len(os.sched_getaffinity(0)),
            lambda images: bars.advance("ensemble", images),
        )
        bars.end("ensemble")
    return ~correct


Drawn = dict[tuple[str, int, int], tuple[list[tuple[int, ...]], bool]]
"""Kind of ensembles, N and k -> the ensembles, and whether these are all ensembles of the kind."""


def draw(
    labels: Sequence[int], chosen: dict[str, list[int]], sizes: Sequence[int], config: DictConfig
) -> Drawn:
    """Ensembles of N models from k clusters, for k = 1..N, and of N models of each group, where
    there are any."""
    samples, seed = config.ensemble.samples, config.ensemble.seed
    drawn: Drawn = {
        ("clusters", n, k): ensemble.sample(labels, n, k, samples, seed)
        for n in sizes
        for k in range(1, n + 1)
    }
    for name, models in chosen.items():
        for n in sizes:
            if n <= len(models):
                some, complete = ensemble.sample(range(len(models)), n, n, samples, seed)
                drawn[name, n, 1] = [tuple(models[i] for i in g) for g in some], complete
    return {key: value for key, value in drawn.items() if value[0]}


# Pairs (Fig. 2)


def pair_section(
    s: Study,
    matrix: Matrix,
    wrong: NDArray[np.bool_],
    pair_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> Section:
    """ERR of all pairs against their similarity."""
    scores, n, permutations = matrix.scores, len(matrix.names), s.config.ensemble.permutations
    table = pair_table(matrix, wrong, pair_wrong, counts)
    err, mean, gap = (
        square(table[name].to_numpy(), n) for name in ("err", "member_error", "error_gap")
    )
    images = None
    if s.measured is not None:
        ours = sampled_scores(s.measured.outcomes, s.config.score.bootstrap).at(*pair_index(n))
        reductions = (
            ensemble.reduction_draws(wrong, ensemble.pairs_of(n), pair_wrong, weights)
            for weights in (counts, halves(wrong.shape[1]))
        )
        draws, of_halves = reductions
        images = over_images(ours, Sampled(table["err"].to_numpy(), draws, of_halves), n)
    of = Definition("similarity", scores), Definition("error reduction", err)
    row = correlate(*of, permutations, images)
    beyond = mantel(scores, err, permutations, controls=(mean, gap))
    r, (x, y) = row["r"], paired(scores, err)
    if not np.isnan(r):
        s.tracker.summary({"ensemble/r": r, "ensemble/mantel_p": row["p"]})
    figure = scatter_figure(
        *(x, 100 * y, "similarity s (nats)", "error reduction rate (%)"),
        names=[f"{a} + {b}" for a, b in table.select("a", "b").iter_rows()] if n < 6 else None,
        trend=trend(x, 100 * y) if n >= FEWEST else None,
        text=note(row) if n > 2 else "",
    )
    caption = text("pairs", n=table.height)
    picture = s.outputs.figure("ensemble_pairs", figure, table, caption)
    found = verdict(-r, p=row["p"])  # is a pair better the less similar it is?
    decided, adds = text("verdict", found), text("beyond.few", models=n)
    if n < FEWEST or np.isnan(r):
        decided = text("verdict.few", models=n)
    if n >= FEWEST and not np.isnan(beyond.r):
        adds = text("beyond", verdict(-beyond.r, p=beyond.p))
        adds = text("beyond.found", verdict=adds, r=beyond.r, p=beyond.text())
    ranked, errors = table.sort("similarity")["top1_error"], table["top1_error"]
    half = max(table.height // 2, 1)  # what similarity changes in plain rates
    effect = text(
        "effect",
        low=ranked.head(half).mean(),
        high=ranked.tail(half).mean(),
        images=wrong.shape[1],
        one=1 / wrong.shape[1],
        least=errors.min(),
        most=errors.max(),
    )
    paragraphs = [f"{decided} {effect}", text("association", sentence=sentence(row)), adds]
    worth, line = table["err_of_one_image"].drop_nans(), trend(x, y)
    if line is not None and len(worth):
        change, median = abs(line.slope) * float(np.ptp(line.x)), float(np.median(worth))
        paragraphs += [text("one_image", median=median, effect=change)] if median > change else []
    if undefined := table["err"].is_nan().sum():
        paragraphs.append(text("undefined", n=undefined))
    return Section("Similarity and error reduction (Fig. 2)", paragraphs, {}, [picture])


def pair_table(
    matrix: Matrix,
    wrong: NDArray[np.bool_],
    pair_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> pl.DataFrame:
    """A row a pair: similarity (nats), errors, ERR with its 95 % interval, images that either model
    misclassifies, and what one more misclassified image takes from ERR."""
    groups = ensemble.pairs_of(len(wrong))
    a, b = np.array(groups).T
    alone, error = wrong.mean(axis=1), pair_wrong.mean(axis=1)
    mean = (alone[a] + alone[b]) / 2
    drawn = ensemble.reduction_draws(wrong, groups, pair_wrong, counts)
    ends, events = [], []
    for i, group in enumerate(groups):
        members = wrong[list(group)].mean(axis=0)
        events.append(int((members > 0).sum()))
        few = min(pair_wrong[i].sum(), events[-1]) < ensemble.FEW
        exact = ensemble.reduction_interval(pair_wrong[i], members, 2)
        ends.append(exact if few else interval(drawn[:, i]))
    return pl.DataFrame(
        {
            "a": [matrix.names[i] for i in a],
            "b": [matrix.names[i] for i in b],
            "similarity": matrix.scores[a, b],
            "top1_error": error,
            "err": ensemble.reduction(error, mean),
            "err_low": [low for low, _ in ends],
            "err_high": [high for _, high in ends],
            "all_wrong": (wrong[a] & wrong[b]).mean(axis=1),
            "member_error": mean,
            "error_gap": np.abs(alone[a] - alone[b]),
            "images_with_errors": events,
            "err_of_one_image": [1 / (wrong.shape[1] * m) if m else np.nan for m in mean],
        }
    )


# Clusters and groups (Fig. 3 and 4)


def metric_figure(
    s: Study, name: str, series: dict[str, pl.DataFrame], rows: pl.DataFrame, caption: str
) -> Picture:
    """The three metrics over N, a line per series, with the rows as its table."""
    panels = []
    for column, label in PANELS:
        values = [pl.col(column + end) * 100 for end in ensemble.ENDS]
        lines = [Line(key, *part.select("n", *values).to_numpy().T) for key, part in series.items()]
        panels.append((label, lines))
    return s.outputs.figure(name, lines_figure(panels, "models in the ensemble, N"), rows, caption)


def cluster_section(s: Study, table: pl.DataFrame, clusters: int, images: int) -> Section:
    """Fig. 3: the metrics of ensembles of N models from k of the clusters."""
    rows = table.filter(kind="clusters")
    series = {f"k = {k}": rows.filter(k=k).sort("n") for k in sorted(rows["k"].unique())}
    caption = text("by_cluster", clusters=clusters)
    picture = metric_figure(s, "ensemble_clusters", series, rows, caption)
    largest = rows.filter(pl.col("n") == rows["n"].max()).sort("k").to_dicts()
    paragraphs = []
    if len(largest) > 1:
        few, most = largest[0], largest[-1]
        paragraphs.append(text("clusters", few=few, most=most))
        if abs(few["top1_error"] - most["top1_error"]) <= 1 / images:
            paragraphs[0] += text("nothing", worth=1 / images)
    sampled = rows.filter(~pl.col("complete"))
    number = sampled["ensembles"].max()
    paragraphs.append(text("all") if sampled.is_empty() else text("sampled", n=number))
    return Section("Ensembles of models from k clusters (Fig. 3)", paragraphs, {}, [picture])


def group_section(s: Study, table: pl.DataFrame) -> Section:
    """Fig. 4: the metrics of each group, beside those of members from different clusters."""
    kinds = [kind for kind in table["kind"].unique(maintain_order=True) if kind != "clusters"]
    series = {kind: table.filter(kind=kind).sort("n") for kind in kinds}
    apart = table.filter((pl.col("kind") == "clusters") & (pl.col("n") == pl.col("k"))).sort("n")
    series[ALL] = apart
    rows = pl.concat([part.with_columns(series=pl.lit(name)) for name, part in series.items()])
    picture = metric_figure(s, "ensemble_groups", series, rows, text("by_group"))
    pairs = {name: part.filter(n=2)["err"] for name, part in series.items()}
    errs = ", ".join(f"{name} {err[0]:.1%}" for name, err in pairs.items() if len(err))
    title = "Ensembles of models of one kind (Fig. 4)"
    return Section(title, [text("groups", errs=errs)], {}, [picture])
