"""The answer to "how related are these models?": tables, figures, sentences and sections of a page.

A pure function of what the passes stored. `evaluate.py` and `netkin.compare` both write it.
"""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from markupsafe import escape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtri

from netkin import similarity
from netkin.analysis import confounders
from netkin.analysis.clusters import hierarchy
from netkin.analysis.groups import Draws, family_means, within_and_between
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.analysis.verdict import verdict
from netkin.components import base_architecture
from netkin.errors import UserError, and_more
from netkin.evaluation import Evaluation
from netkin.examples import (
    Example,
    examples,
    examples_figure,
    examples_note,
    examples_table,
)
from netkin.model import Model
from netkin.report.heatmap import LABEL, LARGE, heatmap_figure
from netkin.report.sentences import text
from netkin.report.study import Lookup, Outputs, Section
from netkin.report.text import number, percent, settings_text
from netkin.results import Results
from netkin.similarity import ALPHA, WEAK_ATTACK, Z_95, Outcomes, interval
from netkin.zoo.build import knows_more
from netkin.zoo.execution import DEFAULT_PRECISION
from netkin.zoo.sources import model_page

FEWEST = 4
"""Models below which effects of single models are not separated from the rest."""
NOT_ABOVE = "○: not above noise"
EXTREMES = 5
"""Pairs in each of the tables of the most and the least similar."""
ANCHORS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.00)
"""Fooling rates p whose scores explain the scale."""
WEAK_NAMED = 30
"""Models with a weak attack up to which all are named."""
FAMILIES = 15
"""Families up to which each has a sentence."""


@dataclass(frozen=True)
class Controls:
    """What the scores of N models owe to chance and to single models.

    Attributes:
        names, families: of the models.
        scores: smoothed, [N, N].
        pairs: a row a pair: a, b, asymmetry; and the columns of `netkin.analysis.confounders`,
            where the noise control was run.
        models: a row a model: model, noise_rate, source_strength, target_brittleness, main_effect;
            null where unknown.
        directions, main: the fits; None for fewer than 4 models.
        corrected: chance-corrected rates [N, N]; None without the noise control.
        at_chance: directions that fool no more often than noise.
    """

    names: Sequence[str]
    families: Sequence[str]
    scores: NDArray[np.float64]
    pairs: pl.DataFrame
    models: pl.DataFrame
    directions: confounders.Directions | None
    main: confounders.MainEffects | None
    corrected: NDArray[np.float64] | None
    at_chance: int

    @cached_property
    def noise_sentence(self) -> str:
        """How often noise alone fools, and which pairs are not above it."""
        assert self.corrected is not None
        rates = self.models.drop_nulls("noise_rate").sort("noise_rate", descending=True)
        worst = rates.row(0, named=True)
        total, n = self.pairs.height, len(self.names)
        below = self.pairs.filter(~pl.col("above_noise")).select("a", "b").rows()
        sentence = text(
            "confounders.noise",
            mean=np.nanmean(rates["noise_rate"].to_numpy()),
            worst=worst["noise_rate"],
            model=worst["model"],
        )
        if below:
            sentence += text(
                "confounders.not_above",
                below=len(below),
                n=total,
                where="○ in the heatmap" if n <= LARGE else "above_noise in pairs.csv",
                names=and_more([f"{a} and {b}" for a, b in below], 3),
            )
        else:
            sentence += text(f"confounders.{'one' if total == 1 else 'all'}_above", n=total)
        sentence += text("confounders.directions", below=self.at_chance, n=n * (n - 1))
        return (sentence + self._changed("Corrected for chance", self.corrected, "{:.0%}")).rstrip()

    @cached_property
    def single_sentence(self) -> str:
        """How much single models explain."""
        assert self.directions is not None and self.main is not None
        sentence = text(
            "confounders.single",
            median=np.nanmedian(self.pairs["asymmetry"].cast(float).to_numpy()),
            by_target=self.directions.by_target,
            by_source=self.directions.by_source,
            main=self.main.explained,
        )
        return (sentence + self._changed("Without them", self.main.rest, "{:.2f}")).rstrip()

    def _changed(self, what: str, other: NDArray[np.float64], unit: str) -> str:
        """What another matrix says about clusters, nearest relatives and families."""
        parts = []
        if len(self.names) >= FEWEST:
            c = confounders.change(self.scores, other)
            if c.rand is not None:
                agree = f"agree with those of s to an adjusted Rand index of {c.rand:.2f}"
                parts.append(f"the {c.k} clusters {'are the same' if c.rand == 1 else agree}")
            parts.append(f"{c.nearest} of {c.models} models have another nearest relative")
        means = within_and_between(self.families, other)
        if means:
            within, between = map(unit.format, means)
            parts.append(f"the mean is {within} within families and {between} between them")
        if not parts:
            return ""
        *first, last = parts
        return f"{what}, {', '.join(first)}{' and ' if first else ''}{last}."


def controls(outcomes: Outcomes, families: Sequence[str], alpha: float = ALPHA) -> Controls:
    """The controls of measured outcomes of N models.

    `alpha` is how often intervals of pairs may miss.
    """
    names, n = list(outcomes.members), len(outcomes.members)
    scores = similarity.smoothed_matrix(outcomes)
    pairs = similarity.pairs(outcomes)
    asymmetry = confounders.asymmetry(pairs["a_fools_b"].to_numpy(), pairs["b_fools_a"].to_numpy())
    table = pairs.select("a", "b", pl.Series("asymmetry", asymmetry).fill_nan(None))
    models: dict[str, object] = {"model": names}
    corrected, at_chance = None, 0
    z = Z_95 if alpha == ALPHA else float(-ndtri(alpha / 2))
    if outcomes.noise is not None:
        table = table.join(
            confounders.pair_table(outcomes, z), on=["a", "b"], maintain_order="left"
        )
        corrected = confounders.corrected_matrix(outcomes)
        at_chance = confounders.directions_at_chance(outcomes)
        models["noise_rate"] = confounders.noise_rates(outcomes)
    directions = main = None
    if n >= FEWEST:
        directions = confounders.directions(similarity.one_sided(outcomes))
        main = confounders.main_effects(scores)
        models["source_strength"] = directions.strength
        models["target_brittleness"] = directions.brittleness
        models["main_effect"] = main.effects
    rows = pl.DataFrame(models).fill_nan(None)
    return Controls(names, families, scores, table, rows, directions, main, corrected, at_chance)


@dataclass(frozen=True)
class Comparison:
    """How related N models are, in numbers and words. All text is plain text.

    Attributes:
        title: the question in one line.
        question: the question and how it was measured.
        answer: the findings in words, a paragraph each.
        scores: [N, N], symmetric, in nats; NaN where a pair has none, as one of a member that
            failed.
        names, families: of the models.
        pairs: one row a pair: a, b, n, a_fools_b, b_fools_a (rates in [0, 1]), score, low, high
            (95 % interval), and above_noise and others of `netkin.analysis.confounders` where that
            control was run; N (N - 1) / 2 rows.
        models: one row a model: model, family, params, input_size, clean_accuracy and
            white_box_success (in [0, 1]), white_box_score, mean_similarity, nearest; and, where it
            is known, suspect: why the model's clean predictions look wrong, or null, and
            noise_rate: how often noise of the attack's eps fools the model.
        family_means: family_a, family_b, pairs, mean; family_a == family_b is within a family, and
            a family of one has no such row. Low and high are of the mean's interval over images.
        controls: what the scores owe to chance and to single models.
        bases: the base architecture of each model; the families, unless given.
        links: a page about a model, by its name.
        resize: of `netkin.results.Results.resize_errors`; empty where all models see the same.
        failures: a row a member that failed: model, stage, reason.
        examples: images under attack.
        eps: the attack's bound in pixels of [0, 1]; None where it has none.
    """

    title: str
    question: str
    answer: list[str]
    scores: NDArray[np.float64]
    names: Sequence[str]
    families: Sequence[str]
    pairs: pl.DataFrame
    models: pl.DataFrame
    family_means: pl.DataFrame
    controls: Controls
    bases: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    resize: pl.DataFrame = field(default_factory=pl.DataFrame)
    failures: pl.DataFrame = field(default_factory=pl.DataFrame)
    examples: Sequence[Example] = ()
    eps: float | None = None

    @property
    def groups(self) -> Sequence[str]:
        """What the models' colours stand for: their bases, or families where these are unknown."""
        return self.bases or self.families

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """The tables by the names of their files, without those of the confounders."""
        tables = {
            "similarity": Matrix(tuple(self.names), self.scores).table().fill_nan(None),
            "pairs": self.pairs,
            "models": self.models,
            "families": self.family_means,
        }
        more = {"resize_errors": self.resize, "failures": self.failures}
        return tables | {name: table for name, table in more.items() if table.height}

    def figure(self) -> Figure:
        """The clustered heatmap."""
        marked = self._marked() if len(self.names) <= LARGE else None
        label = LABEL if marked is None else f"{LABEL};  {NOT_ABOVE}"
        return heatmap_figure(self.scores, self.names, self.groups, label, self._least(), marked)

    def write(self, outputs: Outputs) -> list[Section]:
        """Write the tables and figures; returns the sections of a page in the same folder."""
        tables = self.tables
        for name, table in tables.items():
            outputs.table(name, table)
        circles = text("pairwise.circles") if self._marked() is not None else ""
        similarity = outputs.figure(
            "similarity",
            self.figure(),
            tables["similarity"],
            text("pairwise.caption") + circles,
            self.lookup() if len(self.names) <= LARGE else None,
        )
        anchors = pl.DataFrame({"fooling_rate": ANCHORS, "s": [math.log(100 * p) for p in ANCHORS]})
        sections = [
            Section("Similarity of every pair", figures=[similarity]),
            Section("How to read the score", [text("pairwise.scale")], {"": anchors}),
            self._pairs_section(),
        ]
        if self.family_means.height and len({*self.families}) > 1:
            sections.append(self._families_section(outputs))
        sections.append(self._models_section())
        return [*sections, *self._controls_sections(outputs), *self._examples_section(outputs)]

    def _least(self) -> float:
        """The least width of the colour scale: six times half an interval, in nats."""
        known = self.pairs.drop_nulls("score")
        width = (known["high"] - known["low"]).median()
        return 3 * float(width) if isinstance(width, float) else 0.0

    def _marked(self) -> NDArray[np.bool_] | None:
        """Pairs that do not transfer more than noise fools, [N, N]; None where that is unknown."""
        if "above_noise" not in self.pairs.columns:
            return None
        index = {name: i for i, name in enumerate(self.names)}
        marked = np.zeros((len(index), len(index)), dtype=bool)
        for a, b in self.pairs.filter(~pl.col("above_noise")).select("a", "b").iter_rows():
            marked[index[a], index[b]] = marked[index[b], index[a]] = True
        return marked if marked.any() else None

    def lookup(self) -> Lookup:
        """What a page shows of each pair."""
        diagonal = [
            ""
            if row["white_box_score"] is None
            else f"white-box success {percent(row['white_box_success'])}, "
            f"s = {number(row['white_box_score'])}"
            for row in self.models.iter_rows(named=True)
        ]
        groups = {"base architecture": self.bases} if self.bases else {}
        return Lookup(
            self.names,
            hierarchy(self.scores).order.tolist(),
            self.pairs,
            diagonal,
            groups | {"family": self.families},
            self.models["clean_accuracy"].to_list(),
            self.links,
        )

    def _pairs_section(self) -> Section:
        scored = self.pairs.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan())
        if scored.is_empty():
            return Section("Pairs", [text("pairwise.no_pairs")])
        ranked = scored.sort(["score", "a", "b"], descending=[True, False, False])
        ends = [
            f"{number(low)} to {number(high)}" for low, high in ranked.select("low", "high").rows()
        ]
        noise = "above_noise" in ranked.columns
        ranked = ranked.select(
            "a", "b", "score", pl.Series("95% interval", ends), "n", "a_fools_b", "b_fools_a",
            *(["noise_fools_a", "noise_fools_b", "above_noise"] if noise else []),
        )  # fmt: skip
        note = [text(f"pairwise.pairs_note{'_noise' * noise}")]
        if ranked.height == 1:
            return Section("The only pair", note, {"": ranked}, links=self.links)
        listed = min(EXTREMES, ranked.height // 2)  # no pair is in both tables
        tables = {
            "Most similar": ranked.head(listed),
            "Least similar": ranked.tail(listed).reverse(),
        }
        return Section("Most and least similar pairs", note, tables, links=self.links)

    def _families_section(self, outputs: Outputs) -> Section:
        """Mean similarities of families, in the order of the heatmap."""
        listed = list(self.families)
        order = list(dict.fromkeys(listed[i] for i in hierarchy(self.scores).order))
        names = [f"{family} ({listed.count(family)})" for family in order]
        means = np.full((len(order), len(order)), np.nan)
        for a, b, mean in self.family_means.select("family_a", "family_b", "mean").iter_rows():
            i, j = order.index(a), order.index(b)
            means[i, j] = means[j, i] = np.nan if mean is None else mean
        figure = heatmap_figure(
            means, names, [""] * len(order), LABEL, self._least(), order=np.arange(len(order))
        )
        caption = text("pairwise.families_caption")
        picture = outputs.figure("families", figure, self.family_means, caption)
        return Section("Families", figures=[picture])

    def _models_section(self) -> Section:
        columns = [
            *("model", "family", "params", "input_size", "clean_accuracy", "white_box_success"),
            *("noise_rate", "mean_similarity", "nearest", "suspect"),
        ]
        known = [c for c in columns if c in self.models and not self.models[c].is_null().all()]
        weak = self.models.filter(pl.col("white_box_success") < WEAK_ATTACK)["model"].to_list()
        notes = [text("pairwise.weak_rows", limit=WEAK_ATTACK, names=", ".join(weak))]
        table = self.models.select(known).rename({"mean_similarity": "mean_s"}, strict=False)
        return Section("Models", notes if weak else [], {"": table}, links=self.links)

    def _controls_sections(self, outputs: Outputs) -> list[Section]:
        """Heatmaps and sentences of what the scores owe to chance and to single models."""
        c = self.controls
        kinds = dict(zip(self.names, self.groups, strict=True))
        groups, sections = [kinds[name] for name in c.names], []

        def section(
            title: str,
            sentence: str,
            name: str,
            values: NDArray[np.float64],
            label: str,
            tables: Mapping[str, pl.DataFrame],
        ) -> None:
            drawn = heatmap_figure(values, c.names, groups, label, signed=True)
            table = Matrix(tuple(c.names), values).table()
            picture = outputs.figure(name, drawn, table, label)
            sections.append(Section(title, [sentence], tables, [picture], links=self.links))

        if c.corrected is not None:
            label = "chance-corrected rate (p - q) / (1 - q)"
            section("Above chance", c.noise_sentence, "corrected", c.corrected, label, {})
        if c.main is not None:
            columns = ["model", "source_strength", "target_brittleness", "main_effect"]
            table = c.models.select(columns).sort("target_brittleness", descending=True)
            section(
                "Strong sources, brittle targets",
                c.single_sentence,
                "rest",
                c.main.rest,
                "score without main effects (nats)",
                {"Main effects (nats)": table},
            )
        return sections

    def _examples_section(self, outputs: Outputs) -> list[Section]:
        if not self.examples:
            return []
        figure = examples_figure(self.examples, self.eps)
        table, caption = examples_table(self.examples), text("examples.caption")
        picture = outputs.figure("examples", figure, table, caption)
        return [Section("Images under attack", [examples_note(self.eps)], figures=[picture])]


def summarise(
    results: Results,
    members: Sequence[Model],
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    draws: Draws,
    eps_s: float,
    requested: Sequence[Model] = (),
    failures: pl.DataFrame | None = None,
    suspects: Mapping[str, str] | None = None,
    alpha: float = ALPHA,
) -> Comparison:
    """The answer for members whose passes are done.

    Args:
        results: what the store holds of the images under the attack.
        members: the N models of the outcomes, in the same order.
        outcomes: of the members.
        scores: `similarity.matrix` of the outcomes, [N, N].
        draws: of the outcomes, for means over pairs, which are of smoothed scores.
        eps_s: the floor of 100 p.
        requested: the members with those that failed; `members`, unless given.
        failures: of the others, a row each: model, stage, reason.
        suspects: why a member's clean predictions look wrong, by its name.
        alpha: how often intervals of pairs may miss; less in a run that stops early.
    """
    requested, task = requested or members, results.evaluation.task
    if failures is None:
        failures = pl.DataFrame(schema=["model", "stage", "reason"])
    models = similarity.models(
        outcomes,
        scores,
        [member.family for member in members],
        [results.params(member) for member in members],
        [member.view.input_size for member in members],
    )
    published = {m.name: m.member.source for m in requested if m.member.uses_published(task)}
    resize = results.resize_errors(members)
    partly = [member.name for member in members if knows_more(member.member, task)]
    images, dataset = len(outcomes.image_ids), task.dataset
    caveats = [*_resized(resize)]
    if partly:
        caveats.append(
            text("pairwise.part_of_imagenet", names=and_more(partly), classes=task.num_classes)
        )
    caveats += [text("pairwise.failed", **row) for row in failures.iter_rows(named=True)]
    return relate(
        text("pairwise.title", models=len(requested), dataset=dataset),
        text(
            "pairwise.question", attack=attacked(results.evaluation), images=images, dataset=dataset
        ),
        outcomes,
        scores,
        draws,
        models,
        {member.name: member.family for member in requested},
        eps_s=eps_s,
        alpha=alpha,
        suspects=suspects or {},
        caveats=caveats,
        bases=[base_architecture(m.member, task) if m.member.timm else m.family for m in requested],
        links={name: page for name, source in published.items() if (page := model_page(source))},
        resize=resize,
        failures=failures,
        examples=examples(results, members),
        eps=results.evaluation.attack.eps,
    )


def relate(
    title: str,
    question: str,
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    draws: Draws,
    models: pl.DataFrame,
    families: Mapping[str, str],
    *,
    eps_s: float = similarity.EPS_S,
    alpha: float = ALPHA,
    suspects: Mapping[str, str] | None = None,
    caveats: Sequence[str] = (),
    **others: Any,
) -> Comparison:
    """The answer from outcomes alone, with gaps for requested models that failed.

    Args:
        title, question: of the page.
        outcomes, scores, draws, eps_s, alpha, suspects: see `summarise`.
        models: of `netkin.similarity.models`.
        families: of all requested models, by name.
        caveats: the last paragraphs of the answer.
        others: further attributes of the `Comparison`.
    """
    names = list(families)
    control = controls(outcomes, [families[name] for name in outcomes.members], alpha)
    pairs = similarity.pairs(outcomes, eps_s, alpha)
    pairs = pairs.join(control.pairs, on=["a", "b"], how="left", maintain_order="left")
    listed = pl.DataFrame(list(itertools.combinations(names, 2)), schema=["a", "b"], orient="row")
    pairs = listed.join(pairs, on=["a", "b"], how="left", maintain_order="left")
    pairs = pairs.with_columns(pl.col("n").fill_null(0))
    index = [names.index(name) for name in outcomes.members]
    matrix = np.full((len(names), len(names)), np.nan)
    matrix[np.ix_(index, index)] = scores
    means = family_means(control.scores, control.families, draws)
    reasons = pl.Series("suspect", map((suspects or {}).get, names), pl.String)
    table = (
        pl.DataFrame({"model": names, "family": list(families.values())})
        .join(models.drop("family"), on="model", how="left", maintain_order="left")
        .join(control.models, on="model", how="left", maintain_order="left")
        .with_columns(reasons)
    )
    done = table.filter(pl.col("model").is_in(list(outcomes.members)))
    answer = [
        *_answer(pairs.drop_nulls("score"), done, means, control, draws),
        *([control.noise_sentence] if control.corrected is not None else []),
        *([control.single_sentence] if control.main is not None else []),
        *caveats,
    ]
    return Comparison(
        title, question, answer, matrix, names, list(families.values()),
        pairs, table, means, control, **others,
    )  # fmt: skip


def attacked(evaluation: Evaluation) -> str:
    """An attack with its settings in words: "pgd (eps = 48/255, steps = 50)"."""
    listed = [settings_text(evaluation.attack.identity)]
    precision = evaluation.craft_precision
    if precision != DEFAULT_PRECISION:
        listed.append(f"computed in {precision}")
    if evaluation.target_precision != DEFAULT_PRECISION:
        listed.append(f"transfer in {evaluation.target_precision}")
    settings = ", ".join(filter(None, listed))
    name = evaluation.attack.name
    return f"{name} ({settings})" if settings else name


def _answer(
    pairs: pl.DataFrame,
    models: pl.DataFrame,
    means: pl.DataFrame,
    control: Controls,
    draws: Draws,
) -> list[str]:
    """The findings, a paragraph each: families, the extreme pairs, and weak attacks."""
    within = _within_or_between(control.families, control.scores, draws)
    paragraphs = [*within, _extremes(pairs, control.scores, first=not within)]
    paragraphs += _closest_families(means)
    weak = models.filter(pl.col("white_box_success") < WEAK_ATTACK)
    if weak.height:
        named = [f"{r['model']} ({r['white_box_success']:.1%})" for r in weak.to_dicts()]
        names = ", ".join(named) if len(named) <= WEAK_NAMED else and_more(named)
        paragraphs.append(text("pairwise.weak", names=names, limit=WEAK_ATTACK))
        if weak["suspect"].null_count():  # no advice on models whose predictions look wrong
            paragraphs[-1] += text("pairwise.stronger")
    return paragraphs


def _within_or_between(
    families: Sequence[str],
    scores: NDArray[np.float64],
    draws: Draws,
) -> list[str]:
    """The mean within families less that between families, with an interval over images."""
    means = within_and_between(families, scores)
    if means is None:
        return []
    within, between = means
    of_draws = draws.within_and_between(families)
    low, high = interval(of_draws[:, 0] - of_draws[:, 1])
    return [
        text(
            "pairwise.within",
            verdict=verdict(within - between, (low, high)),
            factor=np.exp(within - between),
            within=within,
            between=between,
            difference=within - between,
            low=low,
            high=high,
        )
    ]


def _extremes(pairs: pl.DataFrame, scores: NDArray[np.float64], first: bool) -> str:
    """The most and the least similar pair, as far as their intervals tell them apart.

    With `first` it begins with a verdict: whether some models are more related than others, or,
    of two models, whether they are.
    """
    ranked = pairs.sort("score", descending=True)
    best, worst = ranked.row(0, named=True), ranked.row(-1, named=True)
    if ranked.height == 1:
        above = best.get("above_noise")
        found = "Yes" if above else "Not certain" if above is None else "No more than by noise"
        rate = min(np.exp(best["score"]) / 100, 1.0)
        return text("pairwise.two", verdict=found, rate=rate, **best)

    def tied(n: int) -> str:
        return text(f"pairwise.tied{'_one' * (n == 1)}", n=n) if n else ""

    ends = best["low"] - worst["high"], best["high"] - worst["low"]
    return text(
        "pairwise.extremes",
        verdict(best["score"] - worst["score"], ends) + "+first" * first,
        best=text("pairwise.pair", **best),
        best_tied=tied(ranked.filter(pl.col("high") >= best["low"]).height - 1),
        worst=text("pairwise.pair", **worst),
        worst_tied=tied(ranked.filter(pl.col("low") <= worst["high"]).height - 1),
        n=ranked.height,
        mean=off_diagonal(scores).mean(),
    )


def _closest_families(means: pl.DataFrame) -> list[str]:
    """For each family with a mean within: how that compares with its closest other family. Of more
    than FAMILIES, in how many it is higher."""
    between = means.filter(pl.col("family_a") != pl.col("family_b"))
    sentences, less = [], []
    for row in means.filter(pl.col("family_a") == pl.col("family_b")).to_dicts():
        family = row["family_a"]
        others = between.filter((pl.col("family_a") == family) | (pl.col("family_b") == family))
        if others.is_empty():
            continue
        closest = others.sort("mean", descending=True).row(0, named=True)
        (other,) = {closest["family_a"], closest["family_b"]} - {family}
        more = row["mean"] > closest["mean"]
        less += [] if more else [family]
        sentences.append(
            text(
                "pairwise.family",
                family=family,
                more="more" if more else "less",
                mean=row["mean"],
                other=other,
                closest=closest["mean"],
            )
        )
    if len(sentences) > FAMILIES:
        n = len(sentences)
        sentence = text("pairwise.many_families", more=n - len(less), n=n)
        return [f"{sentence}; not in {and_more(less)}." if less else f"{sentence}."]
    return [" ".join(sentences)] if sentences else []


def _resized(errors: pl.DataFrame) -> list[str]:
    """The errors that crop and resize alone cause, from `netkin.results.Results.resize_errors`."""
    if errors.is_empty():
        return []
    worst = errors.row(0, named=True)
    return [
        text(
            "pairwise.resize",
            geometries=errors["target_view"].n_unique(),
            mean=errors["resize_error"].mean(),
            worst=worst["resize_error"],
            source=worst["source_view"],
            target=worst["target_view"],
        )
    ]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What `netkin.compare` returns. In a notebook it is shown as its heatmap.

    Attributes:
        outcomes: what the scores were computed from; see `netkin.similarity`.
        comparison: tables, sentences and sections of the page.
        settings: how it was measured, as JSON.
    """

    outcomes: Outcomes
    comparison: Comparison
    settings: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """N names, the order of `scores`."""
        return tuple(self.comparison.names)

    @property
    def scores(self) -> NDArray[np.float64]:
        """[N, N], symmetric, s = ln(100 p) in nats; the diagonal is of white-box success."""
        return self.comparison.scores

    @property
    def pairs(self) -> pl.DataFrame:
        """A row a pair: a, b, n, a_fools_b, b_fools_a, score, low, high (95 % interval)."""
        return self.comparison.pairs

    @property
    def models(self) -> pl.DataFrame:
        """A row a model: clean_accuracy, white_box_success, mean_similarity, nearest and others."""
        return self.comparison.models

    @property
    def families(self) -> pl.DataFrame:
        """Mean scores within and between families, with their 95 % intervals."""
        return self.comparison.family_means

    @property
    def answer(self) -> tuple[str, ...]:
        """The findings, and what to know of them, in words."""
        return tuple(self.comparison.answer)

    def heatmap(self) -> Figure:
        """The clustered matrix with its dendrogram."""
        figure = self.comparison.figure()
        # Notebooks draw figures of pyplot only, which keeps them in a global list.
        setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write what the command writes, and return the path of report.html.

        That is similarity, pairs, models and families as CSV and, up to 500 rows, for LaTeX, the
        figures as PNG and PDF, and report.html. Raises UserError where the folder cannot be
        written.
        """
        try:
            outputs = Outputs(Path(folder).expanduser())
        except OSError as error:
            raise UserError(f"folder={folder} cannot be made ({error.strerror})") from None
        c = self.comparison
        settings = yaml.safe_dump(dict(self.settings), sort_keys=False)
        return outputs.report(c.title, c.question, c.answer, c.write(outputs), settings)

    def __repr__(self) -> str:
        return "\n".join([f"netkin.Result of {len(self.names)} models", *self.answer])

    def _repr_png_(self) -> bytes:
        return _png(self.comparison.figure())

    def _repr_html_(self) -> str:
        png = base64.b64encode(self._repr_png_()).decode()
        paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.answer)
        return f'<img src="data:image/png;base64,{png}" alt="Similarity of every pair">{paragraphs}'


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    return out.getvalue()
