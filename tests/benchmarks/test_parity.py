"""experiment=parity, and what is refused before any work: see `CHECKS` in test_experiments.py."""

from pathlib import Path

import polars as pl
import pytest

from experiments.benchmarks.parity import VARIANTS
from tests.conftest import SMALL, Mistake, run_command

MEMBERS = ["test_byobnet", "vit_ti"]
NAMES = ["noise", "fgsm", "patchfool"]


def test_parity(folder: Path) -> None:
    """Tables whose rows are complete, of the right images, and equal where they must be."""
    shorter = '"patchfool.steps=4","autoattack.queries=20","autoattack.targets=2","pgd.steps=4"'
    done = run_command(
        *(
            "experiment=parity",
            SMALL[0],
            *SMALL[1:2],
            *SMALL[3:],
            "logger=csv",
            "hardware.members_at_once=1",
        ),
        *("parity.images=8", "parity.rounds=1", "parity.patches=[2]"),
        *(f"parity.attacks=[{','.join(NAMES)}]", f"parity.changes=[{shorter}]"),
        "hydra.run.dir=parity",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    run = folder / "parity"
    parity = pl.read_csv(run / "parity.csv")
    same = parity.filter(pl.col("attack") != "autoattack")  # which draws otherwise
    assert same.height == 8 and set(same["model"]) == set(MEMBERS)
    assert (same["images_of_equal_bytes"] == same["images"]).all()
    assert (same["max_pixel_difference"] < 1e-6).all()
    ours = parity.filter(attack="autoattack")
    difference = ours["robust_accuracy"] - ours["robust_accuracy_of_reference"]
    assert (difference.abs() <= 0.25).all()
    patchfool = pl.read_csv(run / "patchfool.csv")
    assert patchfool["variant"].to_list() == sorted(VARIANTS, key=lambda v: "steps" in VARIANTS[v])
    assert set(patchfool["model"]) == {"vit_ti"} and set(patchfool["patches"]) == {2}
    assert (patchfool["low"] <= patchfool["accuracy"]).all()
    assert (patchfool["accuracy"] <= patchfool["high"]).all()
    cost = pl.read_csv(run / "cost.csv")
    assert cost.filter(model="vit_ti")["attack"].to_list() == NAMES
    assert cost.filter(model="test_byobnet")["attack"].to_list() == NAMES[:2]
    assert (cost["images_per_second"] > 0).all()
    said = pl.read_csv(run / "attacks.csv")
    assert said["attack"].unique(maintain_order=True).to_list() == ["clean", *NAMES]
    clean = said.filter(attack="clean")
    assert (clean["label"] == clean["prediction"]).all()
    for name in ("attacks.png", "attacks.pdf"):
        assert (run / name).stat().st_size > 10_000
    assert "check 14/14" in done.stdout and "images/s" in done.stdout


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("parity.attacks=[pgs]", "no attack 'pgs' (attacks: apgd, autoattack, clean,"),
        ('parity.changes=["pgd.stepz=3"]', "stepz"),
        ('parity.changes=["patchfool.patches=0"]', "attack.patches must be a whole number of 1"),
        ("parity.variants=[atention]", "did you mean attention"),
        ("parity.images=0", "parity.images must be a whole number of 1 or more, got 0"),
        ("parity.autoattack_eps=6", "did you mean 6/255"),
    ],
)
def test_mistakes(mistake: Mistake, override: str, expected: str) -> None:
    assert expected in mistake("experiment=parity", override)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("attack=patchfool",),
        ("experiment=attacks", "attacks=[pgd,patchfool]"),
        ("experiment=attacks", "attacks=[pgd,patchfool]", "sources=[vit_ti,test_resnet]"),
    ],
)
def test_sources_that_do_not_fit_are_named_with_what_would_work(
    mistake: Mistake, overrides: tuple[str, ...]
) -> None:
    line = mistake("model.members=[test_resnet,vit_ti,vit_s]", *overrides)
    assert "patchfool does not fit all sources: test_resnet is no timm VisionTr" in line
    assert "model.members=[vit_ti,vit_s]" in line
    assert "experiment=attacks attacks=[pgd,patchfool] sources=[vit_ti,vit_s]" in line
