"""Tables of models' components (`netkin.components`, or any other): reading and comparing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.data.tables import read_text
from netkin.errors import UserError, and_more, near


def read_components(path: str | Path) -> pl.DataFrame:
    """A table of components from a CSV file: models in the first column, then a column per
    component, of any names.

    Raises UserError for a file that cannot be read or has no component, and for a row that has no
    model or one that another row has.
    """
    expected = "models in the first column and a component in each other column"
    table = read_text(Path(path).expanduser(), expected=f"a CSV file, {expected}")
    if table.width < 2 or not table.height:
        counts = f"{table.height} models and {max(table.width - 1, 0)} components"
        raise UserError(f"{path} has {counts}; expected {expected}")
    models = table.to_series(0)
    if (models == "").any():
        raise UserError(f"{path}: row {int((models == '').arg_max() or 0) + 2} has no model")
    if models.is_duplicated().any():
        twice = models.filter(models.is_duplicated()).unique(maintain_order=True)
        raise UserError(f"{path} has more than one row of {', '.join(twice)}")
    return table


def rows_of(table: pl.DataFrame, names: Sequence[str], what: str) -> pl.DataFrame:
    """A table's rows for some models, in their order; `what` names the table in errors.

    Raises UserError that lists the models that the table lacks.
    """
    models = table.to_series(0).to_list()
    missing = [name for name in names if name not in set(models)]
    if missing:
        raise UserError(
            f"{what} lacks {len(missing)} of the {len(names)} models: "
            f"{and_more(missing)}{near(missing[0], models)} (names must be the same in both)"
        )
    index = {model: i for i, model in enumerate(models)}
    return table[[index[name] for name in names]]


def differences(table: pl.DataFrame) -> NDArray[np.bool_]:
    """Whether two models differ in each component, [N, N, C]: 13 bits per pair in the paper."""
    values = table[:, 1:].to_numpy()
    return values[:, None, :] != values[None, :, :]


def keywords(table: pl.DataFrame, labels: NDArray, top: int = 5) -> pl.DataFrame:
    """The `top` keywords of each cluster, by TF-IDF (Sec. 3.1, Tab. 2).

    A model is a document and "component: value" a word. A cluster's score of a word is the mean
    over its models. TF-IDF is as in scikit-learn, with smoothed idf and unit documents: it
    reproduces the paper's keywords, including common ones such as "Normalization: BN".

    Takes rows of N models, the first column their names, and labels, [N] int from 0. Returns
    cluster (from 1), rank, component, value, tf_idf, and two rates: share, of the cluster's models
    with this value, and share_of_all, of all models.
    """
    components = table.columns[1:]
    terms = sorted({(c, value) for c in components for value in table[c]})
    has = np.stack([(table[component] == value).to_numpy() for component, value in terms], axis=1)
    weights = has * (np.log((1 + len(has)) / (1 + has.sum(axis=0))) + 1)  # [N, terms]
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    # Ties go to the component that comes first in the table.
    first = np.array([components.index(component) for component, _ in terms])
    rows = []
    for cluster in range(int(labels.max()) + 1):
        mean = weights[labels == cluster].mean(axis=0)
        for rank, term in enumerate(np.lexsort((first, -mean.round(9)))[:top], start=1):
            component, value = terms[term]
            shares = float(has[labels == cluster, term].mean()), float(has[:, term].mean())
            rows.append((cluster + 1, rank, component, value, float(mean[term]), *shares))
    schema = ["cluster", "rank", "component", "value", "tf_idf", "share", "share_of_all"]
    return pl.DataFrame(rows, schema=schema, orient="row")


SHARED, RARER = 0.75, 0.25
"""Share of a cluster's models from which a value counts as common to it, and by how much it must be
rarer among the other models."""


def shared_values(table: pl.DataFrame, labels: NDArray, top: int = 3) -> pl.DataFrame:
    """What each cluster has in common, and others have not.

    Of the values that at least SHARED of a cluster's models have, the `top` that are most common
    there compared with the other models; see `keywords` for the arguments. Returns cluster (from
    1), component, value, and two rates: share, of the cluster's models, and share_of_others. A
    cluster has no row where nothing sets it apart.
    """
    rows = []
    for cluster in range(int(labels.max()) + 1):
        inside, found = labels == cluster, []
        for component in table.columns[1:]:
            for value in table[component].unique(maintain_order=True):
                has = (table[component] == value).to_numpy()
                share = float(has[inside].mean())
                others = float(has[~inside].mean()) if (~inside).any() else 0.0
                if share >= SHARED and share - others >= RARER:
                    found.append((cluster + 1, component, value, share, others))
        rows += sorted(found, key=lambda row: row[4] - row[3])[:top]
    schema = {
        **{"cluster": pl.Int64, "component": pl.String, "value": pl.String},
        **{"share": pl.Float64, "share_of_others": pl.Float64},
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def agreement(ours: pl.DataFrame, theirs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two tables of the same models, in the same order, compared cell by cell.

    Returns a row per component that both have (component, cells, agree, share), and a row per cell
    that differs (model, component, ours, theirs).
    """
    model = ours.columns[0]
    shared = [c for c in ours.columns[1:] if c in theirs.columns[1:]]
    long = [
        t.unpivot(shared, index=t.columns[0], variable_name="component") for t in (ours, theirs)
    ]
    both = long[0].rename({model: "model", "value": "ours"})
    both = both.with_columns(long[1]["value"].alias("theirs"))
    same = pl.col("ours") == pl.col("theirs")
    counts = both.group_by("component", maintain_order=True).agg(
        cells=pl.len().cast(pl.Int64), agree=same.sum().cast(pl.Int64), share=same.mean()
    )
    return counts, both.filter(~same)
