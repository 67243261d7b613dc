"""The answer to "how related are these models?": tables, heatmap, sentences and sections of a page.

A pure function of what the passes stored. `evaluate.py` and `netkin.compare` both write it.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from netkin import similarity
from netkin.analysis import summary
from netkin.components import base_architecture
from netkin.passes.resize import resize_errors
from netkin.passes.setting import Setting
from netkin.passes.stored import params
from netkin.report.controls import NOT_ABOVE, Controls, controls
from netkin.report.examples import contact_sheet, examples, examples_section
from netkin.report.figures import LABEL, LARGE, heatmap_figure
from netkin.report.matrix import Relations, matrix_sections
from netkin.report.study import Outputs, Section
from netkin.report.text import settings_text
from netkin.similarity import ALPHA, MeansOfDraws, Outcomes
from netkin.zoo.build import knows_more, preprocessing
from netkin.zoo.execution import DEFAULT_PRECISION
from netkin.zoo.member import Member
from netkin.zoo.published import model_page


@dataclass(frozen=True)
class Comparison:
    """How related some models are.

    Attributes:
        title: the question in one line.
        question: the question and how it was measured.
        answer: the findings in words, a paragraph each.
        relations: scores and tables; empty where a member failed.
        resize: of `netkin.passes.resize.resize_errors`; empty where all models see the same.
        failures: a row a member that failed: model, stage, reason.
        images: the section of the page that shows images under attack, if there are any.
        sheet: the same images as one.
        controls: what the scores owe to chance and to single models.
    """

    title: str
    question: str
    answer: list[str]
    relations: Relations
    resize: pl.DataFrame
    failures: pl.DataFrame
    images: list[Section]
    sheet: Image.Image | None
    controls: Controls

    @property
    def square(self) -> pl.DataFrame:
        """The scores as similarity.csv has them: a column of names, then one a model."""
        names, scores = list(self.relations.names), self.relations.scores
        table = pl.DataFrame({name: scores[:, i] for i, name in enumerate(names)})
        return table.fill_nan(None).insert_column(0, pl.Series("", names))

    def figure(self) -> Figure:
        """The clustered heatmap."""
        relations = self.relations
        marked = relations.marked if len(relations.names) <= LARGE else None
        label = LABEL if marked is None else f"{LABEL};  {NOT_ABOVE}"
        return heatmap_figure(
            relations.scores, relations.names, relations.groups, label, relations.least, marked
        )

    def write(self, outputs: Outputs) -> list[Path]:
        """Write the tables and the heatmap; returns the tables' files."""
        outputs.table("similarity", self.square)
        outputs.table("pairs", self.relations.pairs)
        outputs.table("models", self.relations.models)
        outputs.table("families", self.relations.family_means)
        if self.resize.height:  # there is more than one geometry
            outputs.table("resize_errors", self.resize)
        if self.failures.height:
            outputs.table("failures", self.failures)
        tables = [outputs.folder / name for name in outputs.files if name.endswith(".csv")]
        outputs.figure("similarity", self.figure(), self.square, "The similarity of every pair.")
        kinds = dict(zip(self.relations.names, self.relations.groups, strict=True))
        self.controls.write(outputs, [kinds[name] for name in self.controls.names])
        if self.sheet is not None:
            outputs.image("examples", self.sheet)
        return tables

    def sections(self, folder: Path) -> list[Section]:
        """The evidence, for a page in a folder with the files of `write`."""
        prints = ["similarity.pdf", "similarity.svg", "similarity.png"]
        sections = matrix_sections(self.relations, prints)
        return [*sections, *self.controls.sections(folder), *self.images]


def summarise(
    setting: Setting,
    members: Sequence[Member],
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    draws: NDArray[np.float64] | MeansOfDraws,
    eps_s: float,
    requested: Sequence[Member] = (),
    failures: pl.DataFrame | None = None,
    suspects: Mapping[str, str] | None = None,
    alpha: float = ALPHA,
) -> Comparison:
    """The answer for members whose passes are done.

    Args:
        setting: images, attack and store.
        members: the N models of the outcomes, in the same order.
        outcomes: of the members.
        scores: `similarity.matrix` of the outcomes, [N, N].
        draws: `similarity.bootstrap` of the outcomes, [draws, N, N], or `Draws` of them, for means
            over pairs, which are of smoothed scores.
        eps_s: the floor of 100 p.
        requested: the members with those that failed; `members`, unless given.
        failures: of the others, a row each: model, stage, reason.
        suspects: why a member's clean predictions look wrong, by its name.
        alpha: how often intervals of pairs may miss; less in a run that stops early.
    """
    requested = requested or members
    if failures is None:
        failures = pl.DataFrame(schema=["model", "stage", "reason"])
    control = controls(outcomes, [member.family for member in members], alpha)
    models = _models(setting, members, outcomes, scores)
    families = {member.name: member.family for member in requested}
    relations = relate(control, outcomes, scores, draws, eps_s, families, models, alpha)
    flags = pl.Series("suspect", map((suspects or {}).get, relations.names), pl.String)
    relations = replace(
        relations,
        models=relations.models.with_columns(flags),
        bases=_bases(requested, setting),
        links={m.name: page for m in requested if (page := _page(m, setting))},
    )
    resize = resize_errors(setting, members)
    scored = relations.pairs.drop_nulls("score")
    noted = models.with_columns(
        pl.Series("suspect", map((suspects or {}).get, models["model"]), pl.String)
    )
    answer = summary.answer(scored, noted, relations.family_means, control.scores, draws)
    items = examples(setting, members)
    return Comparison(
        title=f"How related are {len(requested)} models on {setting.task.dataset}?",
        question=_question(setting, len(outcomes.image_ids)),
        answer=[*answer, *control.answer(), *_caveats(setting, members, failures, resize)],
        relations=relations,
        resize=resize,
        failures=failures,
        images=[examples_section(items, setting.attack.eps)] if items else [],
        sheet=contact_sheet(items, setting.attack.eps) if items else None,
        controls=control,
    )


def _bases(members: Sequence[Member], setting: Setting) -> list[str]:
    """The base architecture of each member; its family where it is not timm's."""
    return [base_architecture(m, setting.task) if m.timm else m.family for m in members]


def _page(member: Member, setting: Setting) -> str | None:
    return model_page(member.source) if member.uses_published(setting.task) else None


def _models(
    setting: Setting, members: Sequence[Member], outcomes: Outcomes, scores: NDArray[np.float64]
) -> pl.DataFrame:
    """The table of the members, without those that failed."""
    return summary.model_table(
        outcomes,
        scores,
        [member.family for member in members],
        [params(setting, member) for member in members],
        [preprocessing(member, setting.task).view.input_size for member in members],
    )


def relate(
    control: Controls,
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    draws: NDArray[np.float64] | MeansOfDraws,
    eps_s: float,
    families: Mapping[str, str],
    models: pl.DataFrame,
    alpha: float = ALPHA,
) -> Relations:
    """Scores and tables of all requested models, with gaps for those that failed.

    Args:
        control: of the outcomes.
        outcomes, scores, draws, eps_s, alpha: see `summarise`.
        families: of all requested models, by name.
        models: of `netkin.analysis.summary.model_table`.
    """
    names = list(families)
    pairs = similarity.pairs(outcomes, eps_s, alpha)
    pairs = pairs.join(control.pairs, on=["a", "b"], how="left")
    return Relations(
        scores=with_gaps(scores, [names.index(name) for name in outcomes.members], len(names)),
        names=names,
        families=list(families.values()),
        pairs=all_pairs(pairs, names),
        models=pl.DataFrame({"model": names, "family": list(families.values())})
        .join(models.drop("family"), on="model", how="left", maintain_order="left")
        .join(control.models, on="model", how="left", maintain_order="left"),
        family_means=similarity.family_means(control.scores, control.families, draws),
    )


def with_gaps(scores: NDArray[np.float64], places: list[int], n: int) -> NDArray[np.float64]:
    """The scores of some of n models, at their places among all, and NaN for the others, [n, n]."""
    matrix = np.full((n, n), np.nan)
    matrix[np.ix_(places, places)] = scores
    return matrix


def all_pairs(scored: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """All pairs of the names, in their order; pairs that `scored` lacks have n = 0 and no score."""
    pairs = pl.DataFrame(list(itertools.combinations(names, 2)), schema=["a", "b"], orient="row")
    table = pairs.join(scored, on=["a", "b"], how="left", maintain_order="left")
    return table.with_columns(pl.col("n").fill_null(0))


def attacked(setting: Setting) -> str:
    """An attack with its settings in words: "pgd (eps = 48/255, steps = 50)"."""
    words = [settings_text(setting.attack.identity)]
    precision = setting.choice.execution.precision
    if precision != DEFAULT_PRECISION:
        words.append(f"computed in {precision}")
    if setting.precision != DEFAULT_PRECISION:
        words.append(f"transfer in {setting.precision}")
    settings = ", ".join(filter(None, words))
    return f"{setting.attack.name} ({settings})" if settings else setting.attack.name


def _question(setting: Setting, images: int) -> str:
    return (
        "Two networks are related when adversarial images crafted on one fool the other. Each "
        f"model was attacked with {attacked(setting)} on those of the {images} images "
        f"of {setting.task.dataset} that it classifies correctly. Every other model was evaluated "
        "on the adversarial images whose originals it classifies correctly, too."
    )


def _caveats(
    setting: Setting, members: Sequence[Member], failures: pl.DataFrame, resize: pl.DataFrame
) -> list[str]:
    """What a reader of the scores has to know: resizing, classes and members left out."""
    task = setting.task
    partly = [member.name for member in members if knows_more(member, task)]
    return [
        *summary.resize(resize),
        *summary.part_of_imagenet(partly, task.num_classes),
        *(
            f"{model} has no scores: it failed in {stage}. {reason}"
            for model, stage, reason in failures.iter_rows()
        ),
    ]
