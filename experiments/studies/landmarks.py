"""Can all scores be predicted from those with a few models, the landmarks?

All pairs of N models take N attacks and N^2 evaluations. Here each model is evaluated on the images
of m landmarks, and these on its images; with `one_sided=true` only landmarks are attacked. The
other pairs are predicted, with intervals (`netkin.analysis.landmarks`). How far that can be trusted
is measured on the run itself: each landmark in turn is taken for another model. Writes
similarity.csv, which other studies read with `similarity=FILE`, measured.csv, which says which of
its cells were measured, pairs.csv, held_out (figure and table), landmarks (figure and table) and
report.html.

On the published 69 models it works, on the 12 digits members it does not:
experiments/results/landmarks.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import components_of, from_file, read_off
from experiments.cli.landmarks import choose, pass_landmarks
from experiments.cli.members import build_members
from experiments.cli.setting import opened
from experiments.cli.study import describe, study
from netkin.analysis.landmarks import Completed, complete
from netkin.analysis.matrix import Matrix, pair_values
from netkin.jobs.progress import Bars
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import scatter_figure
from netkin.report.study import Outputs, Section
from netkin.report.text import and_more
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Found:
    """What the report needs.

    Attributes:
        names, groups: of the N models; groups are families.
        landmarks: positions of the landmarks.
        completed: the scores.
        pairs: of `netkin.results.Results.landmark_scores`; None for a file.
        truth: all scores, [N, N], of a file; None where the rest was not measured.
        source: where the scores come from, in words.
        one_sided: whether only landmarks were attacked.
    """

    names: Sequence[str]
    groups: Sequence[str]
    landmarks: list[int]
    completed: Completed
    pairs: pl.DataFrame | None
    truth: NDArray[np.float64] | None
    source: str
    one_sided: bool


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    if config.similarity is None:
        measure(config)
        return
    with study(config) as s:
        positions = choose(config.landmarks, s.names, config.seed)
        components = components_of(s) if config.with_components else None
        completed = _complete(config, s.scores, positions, components)
        found = Found(s.names, s.families, positions, completed, None, s.scores, s.source, False)
        s.finish(*report(found, s.outputs))


def measure(config: DictConfig) -> None:
    """The study of the config's members: passes, scores and report."""
    members = build_members(config)
    positions = choose(config.landmarks, [m.name for m in members], config.seed)
    chosen, sides = [members[i].name for i in positions], bool(config.one_sided)
    with opened(config, members, sources=chosen if sides else None) as o:
        done = pass_landmarks(o.run, chosen, sides)
        with Bars(o.console) as bars:
            table = _components(config, [m.member for m in done], o.run.evaluation.task, bars)
        names, groups = [m.name for m in done], [m.family for m in done]
        positions = [names.index(name) for name in chosen]
        found = o.run.results.landmark_scores(done, positions, sides, config.score.eps_s)
        scores, pairs = found
        completed = _complete(config, scores, positions, table)
        source = describe(o.run.evaluation, len(done))
        found = Found(names, groups, positions, completed, pairs, None, source, sides)
        o.finish(*report(found, o.outputs))
        o.tracker.summary({"landmarks/held_out_r2": completed.held_out.r2})
        o.run.raise_failures()


def _components(config: DictConfig, members: list[Member], task, bars: Bars) -> pl.DataFrame | None:
    if not config.with_components:
        return None
    if config.components is not None:
        return from_file(config.components, [member.name for member in members])
    return read_off(members, task, bars)


def _complete(
    config: DictConfig,
    scores: NDArray[np.float64],
    positions: list[int],
    components: pl.DataFrame | None,
) -> Completed:
    values = None if components is None else components[:, 1:].to_numpy()
    one_sided = config.similarity is None and bool(config.one_sided)
    found = complete(scores, positions, values, config.level, config.seed, one_sided)
    both = (found.scores, found.low, found.high)  # of one-sided scores the mean of the directions
    scores, low, high = ((matrix + matrix.T) / 2 for matrix in both)
    return replace(found, scores=scores, low=low, high=high)


def report(found: Found, outputs: Outputs) -> tuple[str, str, list[str], list[Section]]:
    """Write tables and figures; returns title, question, answer and sections of the page."""
    c, names, n, m = found.completed, found.names, len(found.names), len(found.landmarks)
    outputs.table("similarity", Matrix(tuple(names), c.scores).table())
    outputs.table("measured", Matrix(tuple(names), c.measured.astype(float)).table())
    pairs = outputs.table("pairs", pair_table(found))
    predicted = pairs.filter(kind="predicted")
    held = pl.DataFrame(
        {
            "landmark": [names[i] for i in c.held_out.landmark],
            "model": [names[i] for i in c.held_out.other],
            "measured": c.held_out.measured,
            "predicted": c.held_out.predicted,
            "covered": c.held_out.covered,
        }
    )
    text = f"R2 = {c.held_out.r2:.2f}, mean error {c.held_out.error:.3f} nats"
    of_held = outputs.figure(
        "held_out",
        scatter_figure(
            *(held["predicted"], held["measured"], "predicted score", "measured score (nats)"),
            text=text,
        ),
        held,
        "Scores of landmarks that were taken for other models, predicted and measured.",
    )
    other = np.isin(np.arange(n), found.landmarks, invert=True).astype(np.intp)
    drawing = heatmap_figure(c.scores, names, found.groups, "similarity s (nats)", clusters=other)
    caption = (
        f"1: the {m} landmarks; 2: the other {n - m} models, whose scores with each other are "
        "predicted. All other cells are measured."
    )
    matrix = outputs.figure("landmarks", drawing, Matrix(tuple(names), c.scores).table(), caption)
    what = "one-sided scores, of the landmarks' images," if found.one_sided else "scores"
    question = (
        f"The {what} of {found.source} with {m} landmarks "
        f"({and_more([names[i] for i in found.landmarks])}) predict the other "
        f"{predicted.height} of {pairs.height} pairs."
    )
    sections = [
        Section("How well held-out pairs are predicted", (), {}, [of_held]),
        Section("The matrix", [caption], {}, [matrix]),
        Section("Pairs", (), {"The highest predicted scores": predicted.head(20)}),
    ]
    title = f"Can the scores of {n} models be predicted from those with {m} of them?"
    return title, question, answer(found, outputs), sections


def pair_table(found: Found) -> pl.DataFrame:
    """A row a pair, the highest score first: a, b, kind (measured or predicted), score, low, high,
    level (of the interval); for measured pairs n, a_fools_b, b_fools_a, for a file's true scores
    true_score."""
    c, level = found.completed, np.full_like(found.completed.scores, found.completed.level)
    table = Matrix(tuple(found.names), c.scores).pairs(low=c.low, high=c.high, level=level)
    kind = np.where(pair_values(c.measured), "measured", "predicted")
    table = table.insert_column(2, pl.Series("kind", kind))
    if found.truth is not None:
        empty = pl.when(kind="predicted").then(pl.col("low", "high", "level"))
        table = table.with_columns(empty, pl.Series("true_score", pair_values(found.truth)))
    if found.pairs is not None:
        measured = found.pairs.with_columns(pl.lit("measured").alias("kind"), level=0.95)
        table = pl.concat([table.filter(kind="predicted"), measured], how="diagonal")
    return table.sort(["score", "a", "b"], descending=[True, False, False])


def answer(found: Found, outputs: Outputs) -> list[str]:
    """The findings in words, a paragraph each, the verdict first."""
    c, n, m = found.completed, len(found.names), len(found.landmarks)
    held, (low, high) = c.held_out, c.held_out.r2_interval()
    spread, word = float(held.measured.std()), held.verdict
    passes = f"{m} attacks instead of {n}" if found.one_sided else f"{n} attacks"
    runs = n * m if found.one_sided else n * m + (n - m) * m
    ends = {
        "Yes": "The predicted scores can be used as measured ones are, with their intervals.",
        "No": "Measure all pairs (experiment=pairwise), or take more landmarks.",
        "Not certain": "Take more landmarks, or measure all pairs (experiment=pairwise).",
    }
    words = [
        f"{word}: of landmarks that were taken for other models, {held.r2:.0%} of the variance of "
        f"the scores is predicted (R2 = {held.r2:.2f}, 95% interval over landmarks {low:.2f} to "
        f"{high:.2f}), with a mean error of {held.error:.3f} nats where scores have a standard "
        f"deviation of {spread:.3f}; intervals of {c.level:.0%} have {held.covered.mean():.0%} of "
        f"these scores. {ends[word]}",
        f"This takes {passes} and {runs:,} evaluations of a model on a model's images instead of "
        f"{n * n:,}.",
    ]
    if found.truth is not None:
        h, hidden = c.against(found.truth), int(np.triu(~c.measured, 1).sum())
        words.insert(
            1,
            f"The {hidden} scores that the file has, and that were hidden: R2 = {h['r2']:.3f}, "
            f"mean error {h['error']:.3f} nats, {h['coverage']:.1%} inside their intervals.",
        )
    else:
        words.append(
            "Other studies take these scores from a file: similarity="
            f"{outputs.folder / 'similarity.csv'}. measured.csv says which of them were measured."
        )
    return words
