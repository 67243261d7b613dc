"""What a precision and a seed move, and the mistakes of asking for it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import Mistake
from tests.helpers import four_store, has_figures, on_four


@pytest.mark.slow
def test_precision(folder: Path) -> None:
    """Four members in bfloat16 and from another seed, by the numbers of the pairwise study."""
    run = on_four("precision", folder)
    has_figures(run, "precision")
    rows = pl.read_csv(run / "precision.csv")
    variants = ["bf16-mixed", "seed 1", "transfer bf16-mixed"]
    assert rows["other"].unique(maintain_order=True).to_list() == variants
    assert rows.height == 3 * 6
    table = pl.read_csv(run / "correlations.csv")
    for row in table.to_dicts():
        mine = rows.filter(other=row["other"])["difference"].to_numpy()
        assert row["mean_absolute_difference"] == pytest.approx(np.abs(mine).mean())
        assert row["mean_low"] <= row["mean_high"] and 0 <= row["inside_interval"] <= 1
        targets = row["other"].startswith("transfer")
        assert row["differing_pixels"] == 0 if targets else 0 < row["differing_pixels"] < 1
        assert row["differing_outcomes"] <= row["differing_predictions"] < 1
        # Rounding a target's numbers moves none of these few predictions across a boundary.
        assert (row["differing_outcomes"] == 0) == targets
    # Each precision has images of its own, in a folder that says which; targets share them.
    identities = [
        (file.parent.name, file.read_text())
        for file in four_store(folder).glob("digits/quick-*/pgd-*/identity.json")
    ]
    assert sum('"precision": "bf16-mixed"' in text for _, text in identities) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["precisions=[32-true]"], "precisions names 32-true, which is the run's own"),
        (["precisions=[tf32]"], "precisions tf32 needs a GPU"),
        (["transfer.precision=tf32"], "transfer.precision tf32 needs a GPU"),
        (
            ["transfer.precision=16-mixed"],
            "transfer.precision must be 32-true or tf32 or bf16-mixed, got '16-mixed'",
        ),
        (["precisions=[8-true]"], "precisions must be 32-true or tf32 or"),
        (["seed=0"], "seed must differ from attack.seed (0)"),
        (["precisions=[]"], "precisions must be auto or a list"),
        (
            ["hardware.craft_precision=bf16"],
            "hardware.craft_precision must be 32-true or tf32 or bf16-mixed",
        ),
        (
            ["hardware.memory_format=nhwc"],
            "hardware.memory_format must be contiguous or channels_last or auto",
        ),
        (
            ["hardware.batch_size=0"],
            "hardware.batch_size must be auto or a whole number of 1 or more, got 0",
        ),
        (["attack=clean"], "needs an attack with a seed"),
    ],
)
def test_mistakes(mistake: Mistake, arguments: list[str], expected: str) -> None:
    assert expected in mistake("experiment=precision", *arguments)
