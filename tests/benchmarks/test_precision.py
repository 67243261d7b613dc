"""What a precision and a seed move, and the mistakes of asking for it."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.benchmarks.precision import differences
from tests.conftest import Mistake
from tests.helpers import MEMBERS, four_store, has_figures, on_four


def test_precision(folder: Path) -> None:
    """Four members in bfloat16 and from another seed, by the numbers of the pairwise study."""
    run = on_four("precision", folder)
    has_figures(run, "differences")
    rows = pl.read_csv(run / "precision.csv")
    variants = ["bf16-mixed", "seed 1", "transfer bf16-mixed"]
    assert rows["variant"].unique(maintain_order=True).to_list() == variants
    assert rows.height == 3 * 6
    for row in rows.to_dicts():
        assert row["difference"] == pytest.approx(row["other"] - row["score"])
        assert row["inside"] == (row["low"] <= row["other"] <= row["high"])
    table = pl.read_csv(run / "summary.csv")
    for row in table.to_dicts():
        mine = rows.filter(variant=row["variant"])["difference"].to_numpy()
        assert row["mean_absolute_difference"] == pytest.approx(np.abs(mine).mean())
        assert row["mean_low"] <= row["mean_high"]
        targets = row["variant"].startswith("transfer")
        assert row["differing_pixels"] == 0 if targets else 0 < row["differing_pixels"] < 1
        assert 0 < row["differing_outcomes"] <= row["differing_predictions"] < 1
    speed = pl.read_csv(run / "speed.csv")
    assert speed.select("model", "precision").rows() == [
        (name, precision) for name in MEMBERS for precision in ("32-true", "bf16-mixed")
    ]
    assert speed["transfer_ms_per_image"].min() > 0  # type: ignore[operator]
    # Each precision has images of its own, in a folder that says which; targets share them.
    identities = [
        (file.parent.name, file.read_text())
        for file in four_store(folder).glob("digits/quick-*/pgd-*/identity.json")
    ]
    assert sum('"precision": "bf16-mixed"' in text for _, text in identities) == 1
    tables = four_store(folder).glob("digits/quick-*/pgd-*/outcomes-*/*/*.parquet")
    assert sorted({file.parents[1].name for file in tables}) == ["outcomes-bf16-mixed"]


def test_differences_are_of_the_same_pairs() -> None:
    pairs = pl.DataFrame(
        {
            "a": ["x", "x"],
            "b": ["y", "z"],
            "score": [1.0, 2.0],
            "low": [0.5, 1.9],
            "high": [1.5, 2.1],
        }
    )
    other = pl.DataFrame({"a": ["x", "x"], "b": ["z", "y"], "score": [2.5, 1.25]})
    found = differences(pairs, "v", other)
    assert found["difference"].to_list() == [0.25, 0.5]
    assert found["inside"].to_list() == [True, False]


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
        (["seed=0"], "seed=0 is the attack's own"),
        (["precisions=[]"], "precisions must be auto or a list"),
        (
            ["hardware.craft_precision=bf16"],
            "hardware.craft_precision must be 32-true or tf32 or bf16-mixed",
        ),
        (
            ["hardware.memory_format=nhwc"],
            "hardware.memory_format must be contiguous or channels_last or auto",
        ),
        (["hardware.fuse=maybe"], "hardware.fuse must be True or False"),
        (
            ["hardware.batch_size=0"],
            "hardware.batch_size must be auto or a whole number of 1 or more, got 0",
        ),
        (["attack=clean"], "needs an attack with a seed"),
    ],
)
def test_mistakes(mistake: Mistake, arguments: list[str], expected: str) -> None:
    assert expected in mistake("experiment=precision", *arguments)
