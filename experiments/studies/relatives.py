"""What is a model like, and what sets it apart from others?

Its nearest and farthest relatives by similarity, its cluster, and which of the 13 components it
shares with each. Writes relatives (a figure with its table) and report.html.

On the published 69: resnet50 is nearest to resnetblur50 (s = 3.56, all 13 components the same) and
farthest from vit_base_patch32_224 (2.04, 6 of 13).
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig

from experiments.cli.cluster_words import cluster_words
from experiments.cli.components import components_of, stand_in
from experiments.cli.study import Study, study
from experiments.cli.values import positive_int
from netkin.analysis import clusters
from netkin.analysis.matrix import off_diagonal
from netkin.analysis.statistics import FEWEST
from netkin.errors import UserError, and_more
from netkin.report.plots import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style

CLOSE, ALONE = 0.9, 0.5
"""Shares of all pairs that are less similar than a model and its nearest relative: from the first
on it has close relatives, up to the second it has none."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    number = positive_int(config.relatives.number, "relatives.number")
    wanted = str(config.relatives.model)
    with study(config) as s:
        model, notes = stand_in(s, wanted, "relatives.model: the matrix")
        labels, table = relatives(s, model)
        values, missing = components(s)
        sections = []
        if values is not None:
            table = table.with_columns(
                *shared_columns(values, model, [s.names.index(name) for name in table["model"]])
            )
            own = values.filter(pl.nth(0) == s.names[model]).transpose(
                include_header=True, header_name="component", column_names=["value"]
            )
            sections.append(Section(f"Components of {s.names[model]}", (), {"": own[1:]}))
        figure = s.outputs.figure(
            "relatives",
            relatives_figure(table, s.names[model], values is not None),
            table,
            f"Similarity of the other models to {s.names[model]}"
            + (", by the number of components that they share." if values is not None else "."),
        )
        ends = {
            f"The {number} nearest": table.head(number),
            f"The {number} farthest": table.tail(number).reverse(),
            "All": table,
        }
        s.finish(
            f"What is {wanted} like?",
            f"Its relatives among {s.source}.",
            [
                verdict(s, model, table),
                *notes,
                *in_words(table, number),
                cluster_words(s, model, labels, values),
                *missing,
            ],
            [Section("Relatives", (), ends, [figure]), *sections],
        )


def relatives(s: Study, model: int) -> tuple[np.ndarray, pl.DataFrame]:
    """The clusters of the N models, [N], and a row for each other model, the nearest first."""
    if len(s.names) < 3:
        raise UserError(f"relatives take at least 3 models, got {len(s.names)}")
    k, _ = clusters.choose_k(s.config.k, s.scores)
    labels = clusters.spectral(s.scores, k)
    others = [int(i) for i in np.argsort(-s.scores[model], kind="stable") if i != model]
    return labels, pl.DataFrame(
        {
            "model": [s.names[i] for i in others],
            "similarity": s.scores[model, others],
            "cluster": labels[others] + 1,
            "same_cluster": labels[others] == labels[model],
        }
    )


def components(s: Study) -> tuple[pl.DataFrame | None, list[str]]:
    """The components of the models, or the reason why they are not known."""
    try:
        return components_of(s), []
    except UserError as error:
        if s.config.components is not None:
            raise
        return None, [f"What they share is not known: {error}."]


def shared_columns(values: pl.DataFrame, model: int, others: list[int]) -> list[pl.Series]:
    """How many components others share with the model, and which differ, in words."""
    names, rows = values.columns[1:], values.rows()
    own, differ = rows[model][1:], []
    for i in others:
        pairs = zip(names, own, rows[i][1:], strict=True)
        differ.append([f"{name}: {theirs}" for name, mine, theirs in pairs if theirs != mine])
    return [
        pl.Series("shared_components", [len(names) - len(each) for each in differ]),
        pl.Series("differs_in", ["; ".join(each) for each in differ]),
    ]


def verdict(s: Study, model: int, table: pl.DataFrame) -> str:
    """Whether the model has close relatives, in a sentence: compared with all pairs of models."""
    nearest, farthest = table.row(0, named=True), table.row(-1, named=True)
    every = off_diagonal(s.scores)
    above = float(np.mean(every < nearest["similarity"]))
    text = (
        f"{s.names[model]} is most like {nearest['model']} (s = {nearest['similarity']:.2f}, more "
        f"alike than {above:.0%} of all pairs) and least like {farthest['model']} "
        f"({farthest['similarity']:.2f}), a factor of "
        f"{np.exp(nearest['similarity'] - farthest['similarity']):.1f} in how often they fool each "
        "other."
    )
    if len(s.names) < FEWEST or ALONE < above < CLOSE:
        return f"Not certain: {text}"
    return f"Yes, it has close relatives: {text}" if above >= CLOSE else f"No, it is apart: {text}"


def in_words(table: pl.DataFrame, number: int) -> list[str]:
    """The nearest and the farthest, with what differs."""
    paragraphs = []
    for what, rows in (("Nearest", table.head(number)), ("Farthest", table.tail(number).reverse())):
        parts = []
        for row in rows.iter_rows(named=True):
            differs = row.get("differs_in")
            known = "" if differs is None else f", {difference(row)}"
            parts.append(f"{row['model']} ({row['similarity']:.2f}{known})")
        paragraphs.append(f"{what}: {', '.join(parts)}.")
    return paragraphs


def difference(row: dict) -> str:
    """How many components are the same, and up to two that are not."""
    if not row["differs_in"]:
        return "the same components"
    listed = row["differs_in"].split("; ")
    return f"differs in {and_more(listed, 2)}"


@style()
def relatives_figure(table: pl.DataFrame, name: str, known: bool) -> Figure:
    """Similarity to the model by shared components (or by rank), marked by cluster."""
    figure, (ax,) = panels(1, 5.2, 3.2)
    y = table["shared_components"] if known else table["similarity"].rank(descending=True)
    scatter(
        ax,
        table["similarity"].to_numpy(),
        y.cast(pl.Float64).to_numpy(),
        f"similarity to {name} (nats)",
        "shared components" if known else "rank",
        names=table["model"].to_list() if table.height < 16 else None,
        groups=["its cluster" if same else "others" for same in table["same_cluster"]],
    )
    return figure
