"""What experiment=plan does with models that cannot be built."""

from pathlib import Path

import polars as pl

from tests.conftest import run_here


def test_a_model_that_cannot_be_built_has_a_row_and_stops_nothing(tmp_path: Path) -> None:
    done = run_here(
        "experiment=plan",
        "attack=fgsm",
        "model.members=[{name: broken, timm: test_vit, kwargs: {depths: 3}}, test_byobnet]",
        "subset=quick",
        "plan.seconds=0.01",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Without broken: broken (test_vit) cannot be built for 32 x 32 images" in done.stdout
    broken, other = pl.read_csv(tmp_path / "run" / "plan.csv").to_dicts()
    assert (broken["model"], broken["params"]) == ("broken", None)
    assert "unexpected keyword argument 'depths'" in broken["problem"]
    assert (other["model"], other["problem"]) == ("test_byobnet", None)
    assert other["craft_seconds"] > 0
