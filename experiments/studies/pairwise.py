"""How related are the members of a zoo? (Sec. 2, Eq. 1; Fig. D.2.)

Trains members that lack weights, attacks each, evaluates each on all others' adversarial images,
and writes similarity.csv, pairs.csv, models.csv, families.csv, the heatmap and report.html; see
`netkin.comparison`.

On the 12 digits members (500 images, PGD-50): see the README and experiments/results/digits.md.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.runs import eps_advice
from experiments.cli.study import Measured, Study, measured
from netkin import similarity
from netkin.analysis.groups import Draws
from netkin.analysis.matrix import off_diagonal
from netkin.comparison import Comparison, summarise
from netkin.run import Incomplete


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
    eps_s = s.config.score.eps_s
    draws = Draws(m.outcomes, s.config.score.bootstrap)
    paper = similarity.matrix(m.outcomes, eps_s)
    comparison = summarise(
        m.results,
        m.members,
        m.outcomes,
        paper,
        draws,
        eps_s,
        m.requested,
        None if m.failures is None else _failure_table(m.failures),
        m.suspects.reasons,
    )
    sections = comparison.write(s.outputs)
    s.tracker.summary(numbers(paper, draws, comparison))
    first, *others = comparison.answer
    answer = [first, *others, *_weak(m, comparison.models)]
    s.finish(comparison.title, comparison.question, answer, sections)
    s.tracker.artifact(
        f"similarity-{m.evaluation.task.dataset}-{m.evaluation.attack.name}",
        "similarity",
        [s.outputs.folder / f"{name}.csv" for name in comparison.tables],
    )


def numbers(paper: NDArray[np.float64], draws: Draws, comparison: Comparison) -> dict[str, float]:
    """The run in a dozen numbers: similarity over all pairs, and within and between families with
    95% intervals over images (of smoothed scores), and how often noise alone fools a model.

    Args:
        paper: scores, [N, N].
        draws: of the images.
        comparison: of the members that did not fail.
    """
    scores, control = off_diagonal(paper), comparison.controls
    values = {
        "similarity/mean": float(scores.mean()),
        "similarity/min": float(scores.min()),
        "similarity/max": float(scores.max()),
    }
    family = np.array(control.families)
    same, lower = family[:, None] == family, np.tri(len(family), k=-1, dtype=bool)
    means = draws.within_and_between(control.families)
    for i, (name, pairs) in enumerate((("within", same & lower), ("between", ~same & lower))):
        if pairs.any():
            low, high = similarity.interval(means[:, i])
            values |= {
                f"similarity/{name}": float(control.scores[pairs].mean()),
                f"similarity/{name}_low": low,
                f"similarity/{name}_high": high,
            }
    if "noise_rate" in control.models.columns:
        values["noise/mean"] = control.models.select(pl.col("noise_rate").mean()).item()
    return values


def _failure_table(failures: Incomplete) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"model": failure.model.name, "stage": failure.stage, "reason": failure.reason}
            for failure in failures.failures
        ]
    )


def _weak(m: Measured, models: pl.DataFrame) -> list[str]:
    """How to choose eps, where the attack has one and is weak on a model."""
    weak = (models["white_box_success"] < similarity.WEAK_ATTACK).any()
    return [eps_advice()] if weak and m.evaluation.attack.eps is not None else []
