"""Which models belong together, and what do they have in common? (Sec. 3.1, Tab. 2; Appendix C.)

Spectral clustering of the similarity matrix, the keywords of each cluster, and how far the
clusters depend on K-means seeds and on which images were drawn. Writes clusters.csv, keywords.csv,
stability.csv, resolution.csv, eigenvalues.csv, and as figures with their tables the matrix by
cluster (Fig. D.2), the spectral features (Fig. C.1), a t-SNE map and the co-assignment.

On the published 69 x 69 matrix: see experiments/results/digits.md and statistics.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.colors import Colormap
from numpy.typing import NDArray
from omegaconf import DictConfig
from threadpoolctl import threadpool_limits

from experiments.cli.components import bases_of, known_components
from experiments.cli.study import Study, study
from netkin.analysis import clusters
from netkin.analysis.components import keywords, shared_values
from netkin.analysis.confounders import unrelated
from netkin.analysis.groups import within_and_between
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.analysis.noise import simulated_draws
from netkin.analysis.statistics import FEWEST
from netkin.analysis.verdict import Verdict, verdict
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.report.heatmap import LARGE, cluster_order, heatmap_figure
from netkin.report.plots import map_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Lookup, Picture, Section
from netkin.report.text import and_more
from netkin.similarity import interval

DRAW_RESTARTS = 100  # K-means runs of one draw of images
SETTLED = 0.5  # share of draws from which a model's cluster counts as certain
NAMED = 5  # models with an uncertain cluster that the answer names
RESOLVED = 0.9  # the adjusted Rand index from which a draw of images reproduces clusters
UP_TO = 12  # the largest number of clusters that draws are tested for
TESTED = 50  # draws that each number of clusters is tested on
UNRELATED, UNRELATED_OF_MANY = 199, 49  # matrices of unrelated models: of few, and of many
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    options = config.clusters
    if options.images is not None and config.similarity is None:
        raise UserError("clusters.images is for similarity=file.csv; measured images are known")
    with study(config) as s:
        if len(s.names) < 3:
            raise UserError(
                f"clusters take at least 3 models, got {len(s.names)}; add model.members"
            )
        k, reason = clusters.choose_k(config.k, s.scores)
        labels = clusters.spectral(s.scores, k, options.seed, options.restarts)
        c = Clustering(s, k, labels, cluster_order(s.scores, labels), bases_of(s))
        table = s.outputs.table("clusters", c.labelled())
        matrix, features, two = _matrix(c), _features(c), _map(c)  # first: drawn beside the rest
        values, _ = clusters.spectrum(s.scores)
        spectrum = pl.DataFrame({"k": np.arange(len(values)) + 1, "eigenvalue": values})
        smallest = s.outputs.table("eigenvalues", spectrum).head(k + 5)
        draws, drawn = _draws(s)
        stability, stable = _stability(c, draws)
        resolution = _resolution(c, draws[:TESTED])
        common, tables, missing = _components(c, table)
        pairs = off_diagonal(s.scores)
        s.tracker.summary({"clusters/k": k, "similarity/mean": float(pairs.mean())})
        found = text("found", k=k, reason=reason, mean=pairs.mean())
        answer = [found, *_by_chance(c), *stable[:1], *_members(c, common)]
        if shift := clusters.affinity(s.scores)[1]:
            answer.append(text("shifted", n=int((pairs < 0).sum()), shift=shift))
        if drawn > len(draws):
            answer.append(text("dropped", left=drawn - len(draws), n=drawn))
        s.finish(
            f"Which of {len(s.names)} models belong together?",
            f"Spectral clustering (Ng et al. 2001) of {s.source}: K-means, the best of "
            f"{options.restarts} runs, on the eigenvectors of the {k} smallest eigenvalues of the "
            "normalised Laplacian, without self-loops.",
            [*answer, *stable[1:], *resolution],
            [
                Section("Clusters (Tab. 2)", missing, tables[0], [matrix]),
                *(Section("What each cluster shares", (), shared) for shared in tables[1:]),
                stability,
                Section(
                    "Spectral features (Fig. C.1)",
                    [f"k = {k}: {reason}."],
                    {"The smallest eigenvalues of the normalised Laplacian": smallest},
                    [features],
                ),
                Section("Map", (), {}, [two]),
            ],
        )


@dataclass(frozen=True)
class Clustering:
    """k clusters of N models: labels from 0, the order of figures, and bases, [N] each."""

    study: Study
    k: int
    labels: NDArray[np.intp]
    order: NDArray[np.intp]
    bases: list[str]

    def labelled(self, **columns: NDArray) -> pl.DataFrame:
        """A row a model: its name, its cluster, and further columns [N], by cluster."""
        table = {"model": self.study.names, "cluster": self.labels + 1, **columns}
        return pl.DataFrame(table).fill_nan(None).sort("cluster")

    def figure(
        self,
        name: str,
        values: NDArray[np.float64],
        label: str,
        caption: str,
        limits: tuple[float, float] | None = None,
        colours: Colormap | None = None,
        lookup: Lookup | None = None,
    ) -> Picture:
        """Values of pairs [N, N], by cluster, and their table."""
        names = self.study.names
        more: dict[str, Any] = {"clusters": self.labels, "order": self.order}
        if limits is not None:
            more |= {"limits": limits, "colours": colours, "signed": colours is None}
        drawn = heatmap_figure(values, names, self.bases, label, **more)
        table = Matrix(names, values).of(tuple(names[i] for i in self.order)).table()
        return self.study.outputs.figure(name, drawn, table, caption, lookup)


def _components(
    c: Clustering, table: pl.DataFrame
) -> tuple[pl.DataFrame | None, list[dict[str, pl.DataFrame]], list[str]]:
    """What the models of a cluster share; tables of clusters (as in Tab. 2, a row each) and of what
    they share; and the reason where components are not known."""
    outputs = c.study.outputs
    rows = table.group_by("cluster", maintain_order=True).agg(pl.col("model").str.join(", "))
    rows = rows.rename({"model": "models"})
    values, error = known_components(c.study)
    if values is None:
        return None, [{"": rows}], [text("no_keywords", error=error)]
    outputs.table("components", values)
    found = outputs.table("keywords", keywords(values, c.labels, c.study.config.clusters.keywords))
    common = outputs.table("shared", shared_values(values, c.labels))
    texts = found.with_columns(keywords=pl.format("{}: {}", "component", "value"))
    texts = texts.group_by("cluster", maintain_order=True).agg(pl.col("keywords").str.join("; "))
    rows = rows.join(texts, on="cluster").select("cluster", "keywords", "models")
    tables = {"In common, and rarer elsewhere": common, "Keywords, by TF-IDF": found}
    return common, [{"": rows}, tables], []


def _by_chance(c: Clustering) -> list[str]:
    """Whether models of one cluster are more alike than in clusters of unrelated models."""
    scores, null = c.study.scores, by_chance(c.study.scores, c.k)
    means = within_and_between(c.labels.tolist(), scores)
    if means is None or not null:
        return []
    (inside, between), (low, high) = means, interval(np.array(null))
    values = {"inside": inside, "between": between, "more": inside - between, "draws": len(null)}
    decision = verdict(more_alike(scores, c.k), null=null)
    return [text("more_alike", verdict=decision, low=low, high=high, **values)]


def more_alike(scores: NDArray[np.float64], k: int) -> float:
    """The mean score within k clusters less that between them, in nats; NaN where there is no pair
    of one kind. Of DRAW_RESTARTS runs of K-means: the best of more finds more alike clusters in any
    matrix, and would be compared with the best of these."""
    labels = clusters.partition(scores, k, 0, DRAW_RESTARTS)
    within, between = within_and_between(labels.tolist(), scores) or (np.nan, np.nan)
    return within - between


def by_chance(scores: NDArray[np.float64], k: int) -> list[float]:
    """`more_alike` of matrices of unrelated models: clusters are chosen so that their models are
    alike, and are so in any matrix. Empty where each model is a cluster, and for fewer than FEWEST
    models."""
    if len(scores) < FEWEST or k == len(scores):
        return []
    draws = UNRELATED if len(scores) <= clusters.BATCHED else UNRELATED_OF_MANY
    found = unrelated(scores, draws)
    return [more_alike(each, k) for each in found if clusters.has_clusters(each)]


def _members(c: Clustering, common: pl.DataFrame | None) -> list[str]:
    """A paragraph a cluster: its models, and the components that they share."""
    paragraphs = []
    for cluster in range(c.k):
        names = [c.study.names[i] for i in np.flatnonzero(c.labels == cluster)]
        sentence = text("cluster", number=cluster + 1, n=len(names), names=", ".join(names))
        if common is not None and len(names) > 1:
            rows = common.filter(cluster=cluster + 1).to_dicts()
            shared = "; ".join(text("shared", **row) for row in rows)
            sentence += text("common", shared=shared or "nothing that others lack")
        paragraphs.append(sentence)
    return paragraphs


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


def _stability(c: Clustering, draws: list[NDArray]) -> tuple[Section, list[str]]:
    """How often models stay together over K-means seeds, and over draws of images if there are any;
    and that in words."""
    s, options, sentences = c.study, c.study.config.clusters, []
    seeds = range(options.seed + 1, options.seed + options.seeds + 1)
    clusterings = [("seeds", s.scores, seed, options.restarts) for seed in seeds]
    clusterings += [("images", draw, options.seed, DRAW_RESTARTS) for draw in draws]
    found: dict[str, list[NDArray]] = {}
    with Bars(s.console) as bars:
        bars.start("cluster", ["stability"], len(clusterings))
        for what, scores, seed, restarts in clusterings:
            found.setdefault(what, []).append(clusters.partition(scores, c.k, seed, restarts))
            bars.advance("cluster", 1)
        bars.end("cluster")
    images = "draws of images" if s.measured else "simulated draws of images"
    nouns = {"seeds": "K-means seeds", "images": images}
    columns = {what: clusters.cohesion(c.labels, np.stack(runs)) for what, runs in found.items()}
    for what, runs in found.items():
        rand = np.array([clusters.rand_index(c.labels, other) for other in runs])
        low, high = interval(rand)
        values = {"mean": rand.mean(), "low": low, "high": high, "same": np.mean(rand == 1)}
        sentence = text("rand", n=len(runs), noun=nouns[what], **values)
        if what == "images":
            near, k = float(np.mean(rand >= RESOLVED)), c.k
            decision = other_images(rand)
            first = text("other_images", verdict=decision, near=near, k=k, resolved=RESOLVED)
            sentence = f"{first} {sentence}"
        order = [i for i in np.argsort(columns[what], kind="stable") if columns[what][i] < SETTLED]
        if order:  # models whose cluster is not certain
            named = and_more([f"{s.names[i]} ({columns[what][i]:.0%})" for i in order], NAMED)
            many = {"n": len(order), "models": len(s.names)}
            sentence += text("unsettled", settled=SETTLED, named=named, **many)
        sentences.insert(0, sentence)  # the last, over images, is the first to be said
        s.tracker.summary({f"clusters/rand_over_{what}": float(rand.mean())})
    what, runs = list(found.items())[-1]
    shares, label = clusters.co_assignment(np.stack(runs)), f"share of {nouns[what]}"
    caption = f"How often two models share a cluster over {len(runs)} {nouns[what]}."
    picture = c.figure("co_assignment", shares, label, caption, (0.0, 1.0), colormaps["cividis"])
    stability = s.outputs.table("stability", c.labelled(**columns))
    tables = {"How often a model is with its cluster's others": stability}
    return Section("Stability", (), tables, [picture]), sentences


def other_images(rand: NDArray[np.float64]) -> Verdict:
    """Whether other images would give the clusters: Yes where 95% of draws of images reproduce
    them, by their adjusted Rand index [draws], and No where 5% do."""
    share = float(np.mean(rand >= RESOLVED))
    return verdict(share, p=min(share, 1 - share), threshold=0.5)


def _resolution(c: Clustering, draws: list[NDArray]) -> list[str]:
    """How many clusters draws of images reproduce, in words; writes resolution.csv."""
    s = c.study
    if not draws:
        return [] if s.measured else [text("simulate")]
    # More than N / 2 clusters are mostly single models, which any draw reproduces.
    most = min(UP_TO, max(2, len(s.names) // 2))
    numbers = sorted({*range(2, most + 1), c.k})
    rand, seed = {}, s.config.clusters.seed
    with Bars(s.console) as bars:
        bars.start("resolve", [f"{number} clusters" for number in numbers], len(numbers))
        for k in numbers:
            rand[k] = clusters.resolved(s.scores, draws, k, seed, DRAW_RESTARTS)
            bars.advance("resolve", 1)
        bars.end("resolve")
    table = pl.DataFrame({"k": list(rand), "rand_over_images": list(rand.values())})
    s.outputs.table("resolution", table)
    values = {"rand": rand[c.k], "k": c.k, "tried": max(numbers), "resolved": RESOLVED}
    known = [k for k, value in rand.items() if value >= RESOLVED]
    if not known:
        return [text("none", most=max(rand.values()), **values)]
    return [text("certain", known=", ".join(map(str, known)), most=max(known), **values)]


def _matrix(c: Clustering) -> Picture:
    s, lookup = c.study, None
    pairs = s.outputs.table("pairs", s.matrix.pairs())
    if len(s.names) <= LARGE:
        groups = {"base architecture": c.bases, "family": s.families}
        order = c.order.tolist()
        lookup = Lookup(s.names, order, pairs, groups=groups, accuracy=s.accuracy)
    label = "similarity s (nats)"
    return c.figure("cluster_matrix", s.scores, label, text("matrix"), lookup=lookup)


def _features(c: Clustering) -> Picture:
    """The similarity of models in the feature space of K-means, and the features as a table."""
    features = clusters.features(c.study.scores, c.k)
    columns = {f"eigenvector_{i + 1}": features[:, i] for i in range(c.k)}
    c.study.outputs.table("features", c.labelled(**columns))
    cosines = np.clip(features @ features.T, -1, 1)
    label, caption = "cosine similarity of spectral features", text("features", k=c.k)
    return c.figure("spectral_features", cosines, label, caption, (-1.0, 1.0))


def _map(c: Clustering) -> Picture:
    """t-SNE of distances: the highest score of a pair less the pair's own."""
    from sklearn.manifold import TSNE  # a second, while the matrix is drawn

    s, options = c.study, c.study.config.clusters
    distance = off_diagonal(s.scores).max() - s.scores
    np.fill_diagonal(distance, 0.0)
    perplexity = min(float(options.perplexity), (len(s.names) - 1) / 3)
    seed, kind = options.seed, "precomputed"
    tsne = TSNE(perplexity=perplexity, metric=kind, init="random", random_state=seed)
    with threadpool_limits(1):  # with so few points, waiting for other threads costs more
        points = tsne.fit_transform(distance)
    drawn = map_figure(points.astype(float), s.names, c.labels, c.bases)
    table, caption = c.labelled(x=points[:, 0], y=points[:, 1]), text("map", perplexity=perplexity)
    return s.outputs.figure("cluster_map", drawn, table, caption)
