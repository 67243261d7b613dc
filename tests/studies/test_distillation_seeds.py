"""What differences between seeds leave of the differences between teachers."""

import numpy as np
import polars as pl
import pytest

from experiments.studies.distillation import pooled_sd, reliability


def table(accuracies: np.ndarray) -> pl.DataFrame:
    """The columns that matter, for accuracies [teachers, seeds]."""
    return pl.DataFrame(
        {
            "student_accuracy": accuracies.mean(1),
            "seed_sd": [pooled_sd(accuracies.tolist())[0]] * len(accuracies),
            "seeds": [accuracies.shape[1]] * len(accuracies),
        },
        schema_overrides={"seed_sd": pl.Float64},
    )


def test_the_deviation_is_that_within_groups() -> None:
    draw = np.random.default_rng(0)
    groups = [(mean + draw.normal(0, 0.02, size)).tolist() for mean in (0, 5, 9) for size in (2, 9)]
    sd, freedom = pooled_sd(groups)
    assert freedom == 27 and sd == pytest.approx(0.02, rel=0.35)
    assert pooled_sd([[0.5], [0.9]]) == (None, 0)


@pytest.mark.parametrize("true", [0.0, 0.5, 0.9])
def test_the_ceiling_is_the_correlation_with_the_truth(true: float) -> None:
    """In simulated studies of 40 teachers with 5 seeds, whose truth is known."""
    draw = np.random.default_rng(1)
    found, ceilings = [], []
    for _ in range(60):
        means = draw.normal(0.8, (true / 5 / (1 - true)) ** 0.5, 40) if true else np.full(40, 0.8)
        accuracies = means[:, None] + draw.normal(0, 1, (40, 5))
        ceilings.append(reliability(table(accuracies)) ** 0.5)
        found.append(np.corrcoef(means, accuracies.mean(1))[0, 1] if true else 0.0)
    assert np.mean(ceilings) == pytest.approx(np.mean(found), abs=0.06 if true else 0.3)
