"""What experiment=plan does with models that cannot be run, or whose weights cannot be had."""

from pathlib import Path

import polars as pl

from tests.conftest import run_here


def test_no_model_stops_a_plan(tmp_path: Path) -> None:
    """Neither one that cannot be run, nor one whose weights cannot be had, which is timed."""
    members = (
        "{name: broken, timm: test_vit, kwargs: {depths: 3}}",
        "{name: buggy, _target_: tests.zoo.own_nets.NoGradient}",
        "{name: web, timm: test_resnet, pretrained: true}",
        "{name: gone, timm: test_resnet, checkpoint: gone.pt}",
        "test_byobnet",
    )
    done = run_here(
        "experiment=plan",
        "attack=fgsm",
        f"model.members=[{','.join(members)}]",
        "subset=quick",
        "plan.seconds=0.01",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Without broken: broken (test_vit) cannot be built for 32 x 32 images" in done.stdout
    rows = {row["model"]: row for row in pl.read_csv(tmp_path / "run" / "plan.csv").to_dicts()}
    said = {
        "broken": "unexpected keyword argument 'depths'",
        "buggy": "NotImplementedError: the derivative of its kernel",
        "web": "its weights cannot be had",
        "gone": "there is no checkpoint gone.pt",
    }
    for name, row in rows.items():
        assert said.get(name, "") in (row["problem"] or ""), row
        runs = name in ("gone", "test_byobnet")  # web has ImageNet's classes
        assert (row["craft_seconds"] is not None) == (row["params"] is not None) == runs
        assert row["sources_left"] == (5 if runs else None)
    assert (rows["test_byobnet"]["problem"], len(rows)) == (None, 5)
