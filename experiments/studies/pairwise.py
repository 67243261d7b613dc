"""How related are the members of a zoo? (Sec. 2, Eq. 1; Fig. D.2.)

Trains members that lack weights, attacks each, evaluates each on all others' adversarial images,
and writes similarity.csv, pairs.csv, models.csv, families.csv, the heatmap and report.html; see
`netkin.comparison`.

On the 12 digits members (500 images, PGD-50): see the README and experiments/results/digits.md.
"""

import polars as pl
from omegaconf import DictConfig

from experiments.cli.measured import Measured
from experiments.cli.runs import eps_advice
from experiments.cli.study import Study, measured
from netkin import similarity
from netkin.analysis.groups import Draws, compared
from netkin.analysis.matrix import off_diagonal
from netkin.comparison import Result, summarise


def run(config: DictConfig) -> None:
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
    draws = Draws(m.outcomes, s.config.score.bootstrap)
    result = summarise(
        m.results,
        m.members,
        m.outcomes,
        draws,
        s.config.score.eps_s,
        m.run.models,
        m.failures.table if m.failures else None,
        m.suspects.reasons,
    )
    sections = result.write(s.outputs)
    s.tracker.summary(numbers(s, draws, result))
    answer = [*result.answer]
    weak = (result.models["white_box_success"] < similarity.WEAK_ATTACK).any()
    if weak and m.evaluation.attack.eps is not None:
        answer.append(eps_advice())
    s.finish(result.title, result.question, answer, sections)
    s.tracker.artifact(
        f"similarity-{m.evaluation.task.dataset}-{m.evaluation.attack.name}",
        "similarity",
        [s.outputs.folder / f"{name}.csv" for name in result.tables],
    )


def numbers(s: Study, draws: Draws, result: Result) -> dict[str, float]:
    """The run in a dozen numbers: similarity over all pairs; within and between families and their
    difference, with 95% intervals over images (of smoothed scores), where there are both; and how
    often noise alone fools a model."""
    scores = off_diagonal(result.scores)
    values = {f"similarity/{of}": float(getattr(scores, of)()) for of in ("mean", "min", "max")}
    for name, (value, low, high) in compared(s.families, s.scores, draws).items():
        key = f"similarity/{name}"
        values |= {key: value, f"{key}_low": low, f"{key}_high": high}
    if "noise_rate" in result.models.columns:
        values["noise/mean"] = result.models.select(pl.col("noise_rate").mean()).item()
    return values
