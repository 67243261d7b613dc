"""Clusters of models in words: whether they are certain, who is in them, and what these share."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.cli.study import Study
from netkin.analysis.clusters import affinity
from netkin.analysis.components import shared_values
from netkin.analysis.matrix import off_diagonal


def verdict(s: Study, labels: NDArray, certain: bool | None, reason: str) -> str:
    """Whether the clusters are certain, and how much more alike the models in them are."""
    within = labels[:, None] == labels
    lower = np.tri(len(labels), k=-1, dtype=bool)
    inside, between = s.scores[within & lower], s.scores[~within & lower]
    verdict = {
        True: "Yes: other images would give",
        False: "No: other images would not give",
        None: "Not certain: one matrix cannot tell whether other images would give",
    }[certain]
    text = f"{verdict} the same {labels.max() + 1} clusters ({reason})."
    if inside.size and between.size:
        factor = np.exp(inside.mean() - between.mean())
        text += (
            f" Two models of one cluster fool each other {factor:.1f} times as often as two of "
            f"different ones: mean s = {inside.mean():.3f} within clusters and "
            f"{between.mean():.3f} between them."
        )
    return f"{text} The mean similarity of different models is {s.scores[lower].mean():.3f}."


def members(s: Study, labels: NDArray, common: pl.DataFrame | None) -> list[str]:
    """A paragraph a cluster: its models, and the components that they share."""
    paragraphs = []
    for cluster in range(int(labels.max()) + 1):
        own = np.flatnonzero(labels == cluster)
        names = ", ".join(s.names[i] for i in own)
        text = f"Cluster {cluster + 1} ({len(own)} model{'s' * (len(own) != 1)}): {names}."
        if common is not None and len(own) > 1:
            shared = "; ".join(
                f"{row['component']}: {row['value']} ({row['share']:.0%}, "
                f"of others {row['share_of_others']:.0%})"
                for row in common.filter(cluster=cluster + 1).iter_rows(named=True)
            )
            text += f" In common: {shared or 'nothing that others lack'}."
        paragraphs.append(text)
    return paragraphs


def cluster_words(s: Study, model: int, labels: np.ndarray, values: pl.DataFrame | None) -> str:
    """The models of its cluster, and what these have in common."""
    own = [s.names[i] for i in np.flatnonzero(labels == labels[model]) if i != model]
    name, number = s.names[model], labels[model] + 1
    if not own:
        return f"{name} is alone in cluster {number} of {labels.max() + 1}."
    text = f"With {name} in cluster {number} of {labels.max() + 1}: {', '.join(own)}."
    if values is None:
        return text
    common = shared_values(values, labels).filter(cluster=int(number))
    mine = dict(zip(values.columns[1:], values.row(model)[1:], strict=True))
    rows = common.to_dicts()
    has = [f"{r['component']}: {r['value']}" for r in rows if mine[r["component"]] == r["value"]]
    lacks = [
        f"{r['component']}: {r['value']} ({name}: {mine[r['component']]})"
        for r in rows
        if mine[r["component"]] != r["value"]
    ]
    if has:
        text += f" What sets the cluster apart, and {name} has: {'; '.join(has)}."
    if lacks:
        text += f" What it has and {name} has not: {'; '.join(lacks)}."
    return text


def shifted(s: Study) -> list[str]:
    """A sentence where scores below 0 were shifted for the clustering."""
    shift = affinity(s.scores).shift
    if not shift:
        return []
    negative = int((off_diagonal(s.scores) < 0).sum())
    return [
        f"{negative} pair{'s score' if negative > 1 else ' scores'} below 0: the models fool each "
        "other on under 1% of images. Edges of "
        f"the graph cannot be negative, so {shift:.2f} was added to all scores before clustering."
    ]
