"""The sections of a page that show a similarity matrix: heatmap, pairs, families and models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from netkin.analysis.hierarchy import hierarchy
from netkin.analysis.summary import WEAK_ATTACK
from netkin.report.figures import cell_colours, colour_range
from netkin.report.heatmap import interactive_heatmap, minimal_width
from netkin.report.study import Section, block
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
            (95 % interval), and above_noise and others of `netkin.analysis.chance` where that
            control was run; N (N - 1) / 2 rows, in any order.
        models: one row a model: model, family, params, input_size, clean_accuracy and
            white_box_success (in [0, 1]), white_box_score, mean_similarity, nearest; and, where it
            is known, suspect: why the model's clean predictions look wrong, or null, and
            noise_rate: how often noise of the attack's eps fools the model.
        family_means: family_a, family_b, pairs, mean; family_a == family_b is within a family, and
            a family of one has no such row. With columns low and high, the interval is shown too.
    """

    scores: NDArray[np.float64]
    names: Sequence[str]
    families: Sequence[str]
    pairs: pl.DataFrame
    models: pl.DataFrame
    family_means: pl.DataFrame

    @property
    def least(self) -> float:
        """The least width of the colour scale: six times half an interval, in nats."""
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


def matrix_sections(relations: Relations, prints: Sequence[str] = ()) -> list[Section]:
    """The sections of a page; `prints` are files next to it with the heatmap as a figure."""
    return [
        _heatmap_section(relations, prints),
        reading_section(),
        _pairs_section(relations.pairs),
        Section("Families", blocks=[block(_TEMPLATE, "families", **_family_table(relations))]),
        _models_section(relations.models),
    ]


def reading_section() -> Section:
    """What a score means, with the scores of some fooling rates."""
    anchors = [(p, math.log(100 * p)) for p in ANCHORS]
    return Section("How to read the score", blocks=[block(_TEMPLATE, "reading", anchors=anchors)])


def _heatmap_section(relations: Relations, prints: Sequence[str]) -> Section:
    width = minimal_width(relations.names)
    marked = relations.marked
    div = interactive_heatmap(
        relations.scores,
        relations.names,
        relations.pairs,
        relations.models,
        relations.least,
        marked,
    )
    return Section(
        "Similarity of every pair",
        blocks=[
            block(
                _TEMPLATE,
                "heatmap",
                plotly_js=Markup(get_plotlyjs()),
                div=div,
                width=940 if width > 500 else 620,
                min_width=width,
                prints=prints,
                marked=marked is not None,
            )
        ],
    )


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


def _models_section(models: pl.DataFrame) -> Section:
    weak = models.filter(pl.col("white_box_success") < WEAK_ATTACK)["model"].to_list()
    table = block(
        _TEMPLATE,
        "models",
        models=models.to_dicts(),
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
    for row in relations.family_means.iter_rows(named=True):
        a, b, mean = row["family_a"], row["family_b"], row["mean"]
        if mean is None or math.isnan(mean):
            continue
        rgba, (ink,) = cell_colours(np.array([mean]), colour_range(scores, relations.least))
        note = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
        if row.get("low") is not None and row.get("high") is not None:
            note += f", 95% interval {number(row['low'])} to {number(row['high'])}"
        cell = {"mean": mean, "ink": ink, "fill": to_hex(rgba[0]), "note": note}
        cells[a, b] = cells[b, a] = cell
    members = {family: families.count(family) for family in order}
    return {"members": members, "rows": [[cells.get((a, b)) for b in order] for a in order]}
