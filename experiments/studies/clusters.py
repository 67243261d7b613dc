"""Which models belong together, and what do they have in common? (Sec. 3.1, Tab. 2; Appendix C.)

Spectral clustering of the similarity matrix, the keywords of each cluster, and how far the
clusters depend on K-means seeds and on which images were drawn. Writes clusters.csv, keywords.csv,
stability.csv, resolution.csv, eigenvalues.csv, and as figures with their tables the matrix by
cluster (Fig. D.2), the spectral features (Fig. C.1), a t-SNE map and the co-assignment.

On the published 69 x 69 matrix: see experiments/results/digits.md and statistics.md.
"""

import numpy as np
import polars as pl
from matplotlib import colormaps
from numpy.typing import NDArray
from omegaconf import DictConfig
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from experiments.cli.cluster_words import members, shifted, verdict
from experiments.cli.components import bases_of, components_of
from experiments.cli.study import Study, study
from experiments.cli.values import positive_int
from netkin.analysis import clusters
from netkin.analysis.components import keywords, shared_values
from netkin.analysis.matrix import off_diagonal
from netkin.analysis.noise import simulated_draws
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.heatmap import LARGE, cluster_order, heatmap_figure
from netkin.report.plots import map_figure
from netkin.report.study import Lookup, Picture, Section
from netkin.report.text import and_more
from netkin.similarity import interval
from netkin.zoo.published import model_page

DRAW_RESTARTS = 100
"""K-means runs of one draw of images."""
SETTLED = 0.5
"""Share of draws from which a model's cluster counts as certain."""
NAMED = 5
"""Models with an uncertain cluster that the answer names."""
RESOLVED = 0.9
"""Mean adjusted Rand index from which draws of images are said to reproduce clusters."""
UP_TO = 12
"""The largest number of clusters that draws are tested for."""
TESTED = 50
"""Draws that each number of clusters is tested on."""

TOGETHER = "How often a model is with its cluster's others"


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = config.clusters
    for key in ("restarts", "keywords", "seeds", "draws", "perplexity"):
        positive_int(options[key], f"clusters.{key}")
    if options.images is not None:
        positive_int(options.images, "clusters.images")
        if config.similarity is None:
            raise UserError("clusters.images is for similarity=file.csv; measured images are known")
    with study(config) as s:
        if len(s.names) < 3:
            raise UserError(
                f"clusters take at least 3 models, got {len(s.names)}; add model.members"
            )
        k, reason = clusters.choose_k(config.k, s.scores)
        labels = clusters.spectral(s.scores, k, options.seed, options.restarts)
        components, missing = _components(s)
        words = common = None
        if components is not None:
            words = s.outputs.table("keywords", keywords(components, labels, options.keywords))
            common = s.outputs.table("shared", shared_values(components, labels))
        bases = bases_of(s)
        table = s.outputs.table(
            "clusters", pl.DataFrame({"model": s.names, "cluster": labels + 1}).sort("cluster")
        )
        values, _ = clusters.spectrum(s.scores)
        eigenvalues = s.outputs.table(
            "eigenvalues", pl.DataFrame({"k": np.arange(len(values)) + 1, "eigenvalue": values})
        )
        stability, certain, stable, co_assigned = _stability(s, labels, bases)
        matrix = _matrix(s, labels, bases)
        answer = [verdict(s, labels, certain, reason), *members(s, labels, common)]
        answer += [*shifted(s), *stable]
        sections = [
            Section("Clusters (Tab. 2)", missing, _tab_2(table, words), [matrix]),
            Section("Stability", (), {TOGETHER: stability}, [co_assigned]),
            Section(
                "Spectral features (Fig. C.1)",
                [f"k = {k}: {reason}."],
                {"The smallest eigenvalues of the normalised Laplacian": eigenvalues.head(k + 5)},
                [_features(s, labels, k, bases)],
            ),
            Section("Map", (), {}, [_map(s, labels, bases)]),
        ]
        if words is not None and common is not None:
            tables = {"In common, and rarer elsewhere": common, "Keywords, by TF-IDF": words}
            sections.insert(1, Section("What each cluster shares", (), tables))
        s.tracker.summary(
            {"clusters/k": k, "similarity/mean": float(off_diagonal(s.scores).mean())}
        )
        s.finish(
            f"Which of {len(s.names)} models belong together?",
            f"Spectral clustering (Ng et al. 2001) of {s.source}: K-means, the best of "
            f"{options.restarts} runs, on the eigenvectors of the {k} smallest eigenvalues of the "
            "normalised Laplacian, without self-loops.",
            answer,
            sections,
        )


def _components(s: Study) -> tuple[pl.DataFrame | None, list[str]]:
    """The models' components, or the reason why they are not known."""
    try:
        return s.outputs.table("components", components_of(s)), []
    except UserError as error:
        if s.config.components is not None:
            raise
        return None, [f"No keywords: {error}."]


def _tab_2(table: pl.DataFrame, words: pl.DataFrame | None) -> dict[str, pl.DataFrame]:
    """As in the paper's Tab. 2: a row per cluster."""
    rows = table.group_by("cluster", maintain_order=True).agg(pl.col("model").str.join(", "))
    if words is not None:
        texts = words.with_columns(word=pl.format("{}: {}", "component", "value"))
        texts = texts.group_by("cluster", maintain_order=True).agg(pl.col("word").str.join("; "))
        rows = rows.join(texts.rename({"word": "keywords"}), on="cluster")
        rows = rows.select("cluster", "keywords", "model")
    return {"": rows.rename({"model": "models"})}


def _stability(
    s: Study, labels: NDArray, bases: list[str]
) -> tuple[pl.DataFrame, bool | None, list[str], Picture]:
    """Co-assignment over K-means seeds, and over draws of images where there are any; whether these
    reproduce the clusters, None without them; and both in words."""
    options, k = s.config.clusters, int(labels.max()) + 1
    complete, dropped = _usable(s)
    seeds = range(options.seed + 1, options.seed + options.seeds + 1)
    runs = [("seeds", s.scores, seed, options.restarts) for seed in seeds]
    runs += [("images", draw, options.seed, DRAW_RESTARTS) for draw in complete]
    by: dict[str, list[NDArray]] = {"seeds": []}
    with Bars(s.console) as bars:
        bars.start("cluster", ["stability"], len(runs))
        for what, scores, seed, restarts in runs:
            by.setdefault(what, []).append(clusters.spectral(scores, k, seed, restarts))
            bars.advance("cluster", 1)
        bars.end("cluster")
    columns, paragraphs = {}, [*dropped]
    for what, clusterings in by.items():
        columns[what] = clusters.cohesion(labels, np.stack(clusterings))
        rand = np.array([adjusted_rand_score(labels, other) for other in clusterings])
        low, high = interval(rand)
        same = f"; {np.mean(rand == 1):.0%} give exactly the same clusters"
        paragraphs.append(
            f"Over {len(clusterings)} {_noun(s, what)} the adjusted Rand index with these clusters "
            f"is {rand.mean():.3f} on average (95% of them: {low:.3f} to {high:.3f}{same})."
            + _unsettled(s, columns[what])
        )
        s.tracker.summary({f"clusters/rand_over_{what}": float(rand.mean())})
    certain = None
    if complete:
        certain, text = _resolution(s, k, complete[:TESTED])
        paragraphs.append(text)
    elif s.measured is None:
        paragraphs.append(
            "clusters.images=N simulates draws of N images, and tells which clusters these "
            "reproduce."
        )
    stability = pl.DataFrame({"model": s.names, "cluster": labels + 1, **columns}).fill_nan(None)
    stability = s.outputs.table("stability", stability.sort("cluster"))
    what = list(by)[-1]
    shares, noun = clusters.co_assignment(np.stack(by[what])), _noun(s, what)
    order = cluster_order(s.scores, labels)
    picture = s.outputs.figure(
        "co_assignment",
        heatmap_figure(
            *(shares, s.names, bases, f"share of {noun}"),
            clusters=labels,
            order=order,
            limits=(0.0, 1.0),
            colours=colormaps["cividis"],
        ),
        _square(s, shares, labels),
        f"How often two models share a cluster over {len(by[what])} {noun}.",
    )
    return stability, certain, paragraphs, picture


def _noun(s: Study, what: str) -> str:
    if what == "seeds":
        return "K-means seeds"
    return "draws of images" if s.measured else "simulated draws of images"


def _unsettled(s: Study, cohesion: NDArray[np.float64]) -> str:
    """Names the models whose cluster is not certain."""
    order = [i for i in np.argsort(cohesion, kind="stable") if cohesion[i] < SETTLED]
    if not order:
        return ""
    named = [f"{s.names[i]} ({cohesion[i]:.0%})" for i in order]
    return (
        f" The cluster of {len(order)} of {len(s.names)} models is uncertain, as they are with its "
        f"others in less than {SETTLED:.0%}: {and_more(named, NAMED)}."
    )


def _usable(s: Study) -> tuple[list[NDArray[np.float64]], list[str]]:
    """The matrices of draws of images that have clusters, at most `clusters.draws`; and, in words,
    how many have none."""
    options = s.config.clusters
    if s.measured is None and options.images is None:
        return [], []
    if s.measured is None:
        draws = simulated_draws(s.scores, options.images, options.draws, options.seed)
    else:
        draws = s.draws(options.draws)
        assert draws is not None
    chosen = draws[: options.draws]
    usable = [draw for draw in chosen if clusters.has_clusters(draw)]
    left = len(chosen) - len(usable)
    text = f"{left} of {len(chosen)} draws of images have no clusters and were left out."
    return usable, [text] if left else []


def _resolution(s: Study, k: int, draws: list[NDArray[np.float64]]) -> tuple[bool, str]:
    """Whether draws of images reproduce k clusters, and how many they do; writes resolution.csv."""
    # More than N / 2 clusters are mostly single models, which any draw reproduces.
    most = min(UP_TO, max(2, len(s.names) // 2))
    numbers = sorted({*range(2, most + 1), k})
    with Bars(s.console) as bars:
        bars.start("resolve", [f"{number} clusters" for number in numbers], len(numbers))
        rand = {}
        for number in numbers:
            rand[number] = clusters.resolved(
                s.scores, draws, number, s.config.clusters.seed, DRAW_RESTARTS
            )
            bars.advance("resolve", 1)
        bars.end("resolve")
    table = pl.DataFrame({"k": list(rand), "rand_over_images": list(rand.values())})
    s.outputs.table("resolution", table)
    known = [number for number, value in rand.items() if value >= RESOLVED]
    if not known:
        return False, (
            "Draws of images do not reproduce the clusters for any number of them: the adjusted "
            f"Rand index is {max(rand.values()):.2f} at most. Use more images."
        )
    return k in known, (
        f"Are the {k} clusters certain? {'Yes' if k in known else 'No'}: draws of images reproduce "
        f"them with an adjusted Rand index of {rand[k]:.2f} (certain from {RESOLVED}). The images "
        f"can tell at most {max(known)} apart: of 2 to {max(numbers)} clusters, "
        f"{', '.join(map(str, known))} are reproduced (resolution.csv)."
    )


def _square(s: Study, values: NDArray[np.float64], labels: NDArray) -> pl.DataFrame:
    """Values of pairs as a table, in the order of the figure."""
    order = cluster_order(s.scores, labels)
    names = [s.names[i] for i in order]
    ordered = values[np.ix_(order, order)]
    return pl.DataFrame({"": names, **{name: ordered[:, i] for i, name in enumerate(names)}})


def _matrix(s: Study, labels: NDArray, bases: list[str]) -> Picture:
    """All pairs, to look up."""
    pairs = s.outputs.table("pairs", s.matrix.pairs())
    pages = {} if s.measured else {name: page for name in s.names if (page := model_page(name))}
    order = cluster_order(s.scores, labels)
    groups = {"base architecture": bases, "family": s.families}
    lookup = Lookup(s.names, order.tolist(), pairs, groups=groups, links=pages, reorder=False)
    return s.outputs.figure(
        "cluster_matrix",
        heatmap_figure(s.scores, s.names, bases, "similarity s (nats)", clusters=labels),
        _square(s, s.scores, labels),
        "The similarity of all pairs, by cluster (frames and numbers; Fig. D.2).",
        lookup if len(s.names) <= LARGE else None,
    )


def _features(s: Study, labels: NDArray, k: int, bases: list[str]) -> Picture:
    """The similarity of models in the feature space of K-means, and the features as a table."""
    features = clusters.features(s.scores, k)
    s.outputs.table(
        "features",
        pl.DataFrame({"model": s.names, "cluster": labels + 1})
        .hstack(pl.DataFrame({f"eigenvector_{i + 1}": features[:, i] for i in range(k)}))
        .sort("cluster"),
    )
    cosines = np.clip(features @ features.T, -1, 1)
    return s.outputs.figure(
        "spectral_features",
        heatmap_figure(
            *(cosines, s.names, bases, "cosine similarity of spectral features"),
            clusters=labels,
            order=cluster_order(s.scores, labels),
            limits=(min(-0.05, float(cosines.min())), 1.0),
            colours=colormaps["magma"],
        ),
        _square(s, cosines, labels),
        f"Cosine similarity of the models' spectral features: their rows in the {k} eigenvectors "
        "(features.csv) that K-means clusters (Fig. C.1).",
    )


def _map(s: Study, labels: NDArray, bases: list[str]) -> Picture:
    """t-SNE of distances: the highest score of a pair less the pair's own."""
    n, options = len(s.names), s.config.clusters
    distance = off_diagonal(s.scores).max() - s.scores
    np.fill_diagonal(distance, 0.0)
    perplexity = min(float(options.perplexity), (n - 1) / 3)
    tsne = TSNE(
        perplexity=perplexity, metric="precomputed", init="random", random_state=options.seed
    )
    with threadpool_limits(1):  # with so few points, waiting for other threads costs more
        points = tsne.fit_transform(distance)
    table = pl.DataFrame(
        {"model": s.names, "cluster": labels + 1, "x": points[:, 0], "y": points[:, 1]}
    )
    return s.outputs.figure(
        "cluster_map",
        map_figure(points.astype(float), s.names, labels, bases),
        table.sort("cluster"),
        "Similar models are close together (markers: clusters): t-SNE of the distances max(s) - s "
        f"(perplexity {perplexity:.3g}). Only neighbourhoods are meaningful, not axes or gaps.",
    )
