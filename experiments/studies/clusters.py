"""Which models belong together, and what do they have in common? (Sec. 3.1, Tab. 2; Appendix C.)

Spectral clustering of the similarity matrix, the keywords of each cluster, and how far the
clusters depend on K-means seeds and on which images were drawn. Writes clusters.csv, keywords.csv,
stability.csv, resolution.csv, eigenvalues.csv, and as figures with their tables the matrix by
cluster (Fig. D.2), the spectral features (Fig. C.1), a t-SNE map and the co-assignment.

On the published 69 x 69 matrix: see experiments/results/digits.md and statistics.md.
"""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib import colormaps
from numpy.typing import NDArray
from omegaconf import DictConfig
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from experiments.cli.components import bases_of, components_of
from experiments.cli.study import Study, study
from netkin.analysis import clusters
from netkin.analysis.components import keywords, shared_values
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.analysis.noise import simulated_draws
from netkin.analysis.verdict import verdict
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.heatmap import LARGE, cluster_order, heatmap_figure
from netkin.report.plots import map_figure
from netkin.report.sentences import Sentences
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
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = config.clusters
    if options.images is not None and config.similarity is None:
        raise UserError("clusters.images is for similarity=file.csv; measured images are known")
    with study(config) as s:
        if len(s.names) < 3:
            raise UserError(
                f"clusters take at least 3 models, got {len(s.names)}; add model.members"
            )
        k, reason = clusters.choose_k(config.k, s.scores)
        labels, bases = clusters.spectral(s.scores, k, options.seed, options.restarts), bases_of(s)
        table = s.outputs.table("clusters", _labelled(s, labels))
        values, _ = clusters.spectrum(s.scores)
        spectrum = pl.DataFrame({"k": np.arange(len(values)) + 1, "eigenvalue": values})
        eigenvalues = s.outputs.table("eigenvalues", spectrum)
        draws, drawn = _draws(s)
        stability = _stability(s, labels, draws)
        certain, resolution = _resolution(s, k, draws[:TESTED])
        common, sections, missing = _components(s, labels, table)
        co_assigned, stable = _co_assigned(s, labels, bases, stability)
        s.tracker.summary(
            {"clusters/k": k, "similarity/mean": float(off_diagonal(s.scores).mean())}
        )
        s.finish(
            f"Which of {len(s.names)} models belong together?",
            f"Spectral clustering (Ng et al. 2001) of {s.source}: K-means, the best of "
            f"{options.restarts} runs, on the eigenvectors of the {k} smallest eigenvalues of the "
            "normalised Laplacian, without self-loops.",
            [
                _verdict(s, labels, certain, reason),
                *_members(s, labels, common),
                *_shifted(s),
                *([text("dropped", left=left, n=drawn)] if (left := drawn - len(draws)) else []),
                *stable,
                *resolution,
            ],
            [
                Section("Clusters (Tab. 2)", missing, sections[0], [_matrix(s, labels, bases)]),
                *([Section("What each cluster shares", (), sections[1])] if sections[1] else []),
                co_assigned,
                Section(
                    "Spectral features (Fig. C.1)",
                    [f"k = {k}: {reason}."],
                    {
                        "The smallest eigenvalues of the normalised Laplacian": eigenvalues.head(
                            k + 5
                        )
                    },
                    [_features(s, labels, k, bases)],
                ),
                Section("Map", (), {}, [_map(s, labels, bases)]),
            ],
        )


def _labelled(s: Study, labels: NDArray, **columns: NDArray) -> pl.DataFrame:
    """A row a model: its name, its cluster, and further columns [N], by cluster."""
    table = pl.DataFrame({"model": s.names, "cluster": labels + 1, **columns})
    return table.fill_nan(None).sort("cluster")


def _square(s: Study, values: NDArray[np.float64], labels: NDArray) -> pl.DataFrame:
    """Values of pairs as a table, in the order of the figure."""
    order = cluster_order(s.scores, labels)
    names = tuple(s.names[i] for i in order)
    return Matrix(names, values[np.ix_(order, order)]).table()


def _components(
    s: Study, labels: NDArray, table: pl.DataFrame
) -> tuple[pl.DataFrame | None, tuple[dict[str, pl.DataFrame], ...], list[str]]:
    """What the models of a cluster share; tables of clusters (as in Tab. 2, a row each) and of what
    they share; and the reason where components are not known."""
    rows = table.group_by("cluster", maintain_order=True).agg(pl.col("model").str.join(", "))
    rows = rows.rename({"model": "models"})
    try:
        components = s.outputs.table("components", components_of(s))
    except UserError as error:
        if s.config.components is not None:
            raise
        return None, ({"": rows}, {}), [text("no_keywords", error=error)]
    found = keywords(components, labels, s.config.clusters.keywords)
    words = s.outputs.table("keywords", found)
    common = s.outputs.table("shared", shared_values(components, labels))
    texts = words.with_columns(keywords=pl.format("{}: {}", "component", "value"))
    texts = texts.group_by("cluster", maintain_order=True).agg(pl.col("keywords").str.join("; "))
    rows = rows.join(texts, on="cluster").select("cluster", "keywords", "models")
    tables = {"In common, and rarer elsewhere": common, "Keywords, by TF-IDF": words}
    return common, ({"": rows}, tables), []


def _verdict(s: Study, labels: NDArray, certain: bool | None, reason: str) -> str:
    """Whether the clusters are certain, and how much more alike the models in them are."""
    within, lower = labels[:, None] == labels, np.tri(len(labels), k=-1, dtype=bool)
    inside, between = s.scores[within & lower], s.scores[~within & lower]
    decision = verdict(float(bool(certain)), threshold=0.5, enough=certain is not None)
    sentence = text("verdict", decision, k=labels.max() + 1, reason=reason)
    if inside.size and between.size:
        means = {"inside": inside.mean(), "between": between.mean()}
        sentence += text("within", factor=np.exp(means["inside"] - means["between"]), **means)
    return sentence + text("mean", mean=s.scores[lower].mean())


def _members(s: Study, labels: NDArray, common: pl.DataFrame | None) -> list[str]:
    """A paragraph a cluster: its models, and the components that they share."""
    paragraphs = []
    for cluster in range(int(labels.max()) + 1):
        names = [s.names[i] for i in np.flatnonzero(labels == cluster)]
        sentence = text("cluster", number=cluster + 1, n=len(names), names=", ".join(names))
        if common is not None and len(names) > 1:
            shared = "; ".join(
                f"{row['component']}: {row['value']} ({row['share']:.0%}, "
                f"of others {row['share_of_others']:.0%})"
                for row in common.filter(cluster=cluster + 1).iter_rows(named=True)
            )
            sentence += text("common", shared=shared or "nothing that others lack")
        paragraphs.append(sentence)
    return paragraphs


def _shifted(s: Study) -> list[str]:
    """A sentence where scores below 0 were shifted for the clustering."""
    shift = clusters.affinity(s.scores).shift
    negative = int((off_diagonal(s.scores) < 0).sum())
    return [text("shifted", n=negative, shift=shift)] if shift else []


def _draws(s: Study) -> tuple[list[NDArray[np.float64]], int]:
    """The matrices of draws of images that have clusters, at most `clusters.draws`, and how many
    draws there were: of the measured images, or simulated for `clusters.images`."""
    options = s.config.clusters
    if s.measured is not None:
        draws = s.draws(options.draws)
        assert draws is not None
    elif options.images is not None:
        draws = simulated_draws(s.scores, options.images, options.draws, options.seed)
    else:
        return [], 0
    return [draw for draw in draws if clusters.has_clusters(draw)], len(draws)


def _stability(s: Study, labels: NDArray, draws: list[NDArray]) -> dict[str, NDArray]:
    """Clusterings [runs, N] over K-means seeds, and over draws of images where there are any."""
    options, k = s.config.clusters, int(labels.max()) + 1
    seeds = range(options.seed + 1, options.seed + options.seeds + 1)
    runs = [("seeds", s.scores, seed, options.restarts) for seed in seeds]
    runs += [("images", draw, options.seed, DRAW_RESTARTS) for draw in draws]
    found: dict[str, list[NDArray]] = {}
    with Bars(s.console) as bars:
        bars.start("cluster", ["stability"], len(runs))
        for what, scores, seed, restarts in runs:
            found.setdefault(what, []).append(clusters.spectral(scores, k, seed, restarts))
            bars.advance("cluster", 1)
        bars.end("cluster")
    return {what: np.stack(each) for what, each in found.items()}


def _co_assigned(
    s: Study, labels: NDArray, bases: list[str], found: dict[str, NDArray]
) -> tuple[Section, list[str]]:
    """How often models stay together over the clusterings of `_stability`, and in words."""
    sentences = []
    nouns = {"seeds": "K-means seeds", "images": "draws of images"}
    if s.measured is None:
        nouns["images"] = "simulated draws of images"
    columns = {what: clusters.cohesion(labels, runs) for what, runs in found.items()}
    for what, runs in found.items():
        rand = np.array([adjusted_rand_score(labels, other) for other in runs])
        low, high = interval(rand)
        values = {"mean": rand.mean(), "low": low, "high": high, "same": np.mean(rand == 1)}
        sentence = text("rand", n=len(runs), noun=nouns[what], **values)
        order = [i for i in np.argsort(columns[what], kind="stable") if columns[what][i] < SETTLED]
        if order:  # models whose cluster is not certain
            named = and_more([f"{s.names[i]} ({columns[what][i]:.0%})" for i in order], NAMED)
            many = {"n": len(order), "models": len(s.names)}
            sentence += text("unsettled", settled=SETTLED, named=named, **many)
        sentences.append(sentence)
        s.tracker.summary({f"clusters/rand_over_{what}": float(rand.mean())})
    stability = s.outputs.table("stability", _labelled(s, labels, **columns))
    what = list(found)[-1]
    shares, order = clusters.co_assignment(found[what]), cluster_order(s.scores, labels)
    picture = s.outputs.figure(
        "co_assignment",
        heatmap_figure(
            *(shares, s.names, bases, f"share of {nouns[what]}"),
            clusters=labels,
            order=order,
            limits=(0.0, 1.0),
            colours=colormaps["cividis"],
        ),
        _square(s, shares, labels),
        f"How often two models share a cluster over {len(found[what])} {nouns[what]}.",
    )
    tables = {"How often a model is with its cluster's others": stability}
    return Section("Stability", (), tables, [picture]), sentences


def _resolution(s: Study, k: int, draws: list[NDArray]) -> tuple[bool | None, list[str]]:
    """Whether draws of images reproduce k clusters, None without draws, and in words how many
    clusters they do; writes resolution.csv."""
    if not draws:
        return None, [] if s.measured else [text("simulate")]
    # More than N / 2 clusters are mostly single models, which any draw reproduces.
    most = min(UP_TO, max(2, len(s.names) // 2))
    numbers = sorted({*range(2, most + 1), k})
    rand, seed = {}, s.config.clusters.seed
    with Bars(s.console) as bars:
        bars.start("resolve", [f"{number} clusters" for number in numbers], len(numbers))
        for number in numbers:
            rand[number] = clusters.resolved(s.scores, draws, number, seed, DRAW_RESTARTS)
            bars.advance("resolve", 1)
        bars.end("resolve")
    table = pl.DataFrame({"k": list(rand), "rand_over_images": list(rand.values())})
    s.outputs.table("resolution", table)
    known = [number for number, value in rand.items() if value >= RESOLVED]
    if not known:
        return False, [text("none", most=max(rand.values()))]
    listed, decision = ", ".join(map(str, known)), verdict(rand[k], threshold=RESOLVED)
    values = {"k": k, "rand": rand[k], "resolved": RESOLVED, "most": max(known), "known": listed}
    return k in known, [text("certain", verdict=decision, tried=max(numbers), **values)]


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
    columns = {f"eigenvector_{i + 1}": features[:, i] for i in range(k)}
    s.outputs.table("features", _labelled(s, labels, **columns))
    cosines = np.clip(features @ features.T, -1, 1)
    least = min(-0.05, float(cosines.min()))
    label, order = "cosine similarity of spectral features", cluster_order(s.scores, labels)
    return s.outputs.figure(
        "spectral_features",
        heatmap_figure(
            *(cosines, s.names, bases, label),
            clusters=labels,
            order=order,
            limits=(least, 1.0),
            colours=colormaps["magma"],
        ),
        _square(s, cosines, labels),
        text("features", k=k),
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
    return s.outputs.figure(
        "cluster_map",
        map_figure(points.astype(float), s.names, labels, bases),
        _labelled(s, labels, x=points[:, 0], y=points[:, 1]),
        text("map", perplexity=perplexity),
    )
