"""How related are the members of a zoo? (Sec. 2, Eq. 1; Fig. D.2.)

Trains members that lack weights, attacks each, evaluates each on all others' adversarial images,
and writes similarity.csv, pairs.csv, models.csv, families.csv, the heatmap and report.html.

On the 12 digits members (500 images, PGD-50): see the README and experiments/results/digits.md.
"""

import itertools

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.common.runs import eps_advice
from experiments.common.study import Measured, Study, attacked, measured
from netkin import similarity
from netkin.analysis import summary
from netkin.analysis.hierarchy import off_diagonal
from netkin.pipeline import Incomplete
from netkin.report.examples import examples, examples_section
from netkin.report.figures import heatmap_figure
from netkin.report.matrix import Relations, matrix_sections
from netkin.report.study import Section
from netkin.transfer.resize import resize_errors
from netkin.transfer.setting import Setting
from netkin.transfer.stored import params
from netkin.zoo.build import knows_more, preprocessing


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    with measured(config, partial=True) as s:
        assert s.measured is not None
        failures = s.measured.failures
        report(s, s.measured)
    if failures is not None:
        raise failures


def report(s: Study, m: Measured) -> None:
    """Write tables, figure and page, log them, and print the answer.

    Members that failed have empty rows in similarity.csv and models.csv, and the reason in
    failures.csv.
    """
    draws = s.draws()
    assert draws is not None
    models = _model_table(s, m)
    relations = _relations(s, m, models, draws)
    names = list(relations.names)
    square = pl.DataFrame({name: relations.scores[:, i] for i, name in enumerate(names)})
    s.outputs.table("similarity", square.fill_nan(None).insert_column(0, pl.Series("", names)))
    s.outputs.table("pairs", relations.pairs)
    s.outputs.table("models", relations.models)
    s.outputs.table("families", relations.family_means)
    resize = resize_errors(m.setting, m.members)
    if resize.height:  # there is more than one geometry
        s.outputs.table("resize_errors", resize)
    if m.failures is not None:
        s.outputs.table("failures", _failure_table(m.failures))
    tables = [s.outputs.folder / name for name in s.outputs.files]
    figure = heatmap_figure(relations.scores, names, relations.families)
    s.outputs.figure("similarity", figure, square, "The similarity of every pair.")
    scores = off_diagonal(s.scores)
    s.tracker.metrics(
        {
            "similarity/mean": float(scores.mean()),
            "similarity/min": float(scores.min()),
            "similarity/max": float(scores.max()),
        }
    )
    s.tracker.artifact(
        f"similarity-{m.setting.task.dataset}-{m.setting.attack.name}", "similarity", tables
    )
    answer = summary.answer(
        relations.pairs.drop_nulls("score"), models, relations.family_means, s.scores, draws
    )
    s.finish(
        f"How related are {len(names)} models on {m.setting.task.dataset}?",
        _question(m.setting),
        [*answer, *_weak(m, models), *_caveats(m, resize)],
        [*matrix_sections(relations, ["similarity.pdf", "similarity.png"]), *_examples(m)],
    )


def _model_table(s: Study, m: Measured) -> pl.DataFrame:
    return summary.model_table(
        m.outcomes,
        s.scores,
        s.families,
        [params(m.setting, member) for member in m.members],
        [preprocessing(member, m.setting.task).view.input_size for member in m.members],
    )


def _relations(
    s: Study, m: Measured, models: pl.DataFrame, draws: NDArray[np.float64]
) -> Relations:
    """Scores and tables of all requested members, empty where a member failed."""
    names = [member.name for member in m.requested]
    families = [member.family for member in m.requested]
    places = [names.index(name) for name in s.names]
    reasons = m.suspects.reasons
    return Relations(
        scores=with_gaps(s.scores, places, len(names)),
        names=names,
        families=families,
        pairs=all_pairs(similarity.pairs(m.outcomes, s.config.score.eps_s), names),
        models=pl.DataFrame({"model": names, "family": families})
        .join(models.drop("family"), on="model", how="left", maintain_order="left")
        .with_columns(pl.Series("suspect", [reasons.get(name) for name in names], pl.String)),
        family_means=similarity.family_means(s.scores, s.families, draws),
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


def _failure_table(failures: Incomplete) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"model": failure.member.name, "stage": failure.stage, "reason": failure.reason}
            for failure in failures.failures
        ]
    )


def _weak(m: Measured, models: pl.DataFrame) -> list[str]:
    """How to choose eps, where the attack has one and is weak on a model."""
    weak = (models["white_box_success"] < summary.WEAK_ATTACK).any()
    return [eps_advice()] if weak and m.setting.attack.attack.eps is not None else []


def _caveats(m: Measured, resize: pl.DataFrame) -> list[str]:
    """What a reader of the scores has to know: resizing, classes, images and members left out."""
    task = m.setting.task
    partly = [member.name for member in m.members if knows_more(member, task)]
    failures = m.failures.failures if m.failures is not None else []
    return [
        *summary.resize(resize),
        *summary.part_of_imagenet(partly, task.num_classes),
        *(
            f"{failure.member.name} has no scores: it failed in {failure.stage}. {failure.reason}"
            for failure in failures
        ),
    ]


def _examples(m: Measured) -> list[Section]:
    """Images under attack, where the store has any."""
    items = examples(m.setting, m.members)
    return [examples_section(items, m.setting.attack.attack.eps)] if items else []


def _question(setting: Setting) -> str:
    return (
        "Two networks are related when adversarial images crafted on one fool the other. Each "
        f"model was attacked with {attacked(setting)} on those of the {len(setting.subset)} images "
        f"of {setting.task.dataset} that it classifies correctly. Every other model was evaluated "
        "on the adversarial images whose originals it classifies correctly, too."
    )
