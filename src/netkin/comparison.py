"""The answer to "how related are these models?": tables, figures, sentences and sections of a page.

A pure function of what the passes stored. `evaluate.py` and `netkin.compare` both write it.
"""

import base64
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import yaml
from markupsafe import escape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from netkin import similarity
from netkin.analysis import confounders, noise, statistics
from netkin.analysis.clusters import choose_k, has_clusters, hierarchy, spectral
from netkin.analysis.groups import Draws, compared, family_means, within_and_between
from netkin.analysis.matrix import Matrix, off_diagonal
from netkin.analysis.measures import mistake_table
from netkin.analysis.verdict import verdict
from netkin.data.classes import class_words
from netkin.errors import UserError, and_more
from netkin.evaluation import Evaluation
from netkin.model import Model
from netkin.report.heatmap import LABEL, LARGE, heatmap_figure
from netkin.report.plots import images_figure
from netkin.report.sentences import text
from netkin.report.study import Lookup, Outputs, Section
from netkin.report.style import png
from netkin.report.text import fraction_text, number, percent, settings_text
from netkin.results import Results
from netkin.similarity import ALPHA, WEAK_ATTACK, Outcomes
from netkin.store.files import digest
from netkin.zoo.build import knows_more, model_pages
from netkin.zoo.execution import DEFAULT_PRECISION

FEWEST = 4  # models below which effects of single models are not separated from the rest
NOT_ABOVE = "○: not certainly above noise"
EXTREMES = 5  # pairs in each of the tables of the most and the least similar
ANCHORS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.00)  # fooling rates p whose scores explain the scale
WEAK_NAMED = 30  # models with a weak attack up to which all are named
FAMILIES = 15  # families up to which each has a sentence


class Example(NamedTuple):
    """One image under attack: the model that it was crafted on, the image's id, the true class and
    the source's prediction in words, and the images, [H, W, 3] uint8 within eps of each other."""

    source: str
    image_id: str
    label: str
    prediction: str
    clean: NDArray[np.uint8]
    adversarial: NDArray[np.uint8]


class Control(NamedTuple):
    """What the scores owe to chance or to single models: a section of the page, with values [n, n]
    of the models that did not fail, and a row a model of effects, if there are any."""

    title: str
    sentence: str
    name: str  # of the figure's file
    values: NDArray[np.float64]
    label: str  # of the values in the figure
    effects: pl.DataFrame | None = None
    mean: float = 0.0  # which the figure is less of, so that 0 is in the middle


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """How related N models are, in numbers and words. All text is plain text. In a notebook it is
    shown as its heatmap.

    Attributes:
        title, question: in one line; and with how it was measured.
        answer: the findings, and what to know of them, in words, a paragraph each.
        outcomes: what the scores were computed from; see `netkin.similarity`.
        names: N names, the order of `scores`.
        scores: [N, N], symmetric, s = ln(100 p) in nats; the diagonal is of white-box success. NaN
            where a pair has none, as one of a member that failed.
        pairs: one row a pair: a, b, n, a_fools_b, b_fools_a (rates in [0, 1]), score, low, high
            (95 % interval), asymmetry (the share of the larger direction), same_mistake and others
            of `netkin.analysis.measures.mistake_table`, and above_noise and others of
            `netkin.analysis.confounders` where that control was run, and reason, why a pair has no
            score, where models failed; N (N - 1) / 2 rows.
        models: one row a model: model, family, params, input_size, clean_accuracy and
            white_box_success (in [0, 1]), white_box_score, mean_similarity, nearest; and, where it
            is known, suspect: why the model's clean predictions look wrong, or null, noise_rate:
            how often noise of the attack's eps fools the model, and its effects on scores.
        families: mean scores: family_a, family_b, pairs, mean, and its 95 % interval over images,
            low and high; family_a == family_b is within a family, and a family of one has no such
            row.
        agreement: of scores of random halves of the images, and of the classes.
        controls: what the scores owe to chance and to single models.
        bases: the base architecture of each model; the families, unless given.
        links: a page about a model, by its name.
        resize: of `netkin.results.Results.resize_errors`; empty where all models see the same.
        failures: a row a member that failed: model, stage, reason.
        examples: images under attack.
        eps: the attack's bound in pixels of [0, 1]; None where it has none.
        settings: how it was measured, as JSON.
    """

    title: str
    question: str
    answer: list[str]
    outcomes: Outcomes
    names: tuple[str, ...]
    scores: NDArray[np.float64]
    pairs: pl.DataFrame
    models: pl.DataFrame
    families: pl.DataFrame
    agreement: noise.Agreement
    controls: Sequence[Control] = ()
    bases: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    resize: pl.DataFrame = field(default_factory=pl.DataFrame)
    failures: pl.DataFrame = field(default_factory=pl.DataFrame)
    examples: Sequence[Example] = ()
    eps: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> Sequence[str]:
        """What the models' colours stand for: their bases, or families where these are unknown."""
        return self.bases or self.models["family"].to_list()

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """The tables by the names of their files, without those of the confounders."""
        tables = {
            "similarity": Matrix(self.names, self.scores).table().fill_nan(None),
            "pairs": self.pairs,
            "models": self.models,
            "families": self.families,
        }
        halves = {"halves_of": ["images", "classes"], "r": list(self.agreement)}
        ids = digest({"ids": list(self.outcomes.image_ids)})  # which images, for experiment=compare
        tables["agreement"] = pl.DataFrame(halves).with_columns(images=pl.lit(ids)).fill_nan(None)
        more = {"resize_errors": self.resize, "failures": self.failures}
        return tables | {name: table for name, table in more.items() if table.height}

    def heatmap(self) -> Figure:
        """The clustered matrix with its dendrogram."""
        marked = self._not_above_noise() if len(self.names) <= LARGE else None
        label = LABEL if marked is None else f"{LABEL};  {NOT_ABOVE}"
        figure = heatmap_figure(self.scores, self.names, self.groups, label, self._least(), marked)
        # Notebooks draw figures of pyplot only, which keeps them in a global list.
        setattr(figure, "_repr_png_", partial(png, figure))  # noqa: B010
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write what the command writes, and return the path of report.html.

        That is similarity, pairs, models and families as CSV and, up to 500 rows, for LaTeX, the
        figures as PNG and PDF, and report.html. Raises UserError where the folder cannot be
        written.
        """
        try:
            outputs = Outputs(Path(folder).expanduser(), links=self.links)
        except OSError as error:
            raise UserError(f"folder={folder} cannot be made ({error.strerror})") from None
        settings = yaml.safe_dump(dict(self.settings), sort_keys=False)
        return outputs.report(self.title, self.question, self.answer, self.write(outputs), settings)

    def __repr__(self) -> str:
        return "\n".join([f"netkin.Result of {len(self.names)} models", *self.answer])

    def _repr_png_(self) -> bytes:
        return png(self.heatmap())

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode()
        paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.answer)
        return (
            f'<img src="data:image/png;base64,{data}" alt="Similarity of every pair">{paragraphs}'
        )

    def write(self, outputs: Outputs) -> list[Section]:
        """Write the tables and figures; returns the sections of a page in the same folder."""
        tables = self.tables
        for name, table in tables.items():
            outputs.table(name, table)
        circles = text("pairwise.circles") if self._not_above_noise() is not None else ""
        caption = text("pairwise.caption") + circles
        lookup = self.lookup() if len(self.names) <= LARGE else None
        heatmap = self.heatmap()
        picture = outputs.figure("similarity", heatmap, tables["similarity"], caption, lookup)
        anchors = pl.DataFrame({"fooling_rate": ANCHORS, "s": [math.log(100 * p) for p in ANCHORS]})
        sections = [
            Section("Similarity of every pair", figures=[picture]),
            Section("How to read the score", [text("pairwise.scale")], {"": anchors}),
            self._pairs_section(),
        ]
        if self.families.height and self.models["family"].n_unique() > 1:
            sections.append(self._families_section(outputs))
        sections.append(self._models_section())
        kinds = dict(zip(self.names, self.groups, strict=True))
        done = self.outcomes.members
        for c in self.controls:
            colours = [kinds[name] for name in done]
            values = np.where(np.eye(len(done), dtype=bool) & (c.mean != 0), np.nan, c.values)
            drawn = heatmap_figure(values - c.mean, done, colours, c.label, signed=True)
            picture = outputs.figure(c.name, drawn, Matrix(done, c.values).table(), c.label)
            effects = {} if c.effects is None else {"Main effects (nats)": c.effects}
            sections.append(Section(c.title, [c.sentence], effects, [picture]))
        if self.examples:
            drawn, caption = examples_figure(self.examples, self.eps), text("examples.caption")
            schema = ["source", "image", "label", "prediction"]
            table = pl.DataFrame([e[:4] for e in self.examples], schema, orient="row")
            shown = [outputs.figure("examples", drawn, table, caption)]
            sections.append(Section("Images under attack", [examples_note(self.eps)], {}, shown))
        return sections

    def _least(self) -> float:
        """The least width of the colour scale: six times half an interval, in nats."""
        known = self.pairs.drop_nulls("score")
        width = (known["high"] - known["low"]).median()
        return 3 * float(width) if isinstance(width, float) else 0.0

    def _not_above_noise(self) -> NDArray[np.bool_] | None:
        """Pairs that do not certainly transfer more than noise fools, [N, N]; None where there are
        none, or it is unknown."""
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
            "" if s is None else f"white-box success {percent(success)}, s = {number(s)}"
            for success, s in self.models.select("white_box_success", "white_box_score").iter_rows()
        ]
        groups = {"base architecture": self.bases} if self.bases else {}
        return Lookup(
            self.names,
            hierarchy(self.scores).order.tolist(),
            self.pairs,
            diagonal,
            groups | {"family": self.models["family"].to_list()},
            self.models["clean_accuracy"].to_list(),
        )

    def _pairs_section(self) -> Section:
        scored = self.pairs.filter(pl.col("score").is_not_null() & pl.col("score").is_not_nan())
        if scored.is_empty():
            return Section("Pairs", [text("pairwise.no_pairs")])
        ranked = scored.sort(["score", "a", "b"], descending=[True, False, False])
        noise = "above_noise" in ranked.columns

        def shown(rows: pl.DataFrame) -> pl.DataFrame:
            ends = [
                f"{number(low)} to {number(high)}"
                for low, high in rows.select("low", "high").rows()
            ]
            return rows.select(
                "a", "b", "score", pl.Series("95% interval", ends), "n", "a_fools_b", "b_fools_a",
                *(["noise_fools_a", "noise_fools_b", "above_noise"] if noise else []),
            )  # fmt: skip

        note = [text(f"pairwise.pairs_note{'_noise' * noise}")]
        if ranked.height == 1:
            return Section("The only pair", note, {"": shown(ranked)})
        listed = min(EXTREMES, ranked.height // 2)  # no pair is in both tables
        tables = {
            "Most similar": shown(ranked.head(listed)),
            "Least similar": shown(ranked.tail(listed).reverse()),
        }
        return Section("Most and least similar pairs", note, tables)

    def _families_section(self, outputs: Outputs) -> Section:
        """Mean similarities of families, in the order of the heatmap."""
        listed = self.models["family"].to_list()
        order = list(dict.fromkeys(listed[i] for i in hierarchy(self.scores).order))
        names = [f"{family} ({listed.count(family)})" for family in order]
        means = np.full((len(order), len(order)), np.nan)
        for a, b, mean in self.families.select("family_a", "family_b", "mean").iter_rows():
            i, j = order.index(a), order.index(b)
            means[i, j] = means[j, i] = np.nan if mean is None else mean
        n, caption = len(order), text("pairwise.families_caption")
        drawn = heatmap_figure(means, names, [""] * n, LABEL, self._least(), order=np.arange(n))
        picture = outputs.figure("families", drawn, self.families, caption)
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
        return Section("Models", notes if weak else [], {"": table})


def summarise(
    results: Results,
    members: Sequence[Model],
    outcomes: Outcomes,
    draws: Draws,
    eps_s: float,
    requested: Sequence[Model] = (),
    failures: pl.DataFrame | None = None,
    suspects: Mapping[str, str] | None = None,
) -> Result:
    """The answer for members whose passes are done, in the order of the outcomes.

    eps_s is the floor of 100 p; `requested` are the members with those that failed, which have a
    row each of `failures`: model, stage, reason; `suspects` says by name why a member's clean
    predictions look wrong.
    """
    requested, evaluation = requested or members, results.evaluation
    task, images = evaluation.task, len(outcomes.image_ids)
    if failures is None:
        failures = pl.DataFrame(schema=["model", "stage", "reason"])
    resize, caveats = results.resize_errors(members), []
    if resize.height:
        views, mean = resize["target_view"].n_unique(), resize["resize_error"].mean()
        worst = resize.row(0, named=True)
        caveats.append(text("pairwise.resize", geometries=views, mean=mean, **worst))
    if partly := [member.name for member in members if knows_more(member.member, task)]:
        names, classes = and_more(partly), task.num_classes
        caveats.append(text("pairwise.part_of_imagenet", names=names, classes=classes))
    caveats += [text("pairwise.failed", **row) for row in failures.iter_rows(named=True)]
    how = {"attack": attacked(evaluation), "images": images, "dataset": task.dataset}
    return relate(
        text("pairwise.title", models=len(requested), dataset=task.dataset),
        text("pairwise.question", **how),
        outcomes,
        draws,
        {member.name: member.family for member in requested},
        [results.params(member) for member in members],
        [member.view.input_size for member in members],
        eps_s=eps_s,
        classes=evaluation.labels[:images].tolist(),
        suspects=suspects or {},
        caveats=caveats,
        mistakes=mistake_table(
            outcomes, results.mistakes(members, images), evaluation.labels[:images].numpy()
        ),
        bases=[results.base_architecture(member) for member in requested],
        links=model_pages((m.member for m in requested), task),
        resize=resize,
        failures=failures,
        examples=examples(results, members),
        eps=evaluation.attack.eps,
    )


def relate(
    title: str,
    question: str,
    outcomes: Outcomes,
    draws: Draws,
    families: Mapping[str, str],
    params: list[int],
    input_sizes: list[int],
    *,
    eps_s: float = similarity.EPS_S,
    classes: Sequence[int] = (),
    suspects: Mapping[str, str] | None = None,
    caveats: Sequence[str] = (),
    mistakes: pl.DataFrame | None = None,
    **others: Any,
) -> Result:
    """The answer from outcomes alone, with gaps for requested models that failed; see `summarise`.

    `families` are those of all requested models, params and input sizes of the outcomes' models,
    `classes` the label of each image, where it is known, `caveats` the last paragraphs of the
    answer, `mistakes` that of `mistake_table`, and `others` further attributes of the `Result`.
    """
    names, done = tuple(families), list(outcomes.members)
    groups = [families[name] for name in done]
    scores, smoothed = similarity.matrix(outcomes, eps_s), similarity.smoothed_matrix(outcomes)
    pairs = similarity.pairs(outcomes, eps_s)
    asymmetry = confounders.asymmetry(pairs["a_fools_b"].to_numpy(), pairs["b_fools_a"].to_numpy())
    pairs = pairs.with_columns(pl.Series("asymmetry", asymmetry).fill_nan(None))
    models = similarity.models(outcomes, scores, groups, params, input_sizes).drop("family")
    if mistakes is not None:
        pairs = pairs.join(mistakes, ["a", "b"], maintain_order="left")
    controls, labels = [], _clusters(smoothed)
    if outcomes.noise is not None:
        pairs = pairs.join(confounders.pair_table(outcomes), ["a", "b"], maintain_order="left")
        rates = pl.Series("noise_rate", confounders.noise_rates(outcomes)).fill_nan(None)
        models = models.with_columns(rates)
        controls.append(_chance(outcomes, smoothed, labels, groups, pairs, models))
    if len(done) >= FEWEST:
        control, effects = _single_models(outcomes, smoothed, labels, groups, pairs)
        controls.append(control)
        models = models.join(effects, "model", maintain_order="left")
    means, found = family_means(smoothed, groups, draws), noise.agreement(outcomes, classes)
    known = len(done) >= statistics.FEWEST and not math.isnan(found.classes)
    if len(done) < len(names):
        listed = itertools.combinations(names, 2)
        every = pl.DataFrame(list(listed), schema=["a", "b"], orient="row")
        pairs = every.join(pairs, on=["a", "b"], how="left", maintain_order="left")
        reasons = dict(others["failures"].select("model", "reason").iter_rows())
        why = (
            pl.col(c).replace_strict(reasons, default=None, return_dtype=pl.String) for c in "ab"
        )
        pairs = pairs.with_columns(pl.col("n").fill_null(0), reason=pl.coalesce(why))
    index = [names.index(name) for name in done]
    matrix = np.full((len(names), len(names)), np.nan)
    matrix[np.ix_(index, index)] = scores
    table = (
        pl.DataFrame({"model": names, "family": list(families.values())})
        .join(models, on="model", how="left", maintain_order="left")
        .with_columns(pl.Series("suspect", map((suspects or {}).get, names), pl.String))
    )
    answer = [
        _extremes(outcomes, pairs.drop_nulls("score"), smoothed, eps_s),
        *_within_or_between(groups, pairs.drop_nulls("score"), smoothed, draws),
        *_closest_families(means),
        *([text("pairwise.agreement", n=len({*classes}), **found._asdict())] if known else []),
        *_weak(table.filter(pl.col("model").is_in(done))),
        *[control.sentence for control in controls],
        *([] if mistakes is None else _mistakes(mistakes)),
        *caveats,
    ]
    return Result(
        title, question, answer, outcomes, names, matrix, pairs, table, means, found, controls,
        **others,
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


# What the scores owe to chance and to single models


def _clusters(scores: NDArray[np.float64]) -> NDArray[np.intp] | None:
    """The clusters [N]; None where models are few, or all scores the same."""
    if len(scores) < FEWEST or not has_clusters(scores):
        return None
    return spectral(scores, choose_k(None, scores)[0])


def _chance(
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    labels: NDArray[np.intp] | None,
    families: Sequence[str],
    pairs: pl.DataFrame,
    models: pl.DataFrame,
) -> Control:
    """How often noise alone fools, and which pairs are not certainly above it."""
    corrected, n = confounders.corrected_matrix(outcomes, pairs), len(scores)
    worst = models.drop_nulls("noise_rate").sort("noise_rate", descending=True)
    first = worst.row(0, named=True)
    rates = {"mean": worst["noise_rate"].mean(), "worst": first["noise_rate"]}
    sentence = text("confounders.noise", model=first["model"], **rates)
    if below := pairs.filter(~pl.col("above_noise")).select("a", "b").rows():
        where = "○ in the heatmap" if n <= LARGE else "above_noise in pairs.csv"
        listed = and_more([f"{a} and {b}" for a, b in below], 3)
        counts = {"below": len(below), "n": pairs.height}
        sentence += text("confounders.not_above", where=where, names=listed, **counts)
    else:
        which = "one" if pairs.height == 1 else "all"
        sentence += text(f"confounders.{which}_above", n=pairs.height)
    ways = (("a_fools_b", "noise_fools_b"), ("b_fools_a", "noise_fools_a"))
    at_chance = sum(int((pairs[way] <= pairs[noise]).sum()) for way, noise in ways)
    sentence += text("confounders.directions", below=at_chance, n=n * (n - 1))
    changed = _changed("Corrected for chance", scores, labels, corrected, families, "{:.0%}")
    label = "chance-corrected rate (p - q) / (1 - q)"
    return Control("Above chance", (sentence + changed).rstrip(), "corrected", corrected, label)


def _single_models(
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    labels: NDArray[np.intp] | None,
    families: Sequence[str],
    pairs: pl.DataFrame,
) -> tuple[Control, pl.DataFrame]:
    """How much single models explain, and each model's effects, in nats."""
    directions = confounders.directions(similarity.one_sided(outcomes))
    main = confounders.main_effects(scores)
    columns = {
        "source_strength": directions.strength,
        "target_brittleness": directions.brittleness,
        "main_effect": main.effects,
    }
    effects = pl.DataFrame({"model": outcomes.members, **columns}).fill_nan(None)
    shares = {"by_target": directions.by_target, "by_source": directions.by_source}
    median = np.nanmedian(pairs["asymmetry"].cast(float).to_numpy())
    sentence = text("confounders.single", median=median, main=main.explained, **shares)
    sentence += _changed("Without them", scores, labels, main.rest, families, "{:.2f}")
    ranked = effects.sort("target_brittleness", descending=True)
    mean = float(off_diagonal(main.rest).mean())
    title, label = "Strong sources, brittle targets", f"score without main effects, less {mean:.2f}"
    return Control(title, sentence.rstrip(), "rest", main.rest, label, ranked, mean), effects


def _changed(
    what: str,
    scores: NDArray[np.float64],
    labels: NDArray[np.intp] | None,
    other: NDArray[np.float64],
    families: Sequence[str],
    unit: str,
) -> str:
    """What another matrix says about clusters, nearest relatives and families."""
    parts = []
    if len(scores) >= FEWEST:
        c = confounders.change(scores, other, labels)
        if c.rand is not None:
            agree = f"agree with those of s to an adjusted Rand index of {c.rand:.2f}"
            parts.append(f"the {c.k} clusters {'are the same' if c.rand == 1 else agree}")
        parts.append(f"{c.nearest} of {len(scores)} models have another nearest relative")
    if means := within_and_between(families, other):
        within, between = map(unit.format, means)
        parts.append(f"the mean is {within} within families and {between} between them")
    if not parts:
        return ""
    *first, last = parts
    return f"{what}, {', '.join(first)}{' and ' if first else ''}{last}."


# The findings


def _within_or_between(
    families: Sequence[str], pairs: pl.DataFrame, scores: NDArray[np.float64], draws: Draws
) -> list[str]:
    """Whether models of one family are more similar, by permuting the families: its size as rates,
    and in nats, with an interval over images."""
    found = compared(families, scores, draws)
    if not found:
        return []
    difference, low, high = found["difference"]
    alike = np.equal.outer(np.array(families), np.array(families))
    test = confounders.related_test(scores, alike)
    family = dict(zip(draws.outcomes.members, families, strict=True))
    same = pl.col("a").replace_strict(family) == pl.col("b").replace_strict(family)
    rate = (pl.col("a_fools_b") + pl.col("b_fools_a")).mean() / 2
    inside, outside = (pairs.filter(kind).select(rate).item() for kind in (same, ~same))
    times = text("pairwise.times", factor=inside / outside) if outside else ""
    return [
        text(
            "pairwise.within",
            verdict=verdict(difference, (low, high), test.p),
            inside=inside,
            outside=outside,
            times=times,
            test=test.text(),
            within=found["within"][0],
            between=found["between"][0],
            difference=difference,
            low=low,
            high=high,
        )
    ]


def _extremes(
    outcomes: Outcomes, pairs: pl.DataFrame, scores: NDArray[np.float64], eps_s: float
) -> str:
    """The most and the least similar pair, as far as their intervals tell them apart; of two
    models, how similar they are.

    Whether the two differ is by intervals that miss in 5 % of all pairs together (Bonferroni), as
    the highest and the lowest of many equal scores differ by noise.
    """
    ranked = pairs.sort("score", descending=True)
    best, worst = ranked.row(0, named=True), ranked.row(-1, named=True)
    if ranked.height == 1:
        rate = min(np.exp(best["score"]) / 100, 1.0)
        more = text("pairwise.two_above", json.dumps(best.get("above_noise")))
        return text("pairwise.two", rate=rate, more=more, **best)

    def tied(n: int) -> str:
        return text(f"pairwise.tied{'_one' * (n == 1)}", n=n) if n else ""

    alpha = ALPHA / ranked.height
    wide = [similarity.pairs(outcomes.of((r["a"], r["b"])), eps_s, alpha) for r in (best, worst)]
    (least,), (most,) = wide[0]["low"], wide[1]["high"]
    decided = verdict(best["score"] - worst["score"], (least - most, np.inf))
    return text(
        "pairwise.extremes",
        decided,
        best=text("pairwise.pair", **best),
        best_tied=tied(ranked.filter(pl.col("high") >= best["low"]).height - 1),
        worst=text("pairwise.pair", **worst),
        worst_tied=tied(ranked.filter(pl.col("low") <= worst["high"]).height - 1),
        n=ranked.height,
        mean=off_diagonal(scores).mean(),
    )


def _closest_families(family_means: pl.DataFrame) -> list[str]:
    """For each family with a mean within: how that compares with its closest other family. Of more
    than FAMILIES, in how many it is higher."""
    same, a, b = pl.col("family_a") == pl.col("family_b"), "family_a", "family_b"
    within, between = family_means.filter(same), family_means.filter(~same)
    ways = [between.select(family=x, other=y, closest="mean") for x, y in ((a, b), (b, a))]
    closest = pl.concat(ways).sort("closest", descending=True, maintain_order=True)
    closest = closest.group_by("family", maintain_order=True).first()
    rows = within.select("mean", family=a).join(closest, on="family", maintain_order="left")
    less = [row["family"] for row in rows.to_dicts() if row["mean"] <= row["closest"]]
    sentences = [
        text("pairwise.family", more="less" if row["family"] in less else "more", **row)
        for row in rows.to_dicts()
    ]
    if len(sentences) > FAMILIES:
        n = len(sentences)
        sentence = text("pairwise.many_families", more=n - len(less), n=n)
        return [f"{sentence}; not in {and_more(less)}." if less else f"{sentence}."]
    return [" ".join(sentences)] if sentences else []


def _weak(models: pl.DataFrame) -> list[str]:
    """The models whose attack is weak, and what to do."""
    weak = models.filter(pl.col("white_box_success") < WEAK_ATTACK)
    if weak.is_empty():
        return []
    named = [f"{r['model']} ({r['white_box_success']:.1%})" for r in weak.to_dicts()]
    names = ", ".join(named) if len(named) <= WEAK_NAMED else and_more(named)
    # No advice on models whose predictions look wrong.
    advice = text("pairwise.stronger") if weak["suspect"].null_count() else ""
    return [text("pairwise.weak", names=names, limit=WEAK_ATTACK) + advice]


def _mistakes(mistakes: pl.DataFrame) -> list[str]:
    """How often targets make the source's mistake, over all pairs, and how often by chance."""
    known = mistakes.drop_nulls("same_mistake_chance")  # of pairs with mistakes of one class
    rates, images = mistakes.drop_nulls("same_mistake"), "mistakes"
    if known.is_empty():
        return []
    rate = np.average(rates["same_mistake"], weights=rates[images])
    chance = np.average(known["same_mistake_chance"], weights=known[images])
    return [text("pairwise.same_mistake", rate=rate, chance=chance)]


# Images under attack


def examples(
    results: Results, members: Sequence[Model], sources: int = 6, images: int = 2
) -> list[Example]:
    """Up to `images` of up to `sources` sources, from as many families as there are.

    Of each source they are the first of its images, so that most sources show the same ones.
    """
    subset, words = results.evaluation.subset, class_words(results.evaluation.images.classes)
    one_a_family = list({member.family: member for member in reversed(members)}.values())[::-1]
    rest = [member for member in members if member not in one_a_family]
    selected = []
    for source in (one_a_family + rest)[:sources]:
        stored, index = results.adversarial(source, 0)
        clean = results.pixels(source.view, 0)
        predicted = results.outcome_store.read(source.name, [source.name])
        for row, position in enumerate(index[:images].tolist()):
            image = subset.ids[position]
            (prediction,) = predicted.filter(image_id=image)["prediction"]
            shown = (_hwc(clean[position]), _hwc(stored[row]))
            label = words[subset.labels[position]]
            selected.append(Example(source.name, image, label, words[int(prediction)], *shown))
    return selected


def examples_figure(items: Sequence[Example], eps: float | None) -> Figure:
    """Clean image, adversarial image and their difference of each example, a row a source."""
    rows, below = defaultdict[str, list](list), defaultdict[str, list](list)
    for item in items:
        changed = difference(item.clean, item.adversarial, eps or 1.0)
        rows[item.source] += (item.clean, item.adversarial, changed)
        below[item.source] += (item.label, item.prediction, "")
    across = max(map(len, rows.values()))
    titles = (["clean", "adversarial", "difference"] * across)[:across]
    return images_figure(list(rows.values()), titles, list(below.values()), names=list(rows))


def examples_note(eps: float | None) -> str:
    """How the differences are shown; `eps` is the attack's bound, None where it has none."""
    times = f"{0.5 / (eps or 1.0):.3g}"
    if eps is None:
        return text("examples.note", times=times)
    return text("examples.note_eps", eps=fraction_text(eps), times=times)


def difference(
    clean: NDArray[np.uint8], adversarial: NDArray[np.uint8], eps: float
) -> NDArray[np.uint8]:
    """adversarial - clean around mid-grey, [H, W, 3] uint8: -eps is black and +eps is white."""
    delta = (adversarial.astype(float) - clean.astype(float)) / (255 * eps)
    return np.clip(np.round(127.5 + 127.5 * delta), 0, 255).astype(np.uint8)


def _hwc(image: Tensor) -> np.ndarray:
    """[3, H, W], uint8 or in [0, 1], as [H, W, 3] uint8."""
    if image.dtype != torch.uint8:
        image = (image * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()
