"""Do less similar models make better ensembles? (Sec. 4.1; Fig. 2, 3 and 4.)

Ensembles average the stored clean logits of their members. Writes ensemble_pairs (Fig. 2),
ensemble_clusters (Fig. 3) and ensemble_groups (Fig. 4), each as PNG, PDF, SVG and CSV,
and report.html.

On the 12 digits members (500 images, PGD-50) no relation was found: r = -0.08 over 66 pairs (noise
ceiling 0.59), Mantel p = 0.59; given the members' errors, partial r = -0.02, p = 0.90. They err on
1% of the images, too few to measure one.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.ensemble_pairs import pair_section
from experiments.cli.ensembles import build_variants, ensembles_wrong, with_variants
from experiments.cli.keys import naming
from experiments.cli.study import Study, study, with_logits
from experiments.cli.values import positive_int, whole_numbers
from netkin.analysis import ensemble
from netkin.analysis.clusters import choose_k, spectral
from netkin.analysis.groups import groups
from netkin.report.plots import Line, lines_figure
from netkin.report.study import Section
from netkin.similarity import resample

PANELS = (
    ("top1_error", "top-1 error (%)"),
    ("err", "error reduction rate (%)"),
    ("all_wrong", "wrong in all members (%)"),
)
"""The three metrics of Fig. 3 and 4: column, and label of the axis."""
INTERVALS = (
    "Intervals are 95%: over bootstrap draws of images, shared by all ensembles; where fewer than "
    f"{ensemble.FEW} images decide, exact (Clopper and Pearson) and conservative instead. "
    "err_of_one_image is what one more misclassified image takes from ERR."
)


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    sizes = whole_numbers(config.ensemble.sizes, "ensemble.sizes", least=2)
    positive_int(config.ensemble.samples, "ensemble.samples")
    positive_int(config.ensemble.permutations, "ensemble.permutations")
    with study(config) as s:
        run, members, matrix = with_logits(s)
        families = [member.family for member in members]
        n = len(members)
        sizes = [size for size in sizes if size <= n]
        with naming({"k": "ensemble.clusters"}):
            clusters, _ = choose_k(config.ensemble.clusters, matrix.scores)
        labels = spectral(matrix.scores, clusters, config.ensemble.seed)
        drawn = by_clusters(labels.tolist(), sizes, config)
        with naming({"group": "groups: group"}):
            chosen = groups(config.groups, matrix.names, families)
        variants = build_variants(config, list(chosen))
        run, models, apart = with_variants(run, members, variants)
        chosen |= apart
        drawn |= by_groups(chosen, sizes, config)
        pairs = ensemble.pairs_of(n)
        every = [(i,) for i in range(len(models))] + pairs
        every += sorted({group for ensembles, _ in drawn.values() for group in ensembles})
        rows = ensembles_wrong(s, run.results, models, every)
        wrong, alone = dict(zip(every, rows, strict=True)), rows[: len(models)]
        counts = resample(len(run.evaluation.subset), config.score.bootstrap)
        by_pair = pair_section(
            s, matrix, alone[:n], rows[len(models) : len(models) + len(pairs)], counts
        )
        table = metric_table(drawn, alone, wrong, counts)
        by_cluster = cluster_section(s, table, clusters, len(run.evaluation.subset))
        sections = [by_pair, by_cluster, *([group_section(s, table)] if chosen else [])]
        sections.append(
            Section(
                "All ensembles",
                [INTERVALS],
                {"Means over the ensembles of a row": table},
            )
        )
        s.outputs.table("ensembles", table)
        s.finish(
            f"Do less similar ones of {n} models make better ensembles?",
            f"Ensembles average the logits of their members, here {s.source}. The error reduction "
            "rate is ERR = 1 - error of the ensemble / mean error of its members.",
            [*by_pair.paragraphs, *by_cluster.paragraphs[:1]],
            sections,
        )


Drawn = dict[tuple[str, int, int], tuple[list[tuple[int, ...]], bool]]
"""Kind of ensembles, N and k -> the ensembles, and whether these are all ensembles of the kind."""


def by_clusters(labels: Sequence[int], sizes: Sequence[int], config: DictConfig) -> Drawn:
    """Ensembles of N models from k clusters, for k = 1..N, where there are any."""
    options = config.ensemble
    drawn = {
        ("clusters", n, k): ensemble.sample(labels, n, k, options.samples, options.seed)
        for n in sizes
        for k in range(1, n + 1)
    }
    return {key: value for key, value in drawn.items() if value[0]}


def by_groups(chosen: dict[str, list[int]], sizes: Sequence[int], config: DictConfig) -> Drawn:
    """Ensembles of N models of one group, for each group."""
    drawn: Drawn = {}
    for name, models in chosen.items():
        for n in sizes:
            if n <= len(models):
                sampled, complete = ensemble.sample(
                    range(len(models)), n, n, config.ensemble.samples, config.ensemble.seed
                )
                drawn[name, n, 1] = [tuple(models[i] for i in g) for g in sampled], complete
    return drawn


def metric_table(
    drawn: Drawn,
    wrong: NDArray[np.bool_],
    ensemble_wrong: dict[tuple[int, ...], NDArray[np.bool_]],
    counts: NDArray[np.float64],
) -> pl.DataFrame:
    """A row for each kind, N and k: means over its ensembles, with 95 % intervals over images."""
    rows = []
    for (kind, n, k), (ensembles, complete) in drawn.items():
        metrics = ensemble.metrics(
            wrong, ensembles, np.stack([ensemble_wrong[g] for g in ensembles]), counts
        )
        row = {"kind": kind, "n": n, "k": k, "ensembles": len(ensembles), "complete": complete}
        values = (metrics.error, metrics.reduction, metrics.all_wrong)
        for (name, _), value, ends in zip(PANELS, values, metrics.intervals, strict=True):
            mean = float(ensemble.mean_known(value[None])[0])
            row |= {name: mean, f"{name}_low": ends[0], f"{name}_high": ends[1]}
        row |= {"images_with_errors": metrics.events, "err_of_one_image": metrics.one_image}
        rows.append(row)
    return pl.DataFrame(rows)


def metric_figure(series: dict[str, pl.DataFrame]) -> Figure:
    """The three metrics over N, a line per series."""
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


def cluster_section(s: Study, table: pl.DataFrame, clusters: int, images: int) -> Section:
    """Fig. 3: the metrics of ensembles of N models from k of the clusters."""
    rows = table.filter(kind="clusters")
    series = {f"k = {k}": rows.filter(k=k).sort("n") for k in sorted(rows["k"].unique())}
    picture = s.outputs.figure(
        "ensemble_clusters",
        metric_figure(series),
        rows,
        f"Ensembles of N models drawn from k of {clusters} spectral clusters: mean, and 95% "
        "interval over images.",
    )
    largest = rows.filter(pl.col("n") == rows["n"].max()).sort("k")
    paragraphs = []
    if largest.height > 1:
        few, most = largest.row(0, named=True), largest.row(-1, named=True)
        paragraphs.append(
            f"Ensembles of {few['n']} models from {_clusters(few['k'])} err on "
            f"{few['top1_error']:.2%}, from {_clusters(most['k'])} on {most['top1_error']:.2%} "
            f"(ERR {few['err']:.1%} and {most['err']:.1%}). All members are wrong on "
            f"{few['all_wrong']:.2%} and {most['all_wrong']:.2%} of the images."
        )
        difference, worth = abs(few["top1_error"] - most["top1_error"]), 1 / images
        if difference <= worth:
            paragraphs[0] += (
                f" One image is worth {worth:.2%} of error, no less than this difference: it shows "
                "nothing. Use more images."
            )
    sampled = rows.filter(~pl.col("complete"))
    paragraphs.append(
        f"At most {sampled['ensembles'].max()} ensembles of a kind, drawn with equal probability."
        if sampled.height
        else "All ensembles of each kind."
    )
    title = "Ensembles of models from k clusters (Fig. 3)"
    return Section(title, paragraphs, {}, [picture])


def _clusters(k: int) -> str:
    return f"{k} cluster{'s' * (k != 1)}"


def group_section(s: Study, table: pl.DataFrame) -> Section:
    """Fig. 4: the metrics of each group, and of each group of variants, beside those of members
    from different clusters, among which no variant is."""
    kinds = [kind for kind in table["kind"].unique(maintain_order=True) if kind != "clusters"]
    series = {kind: table.filter(kind=kind).sort("n") for kind in kinds}
    apart = table.filter((pl.col("kind") == "clusters") & (pl.col("n") == pl.col("k"))).sort("n")
    series["all (N = k)"] = apart
    rows = pl.concat([part.with_columns(series=pl.lit(name)) for name, part in series.items()])
    picture = s.outputs.figure(
        "ensemble_groups",
        metric_figure(series),
        rows,
        'Ensembles of N models of one group; "all" are models from N different clusters. Mean, and '
        "95% interval over images.",
    )
    pairs = {name: part.filter(n=2) for name, part in series.items()}
    errs = ", ".join(f"{name} {part['err'][0]:.1%}" for name, part in pairs.items() if part.height)
    title = "Ensembles of models of one kind (Fig. 4)"
    return Section(title, [f"ERR of pairs: {errs}."], {}, [picture])
