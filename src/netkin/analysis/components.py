"""What the components of models (`netkin.zoo.components`, or any table) say of their groups."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from netkin.errors import UserError, and_more, near


def read_components(path: str | Path) -> pl.DataFrame:
    """A table of components from a CSV file: models in the first column, a component in each other.

    Any components will do. Raises UserError for a file that cannot be read, has no component, or
    names a model twice or not at all.
    """
    file = Path(path).expanduser()
    try:
        table = pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"components={path} cannot be read as a CSV file ({reason}); expected a header, models "
            "in the first column and a component in each other"
        ) from None
    if table.width < 2 or not table.height:
        raise UserError(
            f"components={path} has {table.height} models and {max(table.width - 1, 0)} "
            "components; expected models in the first column and a component in each other"
        )
    table = table.fill_null("").with_columns(pl.all().str.strip_chars())
    models = table.to_series(0)
    if (models == "").any():
        raise UserError(
            f"components={path}: row {int((models == '').arg_max() or 0) + 2} has no model"
        )
    if models.is_duplicated().any():
        twice = models.filter(models.is_duplicated()).unique(maintain_order=True)
        raise UserError(f"components={path} has more than one row of {', '.join(twice)}")
    return table


def rows_of(table: pl.DataFrame, names: Sequence[str], what: str) -> pl.DataFrame:
    """A table's rows for some models, in their order.

    Raises UserError that lists the models which it lacks.
    """
    models = table.to_series(0).to_list()
    missing = [name for name in names if name not in set(models)]
    if missing:
        raise UserError(
            f"{what} lacks {len(missing)} of the {len(names)} models: "
            f"{and_more(missing)}{near(missing[0], models)} (both must use one name for "
            "a model)"
        )
    place = {model: i for i, model in enumerate(models)}
    return table[[place[name] for name in names]]


def differences(table: pl.DataFrame) -> NDArray[np.bool_]:
    """In which components two models differ, [N, N, C]: 13 bits a pair for the paper's table."""
    values = table[:, 1:].to_numpy()
    return values[:, None, :] != values[None, :, :]


def keywords(table: pl.DataFrame, labels: NDArray, top: int = 5) -> pl.DataFrame:
    """The words that set each cluster apart, by TF-IDF (Sec. 3.1, Tab. 2).

    A model is a document and "component: value" a word; a cluster's score of a word is its mean
    over the models. TF-IDF is scikit-learn's, with smoothed idf and documents of unit length: with
    it the paper's keywords come out, such common ones as "Normalization: BN" among them.

    Args:
        table: rows of N models, the first column their names.
        labels: [N] int from 0.
        top: words a cluster.

    Returns:
        cluster (from 1), rank, component, value, tf_idf, share (of the cluster's models that have
        it) and share_of_all.
    """
    components = table.columns[1:]
    documents = [[(c, row[c]) for c in components] for row in table.iter_rows(named=True)]
    counter = TfidfVectorizer(analyzer=_words)  # pyright: ignore[reportArgumentType]
    weights = np.asarray(counter.fit_transform(documents).todense())  # type: ignore[union-attr]
    words = list(counter.get_feature_names_out())
    # Ties go to the component that stands first in the table.
    first = np.array([components.index(component) for component, _ in words])
    rows = []
    for cluster in range(int(labels.max()) + 1):
        mean = weights[labels == cluster].mean(axis=0)
        for rank, word in enumerate(np.lexsort((first, -mean.round(9)))[:top], start=1):
            component, value = words[word]
            has = (table[component] == value).to_numpy()
            rows.append(
                {
                    "cluster": cluster + 1,
                    "rank": rank,
                    "component": component,
                    "value": value,
                    "tf_idf": float(mean[word]),
                    "share": float(has[labels == cluster].mean()),
                    "share_of_all": float(has.mean()),
                }
            )
    return pl.DataFrame(rows)


def _words(document: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return document


def agreement(ours: pl.DataFrame, theirs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two tables of the same models, cell by cell: (component, cells, agree, share), and the cells
    that differ (model, component, ours, theirs). Components that only one has are left out."""
    names = ours.to_series(0).to_list()
    shared = [c for c in ours.columns[1:] if c in theirs.columns[1:]]
    counts, differ = [], []
    for component in shared:
        same = (ours[component] == theirs[component]).to_numpy()
        counts.append((component, len(same), int(same.sum()), float(same.mean())))
        differ += [
            (names[i], component, ours[component][int(i)], theirs[component][int(i)])
            for i in np.flatnonzero(~same)
        ]
    return (
        pl.DataFrame(counts, schema=["component", "cells", "agree", "share"], orient="row"),
        pl.DataFrame(
            differ,
            schema=dict.fromkeys(("model", "component", "ours", "theirs"), pl.String),
            orient="row",
        ),
    )
