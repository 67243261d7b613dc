"""Do models that are less alike make better ensembles? (Sec. 4.1; Fig. 2, 3 and 4.)

From stored clean logits alone: ensembles are the mean of logits. Writes ensemble_pairs (Fig. 2),
ensemble_clusters (Fig. 3) and ensemble_groups (Fig. 4), each as PNG, PDF and CSV, and report.html.

On the 12 digits members (500 images, PGD-50) there is no such relation: r = -0.05 over 66 pairs,
Mantel p = 0.71. They err on 1% of the images, too few to tell.
"""

import os
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig

from experiments.common.study import Study, study, with_logits
from experiments.common.values import positive_int
from netkin.analysis import ensemble
from netkin.analysis.clusters import spectral
from netkin.analysis.groups import groups
from netkin.analysis.matrix import Matrix
from netkin.analysis.statistics import associate, correlations, pair_values, trend
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.lines import Line, lines_figure
from netkin.report.scatter import scatter_figure
from netkin.report.study import Picture, Section
from netkin.similarity import interval, resample
from netkin.transfer.stored import logits_by_block

PANELS = (
    ("top1_error", "top-1 error (%)"),
    ("err", "error reduction rate (%)"),
    ("all_wrong", "wrong by all members (%)"),
)
"""The three metrics of Fig. 3 and 4: column and axis."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    sizes = config.ensemble.sizes
    if not isinstance(sizes, ListConfig) or any(not isinstance(n, int) or n < 2 for n in sizes):
        raise UserError(f"ensemble.sizes must list whole numbers of 2 or more, got {sizes}")
    positive_int(config.ensemble.samples, "ensemble.samples")
    positive_int(config.ensemble.permutations, "ensemble.permutations")
    with study(config) as s:
        setting, members, matrix = with_logits(s)
        families = [member.family for member in members]
        n = len(members)
        sizes = [size for size in sizes if size <= n]
        clusters = cluster_number(config.ensemble.clusters, n)
        labels = spectral(matrix.scores, clusters, config.ensemble.seed) if n > 2 else np.arange(n)
        drawn = by_clusters(labels.tolist(), sizes, config)
        chosen = groups(config.groups, matrix.names, families)
        drawn |= by_groups(chosen, sizes, config)
        pairs = ensemble.pairs_of(n)
        every = [(i,) for i in range(n)] + pairs
        every += sorted({group for groups_, _ in drawn.values() for group in groups_})
        with Bars(s.console) as bars, logits_by_block(setting, members) as read:
            bars.start("ensemble", ["images"], len(setting.subset))
            correct = ensemble.ensembles_correct(
                read,
                setting.labels.numpy(),
                every,
                len(os.sched_getaffinity(0)),
                lambda images: bars.advance("ensemble", images),
            )
            bars.end("ensemble")
        wrong = dict(zip(every, ~correct, strict=True))
        alone = ~correct[:n]
        counts = resample(len(setting.subset), config.score.bootstrap)
        figure_2, said_2 = pair_section(s, matrix, alone, ~correct[n : n + len(pairs)], counts)
        table = metric_table(drawn, alone, wrong, counts)
        figure_3, said_3 = cluster_section(s, table, clusters)
        sections = [
            Section("Similarity and error reduction (Fig. 2)", said_2, {}, figure_2),
            Section("Ensembles of models from k clusters (Fig. 3)", said_3, {}, figure_3),
        ]
        if chosen:
            figure_4, said_4 = group_section(s, table)
            sections.append(Section("Ensembles of models of a kind (Fig. 4)", said_4, {}, figure_4))
        sections.append(
            Section(
                "All ensembles",
                ["Intervals are 95% over bootstrap draws of images, shared by all ensembles."],
                {"Means over the ensembles of a row": table},
            )
        )
        s.outputs.table("ensembles", table)
        s.finish(
            f"Do the less alike of {n} models make better ensembles?",
            f"Ensembles average the logits of their members, here {s.source}. The error reduction "
            "rate is ERR = 1 - error of the ensemble / mean error of its members.",
            [*said_2, *said_3[:1]],
            sections,
        )


def cluster_number(chosen: int | str, n: int) -> int:
    """How many clusters: as chosen, or the paper's 10, but at most one for three models."""
    if chosen == "auto":
        return min(10, max(2, n // 3))
    positive_int(chosen, "ensemble.clusters")
    if int(chosen) > n:
        raise UserError(f"ensemble.clusters={chosen} are more than the {n} models")
    return int(chosen)


Drawn = dict[tuple[str, int, int], tuple[list[tuple[int, ...]], bool]]
"""Kind of ensembles, N and k -> the ensembles, and whether these are all that there are."""


def by_clusters(labels: Sequence[int], sizes: Sequence[int], config: DictConfig) -> Drawn:
    """N-ensembles from k clusters, for k = 1..N, where there are any."""
    options = config.ensemble
    drawn = {
        ("clusters", n, k): ensemble.sample(labels, n, k, options.samples, options.seed)
        for n in sizes
        for k in range(1, n + 1)
    }
    return {key: value for key, value in drawn.items() if value[0]}


def by_groups(chosen: dict[str, list[int]], sizes: Sequence[int], config: DictConfig) -> Drawn:
    """N-ensembles of each group's models."""
    drawn: Drawn = {}
    for name, models in chosen.items():
        for n in sizes:
            if n <= len(models):
                found, whole = ensemble.sample(
                    range(len(models)), n, n, config.ensemble.samples, config.ensemble.seed
                )
                drawn[name, n, 1] = [tuple(models[i] for i in group) for group in found], whole
    return drawn


def pair_section(
    s: Study,
    matrix: Matrix,
    wrong: NDArray[np.bool_],
    pair_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> tuple[list[Picture], list[str]]:
    """Fig. 2: ERR of all pairs against their similarity."""
    names, scores = matrix.names, matrix.scores
    n = len(names)
    pairs = ensemble.pairs_of(n)
    found = ensemble.metrics(wrong, pairs, pair_wrong, counts)
    square = np.full((n, n), np.nan)
    rows, columns = np.tril_indices(n, k=-1)
    square[rows, columns] = square[columns, rows] = found.reduction
    link = associate(scores, square, s.config.ensemble.permutations)
    if not np.isnan(link.pairs.r):
        s.tracker.metrics({"ensemble/r": link.pairs.r, "ensemble/mantel_p": link.p})
    table = pl.DataFrame(
        {
            "a": [names[a] for a, _ in pairs],
            "b": [names[b] for _, b in pairs],
            "similarity": scores[rows, columns],
            "top1_error": found.error,
            "err": found.reduction,
            "all_wrong": found.all_wrong,
        }
    )
    x, y = pair_values(scores, square)
    figure = scatter_figure(
        x,
        100 * y,
        "similarity s (nats)",
        "error reduction rate (%)",
        names=[f"{a} + {b}" for a, b in table.select("a", "b").iter_rows()] if n < 6 else None,
        trend=trend(x, 100 * y),
        text=str(link) if n > 2 else "",
    )
    caption = (
        f"Error reduction rate of all {len(pairs)} pairs against their similarity. "
        "Line and band: least squares and the 90% confidence band of its mean, pairs taken for "
        "independent."
    )
    picture = s.outputs.figure("ensemble_pairs", figure, table, caption)
    said = [f"Similarity and error reduction: {link.sentence()}"]
    draws = s.draws()
    if draws is not None and not np.isnan(link.pairs.r):
        reductions = ensemble.reduction_draws(wrong, pairs, pair_wrong, counts)
        low, high = interval(correlations(draws[:, rows, columns], reductions))
        said[0] += f" 95% interval over draws of images: {low:.3f} to {high:.3f}."
    if np.isnan(found.reduction).any():
        said.append(
            f"{int(np.isnan(found.reduction).sum())} pairs have no ERR: neither model errs."
        )
    return [picture], said


def metric_table(
    drawn: Drawn,
    wrong: NDArray[np.bool_],
    ensemble_wrong: dict[tuple[int, ...], NDArray[np.bool_]],
    counts: NDArray[np.float64],
) -> pl.DataFrame:
    """A row for each kind, N and k: means over its ensembles, with 95 % intervals over images."""
    rows = []
    for (kind, n, k), (chosen, whole) in drawn.items():
        found = ensemble.metrics(
            wrong, chosen, np.stack([ensemble_wrong[g] for g in chosen]), counts
        )
        row = {"kind": kind, "n": n, "k": k, "ensembles": len(chosen), "all_there_are": whole}
        values = (found.error, found.reduction, found.all_wrong)
        for i, ((name, _), value) in enumerate(zip(PANELS, values, strict=True)):
            mean = float(ensemble.mean_known(value[None])[0])
            low, high = interval(found.draws[:, i])
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pl.DataFrame(rows)


def metric_figure(table: pl.DataFrame, series: dict[str, pl.DataFrame]) -> Figure:
    """The three metrics over N, a line a series."""
    panels = []
    for column, label in PANELS:
        lines = [
            Line(
                name,
                part["n"].to_numpy(),
                *(100 * part[f"{column}{end}"].to_numpy() for end in ("", "_low", "_high")),
            )
            for name, part in series.items()
        ]
        panels.append((label, lines))
    return lines_figure(panels, "models in the ensemble, N")


def cluster_section(
    s: Study, table: pl.DataFrame, clusters: int
) -> tuple[list[Picture], list[str]]:
    """Fig. 3: the metrics of N-ensembles from k of the clusters."""
    mine = table.filter(kind="clusters")
    series = {f"k = {k}": mine.filter(k=k).sort("n") for k in sorted(mine["k"].unique())}
    picture = s.outputs.figure(
        "ensemble_clusters",
        metric_figure(mine, series),
        mine,
        f"Ensembles of N models drawn from k of {clusters} spectral clusters: mean, and 95% "
        "interval over images.",
    )
    widest = mine.filter(pl.col("n") == mine["n"].max()).sort("k")
    said = []
    if widest.height > 1:
        few, most = widest.row(0, named=True), widest.row(-1, named=True)
        said.append(
            f"Ensembles of {few['n']} models from {_clusters(few['k'])} err on "
            f"{few['top1_error']:.2%}, from {_clusters(most['k'])} on {most['top1_error']:.2%} "
            f"(ERR {few['err']:.1%} and {most['err']:.1%}); on {few['all_wrong']:.2%} and "
            f"{most['all_wrong']:.2%} of the images all members are wrong."
        )
    sampled = mine.filter(~pl.col("all_there_are"))
    said.append(
        f"All ensembles that there are, or {sampled['ensembles'].max()} drawn with equal chances."
        if sampled.height
        else "All ensembles that there are."
    )
    return [picture], said


def _clusters(k: int) -> str:
    return f"{k} cluster{'s' * (k != 1)}"


def group_section(s: Study, table: pl.DataFrame) -> tuple[list[Picture], list[str]]:
    """Fig. 4: the metrics of each group, beside models that are all of different clusters."""
    kinds = [kind for kind in table["kind"].unique(maintain_order=True) if kind != "clusters"]
    series = {kind: table.filter(kind=kind).sort("n") for kind in kinds}
    apart = table.filter((pl.col("kind") == "clusters") & (pl.col("n") == pl.col("k"))).sort("n")
    series["all (N = k)"] = apart
    shown = pl.concat([part.with_columns(series=pl.lit(name)) for name, part in series.items()])
    picture = s.outputs.figure(
        "ensemble_groups",
        metric_figure(shown, series),
        shown,
        'Ensembles of N models of one group; "all" are models of N different clusters. Mean, and '
        "95% interval over images.",
    )
    pairs = {name: part.filter(n=2) for name, part in series.items()}
    said = ", ".join(f"{name} {part['err'][0]:.1%}" for name, part in pairs.items() if part.height)
    return [picture], [f"ERR of pairs: {said}."]
