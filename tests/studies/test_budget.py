"""The cheapest steps and images of the same matrix."""

import html
import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from experiments.studies.compare import Reference, cheapest, passes
from netkin.attacks import PGD
from netkin.similarity import Outcomes
from tests.conftest import Mistake, run_here
from tests.helpers import on_four

OWN = OmegaConf.create({"least_r": 0.95, "most_bias": 0.1, "least_inside": 0.9})


def test_budget(folder: Path) -> None:
    """Ten steps of the four members against their eight, on fewer images, too."""
    small = ("budget.steps=[2,4]", "budget.images=[30,60]", "budget.draws=5")
    done = on_four("budget", folder, *small)
    table = pl.read_csv(done / "budget.csv")
    assert {*table["steps"]} == {2, 4, 8} and {*table["images"]} == {30, 60, 100}
    own = table.filter(steps=8, images=100).to_dicts()[0]
    assert own["r"] == pytest.approx(1) and own["bias"] == pytest.approx(0)
    assert own["cost"] == 1 and own["inside"] == 1 and own["clusters"] == 1
    for _, part in table.sort("steps").group_by("images"):
        assert part["cost"].is_sorted()
    page = html.unescape((done / "report.html").read_text())
    assert re.search(r"(Yes|No)\. ", page) and "On all images: 2 steps shift scores by" in page
    if use := re.search(r"To use it: python evaluate\.py ([^<]+)<", page):
        assert run_here(*shlex.split(use[1]), "--cfg", "job", cwd=folder).returncode == 0


def test_cost_is_counted_by_hand() -> None:
    correct = np.array([[True, True, False], [True, True, True]])
    outcomes = Outcomes(("a", "b"), ("0", "1", "2"), correct, np.zeros((2, 2, 3), dtype=bool))
    crafted, evaluated = 5, 2 + 3 + 2 * 2
    assert passes(outcomes, 10) == crafted * 10 * 3 + evaluated


def test_the_cheapest_that_is_the_same() -> None:
    good = {"r": 0.99, "bias": 0.0, "inside": 1.0}
    rows = pl.DataFrame(
        [
            {"cost": 0.1, **good, "r": 0.9},
            {"cost": 0.2, **good, "bias": -0.2},
            {"cost": 0.3, **good, "inside": 0.5},
            {"cost": 0.5, **good},
            {"cost": 0.4, **good},
            {"cost": 1.0, **good},
        ]
    )
    best = cheapest(rows, OWN)
    assert best is not None and best["cost"] == 0.4
    assert cheapest(rows.filter(pl.col("cost") > 0.9), OWN) is None


def test_few_images_may_give_all_pairs_the_same_score() -> None:
    rng = np.random.default_rng(0)
    fooled = rng.random((4, 4, 200)) < 0.5
    fooled[..., :10] = True
    outcomes = Outcomes(
        tuple("abcd"), tuple(map(str, range(200))), np.ones((4, 200), dtype=bool), fooled
    )
    found = Reference(outcomes, 0.01).against([outcomes.on(range(10))])
    assert found is not None and found["r"] == 0 and found["clusters"] == 0
    found = Reference(outcomes, 0.01).against([outcomes])
    assert found is not None and found["r"] == pytest.approx(1) and found["clusters"] == 1


def test_steps_can_cross_the_ball_unless_told_otherwise() -> None:
    assert PGD("8/255", None, 10).step_size == pytest.approx(2 / 255)
    assert PGD("8/255", None, 10, momentum=1.0).step_size == pytest.approx(0.8 / 255)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attack=noise",), "takes an attack of steps, such as pgd, got noise"),
        (("attack.steps=5", "budget.steps=[5]"), "must have a number below attack.steps=5"),
        (("budget.draws=0",), "budget.draws must be a whole number of 1 or more"),
    ],
)
def test_mistakes(mistake: Mistake, words: tuple[str, ...], message: str) -> None:
    assert message in mistake("experiment=budget", *words)
