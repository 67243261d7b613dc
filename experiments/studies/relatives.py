"""What is a model like, and what sets it apart from others?

Its nearest and farthest relatives by similarity, its cluster, and which of the 13 components it
shares with each. Writes relatives (a figure with its table) and report.html.

On the published 69: resnet50 is nearest to resnetblur50 (s = 3.56, all 13 components the same) and
farthest from vit_base_patch32_224 (2.04, 6 of 13).
"""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import components_of, stand_in
from experiments.cli.study import Study, study
from netkin.analysis import clusters
from netkin.analysis.components import shared_values
from netkin.analysis.matrix import off_diagonal
from netkin.analysis.statistics import FEWEST
from netkin.errors import UserError, and_more
from netkin.report.plots import scatter_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section

CLOSE, ALONE = 0.9, 0.5
"""Shares of all pairs that are less similar than a model and its nearest relative: from the first
on it has close relatives, up to the second it has none."""
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    number = config.relatives.number
    wanted = str(config.relatives.model)
    with study(config) as s:
        if len(s.names) < 3:
            raise UserError(f"relatives take at least 3 models, got {len(s.names)}")
        model, notes = stand_in(s, wanted, "relatives.model: the matrix")
        name = s.names[model]
        k, _ = clusters.choose_k(s.config.k, s.scores)
        labels = clusters.spectral(s.scores, k)
        values, missing = components(s)
        table = relatives(s, model, labels, values)
        sections = []
        if values is not None:
            own = values.filter(pl.nth(0) == name).transpose(
                include_header=True, header_name="component", column_names=["value"]
            )
            sections.append(Section(f"Components of {name}", (), {"": own[1:]}))
        picture = s.outputs.figure(
            "relatives",
            relatives_figure(table, name),
            table,
            f"Similarity of the other models to {name}"
            + (", by the number of components that they share." if values is not None else "."),
        )
        ends = {"nearest": table.head(number), "farthest": table.tail(number).reverse()}
        tables = {f"The {number} {what}": rows for what, rows in ends.items()} | {"All": table}
        s.finish(
            f"What is {wanted} like?",
            f"Its relatives among {s.source}.",
            [
                decided(s, name, table),
                *notes,
                *(f"{what.title()}: {listed(rows)}." for what, rows in ends.items()),
                in_cluster(s, model, labels, values),
                *missing,
            ],
            [Section("Relatives", (), tables, [picture]), *sections],
        )


def components(s: Study) -> tuple[pl.DataFrame | None, list[str]]:
    """The components of the models, or the reason why they are not known."""
    try:
        return components_of(s), []
    except UserError as error:
        if s.config.components is not None:
            raise
        return None, [text("unknown", error=error)]


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
    names, own, rows = values.columns[1:], values.row(model)[1:], values.rows()
    differ = [
        [f"{c}: {theirs}" for c, mine, theirs in zip(names, own, rows[i][1:], strict=True)
         if theirs != mine]
        for i in others
    ]  # fmt: skip
    return table.with_columns(
        pl.Series("shared_components", [len(names) - len(each) for each in differ]),
        pl.Series("differs_in", ["; ".join(each) for each in differ]),
    )


def decided(s: Study, name: str, table: pl.DataFrame) -> str:
    """Whether the model has close relatives: compared with all pairs of models."""
    nearest, farthest = table.row(0, named=True), table.row(-1, named=True)
    high, low = nearest["similarity"], farthest["similarity"]
    above = float(np.mean(off_diagonal(s.scores) < high))
    models = {"name": name, "nearest": nearest["model"], "farthest": farthest["model"]}
    most = text("most", high=high, low=low, above=above, factor=np.exp(high - low), **models)
    if len(s.names) < FEWEST or ALONE < above < CLOSE:
        return text("Not certain", text=most)
    return text("Yes" if above >= CLOSE else "No", text=most)


def listed(rows: pl.DataFrame) -> str:
    """Models with their similarity, and up to two components that differ."""
    parts = []
    for row in rows.iter_rows(named=True):
        known = ""
        if row.get("differs_in") == "":
            known = ", the same components"
        elif row.get("differs_in"):
            known = f", differs in {and_more(row['differs_in'].split('; '), 2)}"
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
    own = dict(zip(values.columns[1:], values.row(model)[1:], strict=True))
    has, lacks = [], []
    for row in shared_values(values, labels).filter(cluster=int(labels[model] + 1)).to_dicts():
        shared, mine = f"{row['component']}: {row['value']}", own[row["component"]]
        if mine == row["value"]:
            has.append(shared)
        else:
            lacks.append(f"{shared} ({s.names[model]}: {mine})")
    for key, some in (("has", has), ("lacks", lacks)):
        sentence += text(key, name=s.names[model], listed="; ".join(some)) if some else ""
    return sentence


def relatives_figure(table: pl.DataFrame, name: str) -> Figure:
    """Similarity to the model by shared components (or by rank), marked by cluster."""
    known = "shared_components" in table.columns
    y = table["shared_components"] if known else table["similarity"].rank(descending=True)
    return scatter_figure(
        table["similarity"].to_numpy(),
        y.cast(pl.Float64).to_numpy(),
        f"similarity to {name} (nats)",
        "shared components" if known else "rank",
        names=table["model"].to_list() if table.height < 16 else None,
        groups=["its cluster" if same else "others" for same in table["same_cluster"]],
        width=5.2,
        height=3.2,
    )
