"""What is a model like, and what sets it apart from others?

Its nearest and farthest relatives by similarity, its cluster, and which of the 13 components it
shares with each. Writes relatives (a figure with its table) and report.html.

On the published 69: resnet50 is nearest to resnetblur50 (s = 3.56, all 13 components the same) and
farthest from vit_base_patch32_224 (2.04, 6 of 13).
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import bases_of, known_components, stand_in
from experiments.cli.study import Study, study
from netkin.analysis import clusters, confounders
from netkin.analysis.components import shared_values
from netkin.analysis.matrix import off_diagonal
from netkin.analysis.statistics import FEWEST, correlations, p_text
from netkin.analysis.verdict import by_chance, verdict
from netkin.errors import UserError, and_more
from netkin.report.plots import Marks, scatter_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import FULL

UNRELATED = 199  # matrices of unrelated models
NAMED = 10  # nearest and farthest models that the figure names
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    number = config.relatives.number
    wanted = str(config.relatives.model)
    with study(config) as s:
        if len(s.names) < 3:
            raise UserError(f"relatives take at least 3 models, got {len(s.names)}")
        model, notes = stand_in(s, wanted, "relatives.model: the matrix")
        name = s.names[model]
        labels = clusters.spectral(s.scores, clusters.choose_k(s.config.k, s.scores)[0])
        values, missing = known_components(s)
        table = relatives(s, model, labels, values)
        sections, by, y = [], "rank", table["similarity"].rank(descending=True)
        if values is not None:
            by, y = "shared components", table["shared_components"]
            rows = values.filter(pl.nth(0) == name).transpose(
                include_header=True, header_name="component", column_names=["value"]
            )
            sections.append(Section(f"Components of {name}", (), {"": rows[1:]}))
        bases = dict(zip(s.names, bases_of(s), strict=True))
        x, label = table["similarity"], f"similarity to {name} (nats)"
        middle = slice(NAMED, table.height - NAMED)
        unnamed = set(table["model"][middle]) if table.height > 2 * NAMED else set()
        named = ["" if other in unnamed else other for other in table["model"]]
        groups = [bases[other] for other in table["model"]]
        own = Marks(table["same_cluster"].to_numpy(), f"in the cluster of {name}")
        y = y.cast(pl.Float64)
        drawn = scatter_figure(x, y, label, by, named, groups, width=FULL, height=4.4, marks=own)
        caption = text("caption", name=name, by=by, n=NAMED)
        picture = s.outputs.figure("relatives", drawn, table, caption)
        ends = {"nearest": table.head(number), "farthest": table.tail(number).reverse()}
        tables = {f"The {number} {what}": rows for what, rows in ends.items()} | {"All": table}
        s.finish(
            f"What is {wanted} like?",
            f"Its relatives among {s.source}.",
            [
                most_alike(s, model, table),
                *notes,
                is_related(s, model, table),
                *(f"{what.title()}: {listed(rows)}." for what, rows in ends.items()),
                in_cluster(s, model, labels, values),
                *([text("unknown", error=missing)] if missing else []),
            ],
            [Section("Relatives", (), tables, [picture]), *sections],
        )


def relatives(s: Study, model: int, labels: NDArray, values: pl.DataFrame | None) -> pl.DataFrame:
    """A row for each other model, the nearest first: model, similarity, cluster, same_cluster and,
    where components are known, shared_components (how many) and differs_in (the others)."""
    others = [int(i) for i in np.argsort(-s.scores[model], kind="stable") if i != model]
    table = pl.DataFrame(
        {
            "model": [s.names[i] for i in others],
            "similarity": s.scores[model, others],
            "cluster": labels[others] + 1,
            "same_cluster": labels[others] == labels[model],
        }
    )
    if values is None:
        return table
    names, rows = values.columns[1:], values[:, 1:].rows()
    differ = [
        [f"{c}: {y}" for c, x, y in zip(names, rows[model], rows[i], strict=True) if x != y]
        for i in others
    ]
    return table.with_columns(
        pl.Series("shared_components", [len(names) - len(each) for each in differ]),
        pl.Series("differs_in", ["; ".join(each) for each in differ]),
    )


def most_alike(s: Study, model: int, table: pl.DataFrame) -> str:
    """The nearest and the farthest model, and how often draws of images have the same nearest."""
    nearest, farthest = table.row(0, named=True), table.row(-1, named=True)
    high, low = nearest["similarity"], farthest["similarity"]
    models = {"name": s.names[model], "nearest": nearest["model"], "farthest": farthest["model"]}
    certain = ""
    if (draws := s.draws()) is not None:
        others = np.delete(draws[:, model], model, axis=1)
        first = s.names.index(nearest["model"])
        same = np.mean(others.argmax(axis=1) == first - (first > model))
        certain = text("certain", same=same, draws=len(draws))
    return text("most", high=high, low=low, factor=np.exp(high - low), certain=certain, **models)


def is_related(s: Study, model: int, table: pl.DataFrame) -> str:
    """Whether the nearest model is a relative, or only the nearest of so many."""
    nearest, n = table.row(0, named=True), len(s.names)
    above = float(np.mean(off_diagonal(s.scores) < nearest["similarity"]))
    values = {"name": s.names[model], "nearest": nearest["model"], "above": above, "n": n - 1}
    if n < FEWEST:
        return text("related", "few", **values)
    r, null = likeness(s.scores, model), unrelated_likeness(s.scores, model)
    p = p_text(by_chance(r, null), len(null) // 2)  # which is two-sided
    return text("related", verdict(r, null=null), r=r, p=p, others=n - 2, draws=len(null), **values)


def likeness(scores: NDArray[np.float64], model: int) -> float:
    """Pearson's r, over the N - 2 other models, between the scores of a model and those of its
    nearest, without main effects, [N, N] for N of FEWEST or more.

    The score of the two chose the pair, and is not read: of unrelated models one is always the
    nearest, but its other scores have nothing to do with the model's.
    """
    rest, first = confounders.main_effects(scores).rest, confounders.nearest(scores)[model]
    others = np.delete(np.arange(len(scores)), [model, first])
    return float(correlations(rest[model, others], rest[first, others])[0])


def unrelated_likeness(scores: NDArray[np.float64], model: int) -> NDArray[np.float64]:
    """`likeness` in matrices of unrelated models."""
    found = confounders.unrelated(scores, UNRELATED)
    return np.array([likeness(each, model) for each in found])


def listed(rows: pl.DataFrame) -> str:
    """Models with their similarity, and up to two components that differ."""
    parts = []
    for row in rows.iter_rows(named=True):
        differs, known = row.get("differs_in"), ""
        if differs is not None:
            some = and_more(differs.split("; "), 2)
            known = f", differs in {some}" if differs else ", the same components"
        parts.append(f"{row['model']} ({row['similarity']:.2f}{known})")
    return ", ".join(parts)


def in_cluster(s: Study, model: int, labels: NDArray, values: pl.DataFrame | None) -> str:
    """The models of its cluster, and what these have in common."""
    others = [s.names[i] for i in np.flatnonzero(labels == labels[model]) if i != model]
    where = {"name": s.names[model], "cluster": labels[model] + 1, "k": labels.max() + 1}
    if not others:
        return text("alone", **where)
    sentence = text("cluster", others=", ".join(others), **where)
    if values is None:
        return sentence
    mine, found = values.row(model, named=True), {"has": [], "lacks": []}
    for row in shared_values(values, labels).filter(cluster=int(labels[model] + 1)).to_dicts():
        component, shared = row["component"], f"{row['component']}: {row['value']}"
        if mine[component] == row["value"]:
            found["has"].append(shared)
        else:
            found["lacks"].append(f"{shared} ({s.names[model]}: {mine[component]})")
    for key, some in found.items():
        sentence += text(key, name=s.names[model], listed="; ".join(some)) if some else ""
    return sentence
