"""The sections of a page that show a similarity matrix: heatmap, pairs, families and models."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from netkin.analysis.clusters import hierarchy
from netkin.analysis.summary import WEAK_ATTACK
from netkin.report.figures import LABEL, LARGE, cell_colours, colour_range
from netkin.report.heatmap import heatmap_data, heatmap_svg
from netkin.report.study import Section, block
from netkin.report.style import base_colours
from netkin.report.text import number

EXTREMES = 5
"""Pairs in each of the tables of the most and the least similar."""
ANCHORS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.00)
"""Fooling rates p whose scores explain the scale."""
_TEMPLATE = "matrix.html.j2"


@dataclass(frozen=True)
class Relations:
    """The scores of N models and the tables about them. All text is plain text.

    Attributes:
        scores: [N, N], symmetric, in nats; NaN where a pair has none.
        names: N model names.
        families: the family of each model.
        pairs: one row a pair: a, b, n, a_fools_b, b_fools_a (rates in [0, 1]), score, low, high
            (95 % interval), and above_noise and others of `netkin.analysis.confounders` where that
            control was run; N (N - 1) / 2 rows, in any order.
        models: one row a model: model, family, params, input_size, clean_accuracy and
            white_box_success (in [0, 1]), white_box_score, mean_similarity, nearest; and, where it
            is known, suspect: why the model's clean predictions look wrong, or null, and
            noise_rate: how often noise of the attack's eps fools the model.
        family_means: family_a, family_b, pairs, mean; family_a == family_b is within a family, and
            a family of one has no such row. With columns low and high, the interval is shown too.
        bases: the base architecture of each model; the families, unless given.
        links: a page about a model, by its name.
    """

    scores: NDArray[np.float64]
    names: Sequence[str]
    families: Sequence[str]
    pairs: pl.DataFrame
    models: pl.DataFrame
    family_means: pl.DataFrame
    bases: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def groups(self) -> Sequence[str]:
        """What the models' colours stand for: their bases, or families where these are unknown."""
        return self.bases or self.families

    @property
    def least(self) -> float:
        """The least width of the colour scale: six times half an interval, in nats."""
        if "high" not in self.pairs.columns:
            return 0.0
        known = self.pairs.drop_nulls("score")
        width = (known["high"] - known["low"]).median()
        return 3 * float(width) if isinstance(width, float) else 0.0

    @property
    def marked(self) -> NDArray[np.bool_] | None:
        """Pairs that do not transfer more than noise fools, [N, N]; None where that is unknown."""
        if "above_noise" not in self.pairs.columns:
            return None
        place = {name: i for i, name in enumerate(self.names)}
        marked = np.zeros((len(place), len(place)), dtype=bool)
        for a, b in self.pairs.filter(~pl.col("above_noise")).select("a", "b").iter_rows():
            marked[place[a], place[b]] = marked[place[b], place[a]] = True
        return marked if marked.any() else None


def bare(
    scores: NDArray[np.float64],
    names: Sequence[str],
    families: Sequence[str],
    bases: Sequence[str],
    links: Mapping[str, str],
) -> Relations:
    """What `heatmap_section` takes, of scores [N, N] of which nothing else is known."""
    rows, columns = np.tril_indices(len(names), k=-1)
    listed = np.array(names)
    pairs = pl.DataFrame({"a": listed[columns], "b": listed[rows], "score": scores[rows, columns]})
    models = pl.DataFrame({"model": listed})
    return Relations(scores, names, families, pairs, models, pl.DataFrame(), bases, links)


def matrix_sections(relations: Relations, prints: Sequence[str] = ()) -> list[Section]:
    """The sections of a page; `prints` are files next to it with the heatmap as a figure."""
    return [
        heatmap_section(relations, prints),
        reading_section(),
        _pairs_section(relations.pairs),
        Section("Families", blocks=[block(_TEMPLATE, "families", **_family_table(relations))]),
        _models_section(relations.models, relations.links),
    ]


def reading_section() -> Section:
    """What a score means, with the scores of some fooling rates."""
    anchors = [(p, math.log(100 * p)) for p in ANCHORS]
    return Section("How to read the score", blocks=[block(_TEMPLATE, "reading", anchors=anchors)])


def heatmap_section(
    relations: Relations,
    prints: Sequence[str] = (),
    title: str = "Similarity of every pair",
    label: str = LABEL,
    symbol: str = "s",
    signed: bool = False,
    file: str = "pairs.csv",
) -> Section:
    """The heatmap with its table of pairs; a page may have several.

    Args:
        relations: only names, scores, and a table of pairs with a, b and score must be known.
        prints: files next to the page with the heatmap as a figure.
        title: of the section.
        label: of the colours.
        symbol: of a value.
        signed: whether the colours have 0 in the middle.
        file: next to the page, with all pairs.
    """
    names, groups, marked = relations.names, relations.groups, relations.marked
    kind = "base architecture" if relations.bases else "family"
    scores = relations.scores
    svg = heatmap_svg(scores, names, groups, label, relations.least, marked, signed)
    if len(names) > LARGE:
        values = {"models": len(names), "pairs": relations.pairs.height}
        return Section(
            title, blocks=[block(_TEMPLATE, "picture", svg=svg, prints=prints, file=file, **values)]
        )
    by = {"base": groups} | ({"family": relations.families} if relations.bases else {})
    data = heatmap_data(
        scores, names, by, relations.pairs, relations.models, relations.links, symbol
    )
    accuracy = "clean_accuracy" in relations.models.columns
    orders = [("cluster", "clusters"), ("base", kind)]
    orders += [("family", "family")] if relations.bases else []
    orders += [("accuracy", "accuracy")] if accuracy else []
    colours = base_colours(groups)
    html = block(
        _TEMPLATE,
        "heatmap",
        svg=svg,
        data=data,
        names=names,
        number=re.sub(r"\W+", "-", title.lower()),
        orders=[*orders, ("name", "name")],
        columns=_columns(relations.pairs, symbol, kind),
        legend=[(name, colour, list(groups).count(name)) for name, colour in colours.items()],
        kind=kind,
        prints=prints,
        marked=marked is not None,
        file=file,
    )
    return Section(title, blocks=[html])


def _columns(pairs: pl.DataFrame, symbol: str, kind: str) -> list[tuple[str, str, bool]]:
    """Key, title and whether it is of numbers, of the columns of the table of all pairs."""
    columns = [
        ("score", symbol),
        ("low", "95% interval"),
        ("n", "n"),
        ("a_fools_b", "A fools B"),
        ("b_fools_a", "B fools A"),
        ("noise_fools_a", "noise fools A, B"),
        ("corrected", "corrected"),
        ("above_noise", "above noise"),
    ]
    known = [(key, title, True) for key, title in columns if _known(pairs, key)]
    return [
        ("a", "A", False),
        ("b", "B", False),
        ("bases", f"{kind.split()[0]} of A, B", False),
        *known,
    ]


def _known(pairs: pl.DataFrame, column: str) -> bool:
    return column in pairs.columns and bool(pairs[column].is_not_null().any())


def _pairs_section(pairs: pl.DataFrame) -> Section:
    scored = pairs.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan())
    if scored.is_empty():
        return Section("Pairs", ["No pair has a score."])
    ranked = scored.sort(["score", "a", "b"], descending=[True, False, False])
    listed = min(EXTREMES, max(ranked.height // 2, 1))  # no pair is in both tables
    most = ranked.head(listed).to_dicts()
    least = ranked.tail(listed).reverse().to_dicts() if ranked.height > 1 else []
    noise = "above_noise" in pairs.columns
    title = "Most and least similar pairs" if least else "The only pair"
    return Section(title, blocks=[block(_TEMPLATE, "pairs", most=most, least=least, noise=noise)])


def _models_section(models: pl.DataFrame, links: Mapping[str, str]) -> Section:
    weak = models.filter(pl.col("white_box_success") < WEAK_ATTACK)["model"].to_list()
    table = block(
        _TEMPLATE,
        "models",
        models=models.to_dicts(),
        links=links,
        weak=weak,
        weak_attack=WEAK_ATTACK,
        noise="noise_rate" in models.columns,
    )
    return Section("Models", blocks=[table])


def _family_table(relations: Relations) -> dict[str, Any]:
    """The family means as a square table in the order of the heatmap, each cell in its colour.

    `members` is family -> number of models; `rows` holds a cell, or None, for each pair of them.
    """
    scores, families = relations.scores, list(relations.families)
    order = dict.fromkeys(families[i] for i in hierarchy(scores).order)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    limits = colour_range(scores, relations.least)
    for row in relations.family_means.iter_rows(named=True):
        a, b, mean = row["family_a"], row["family_b"], row["mean"]
        if mean is None or math.isnan(mean):
            continue
        rgba, (ink,) = cell_colours(np.array([mean]), limits)
        note = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
        if row.get("low") is not None and row.get("high") is not None:
            note += f", 95% interval {number(row['low'])} to {number(row['high'])}"
        cell = {"mean": mean, "ink": ink, "fill": to_hex(rgba[0]), "note": note}
        cells[a, b] = cells[b, a] = cell
    members = {family: families.count(family) for family in order}
    return {"members": members, "rows": [[cells.get((a, b)) for b in order] for a in order]}
