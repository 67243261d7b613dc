"""experiment=parity, and what is refused before any work: see `CHECKS` in test_experiments.py."""

from pathlib import Path

import polars as pl
import pytest
from conftest import SMALL, run_command
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.parity import VARIANTS, configured
from netkin.errors import UserError

MEMBERS = ["test_byobnet", "vit_ti"]
NAMES = ["noise", "fgsm", "patchfool"]


def check_parity(folder: Path) -> None:
    """Tables whose rows are complete, of the right images, and equal where they must be."""
    shorter = '"patchfool.steps=4","autoattack.queries=20","autoattack.targets=2","pgd.steps=4"'
    done = run_command(
        *("experiment=parity", SMALL[0], *SMALL[1:2], *SMALL[3:], "logger=csv", "workers=1"),
        *("parity.images=4", "parity.rounds=1", "parity.patches=[2]"),
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
    assert same["max_pixel_difference"].max() < 1e-6
    ours = parity.filter(attack="autoattack")
    assert (ours["robust_accuracy"] - ours["robust_accuracy_of_reference"]).abs().max() <= 0.25
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


def test_unknown_attacks_and_keys() -> None:
    config = OmegaConf.create({"parity": {"changes": ["pgd.stepz=3"]}, "dataset": {}})
    with pytest.raises(UserError, match=r"no attack 'pgs' .*apgd, autoattack.*did you mean pgd"):
        configured(config, "pgs")
    with pytest.raises(OmegaConfBaseException, match="stepz"):
        configured(config, "pgd")


def test_sources_that_do_not_fit_are_named_before_any_work(tmp_path: Path) -> None:
    """By the real command: nothing is decoded or trained, and it says what would work."""
    done = run_command(
        *("attack=patchfool", "model.members=[test_resnet,vit_ti,vit_s]", "logger=none"),
        cwd=tmp_path,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "patchfool does not fit all sources: test_resnet is no timm VisionTr" in done.stderr
    assert "model.members=[vit_ti,vit_s]" in done.stderr
    assert "experiment=attacks attacks=[pgd,patchfool] sources=[vit_ti,vit_s]" in done.stderr
    assert done.stdout == ""
    assert not list((tmp_path / "store").rglob("*.safetensors"))
