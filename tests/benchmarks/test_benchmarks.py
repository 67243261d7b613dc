"""The benchmarks' scripts, small."""

import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest

from experiments.benchmarks import commands, landmarks, scale, speed, verdicts
from experiments.studies import clusters, relatives
from netkin.analysis.matrix import Matrix
from tests.conftest import run_here

NULLS = ("pairwise", "relatives", "clusters")


def test_landmarks_over_draws(tmp_path: Path) -> None:
    at = np.linspace(0, 1, 9)
    scores = 4 - 3 * np.abs(at[:, None] - at)
    file = tmp_path / "line.csv"
    Matrix(tuple(f"model {i}" for i in range(9)), scores).table().write_csv(file)
    out = tmp_path / "rows.csv"
    landmarks.main([str(file), "--landmarks", "5", "--draws", "2", "--out", str(out)])
    rows = pl.read_csv(out)
    assert rows["seed"].to_list() == [0, 1] and rows["coverage"].is_between(0, 1).all()
    table = landmarks.means(rows)
    assert table["r2"].item() == pytest.approx(rows["r2"].mean())
    assert table.select("Yes", "Not certain", "No").sum_horizontal().item() == 2


def test_attacks_and_loops_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "attacks.csv"
    sizes = ["--models", "test_efficientnet", "--images", "1", "--rounds", "1"]
    speed.main([*sizes, "--attacks", "fgsm", "noise", "--out", str(out)])
    assert pl.read_csv(out)["attack"].to_list() == ["fgsm", "noise"]
    assert (pl.read_csv(out)["images_per_second"] > 0).all()
    assert speed.configured("pgd").eps == 8 / 255


def test_false_answers_are_rare_and_true_ones_are_found() -> None:
    """Four families of three models, of different strength; the same scores shuffled, and noise."""
    rng, families = np.random.default_rng(0), np.repeat(list("abcd"), 3)
    strength, noise = rng.normal(0, 0.3, 12), rng.normal(0, 0.1, (12, 12))
    scores = 2 + 2.0 * np.equal.outer(families, families) + noise + noise.T
    models = verdicts.Models(scores + strength[:, None] + strength, families.tolist())
    asked = {q: v for q, v in verdicts.VERDICTS.items() if q.split(":")[0] in NULLS}
    with (
        patch.object(verdicts, "VERDICTS", asked),
        patch.object(clusters, "UNRELATED", 59),
        patch.object(relatives, "UNRELATED", 59),
    ):
        table = verdicts.frequencies(models, 16)
    assert table.height == 3 * len(NULLS)
    assert table.filter(scores="real")["Yes"].to_numpy().min() > 0.5
    # Where 5% are Yes, more than 3 of 16 are with a probability of 1%.
    false = table.filter(pl.col("scores") != "real")
    assert (false["Yes"] * false["n"]).to_numpy().max() <= 3


@pytest.mark.slow
def test_ways_of_a_step_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "speed.csv"
    sizes = ["--models", "test_efficientnet", "--images", "1", "--rounds", "1", "--steps", "1"]
    speed.main([*sizes, "--out", str(out)])
    bare = pl.read_csv(out).filter(method="bare loop")
    assert bare.height == 4 and (bare["times_bare_loop"] == 1).all()


@pytest.mark.slow
def test_stages_of_made_up_models(tmp_path: Path) -> None:
    rows = scale.timed(14, images=60, draws=20, chosen=5, folder=tmp_path)
    assert {"scores", "clusters", "5 landmarks", "page"} <= {row[0] for row in rows}
    assert "family00" in (tmp_path / "report.html").read_text()


def test_a_commands_time_and_memory() -> None:
    seconds, peak = commands.timed([sys.executable, "-c", "import time; time.sleep(0.3)"])
    assert seconds > 0.3 and 0 < peak < 1
    with pytest.raises(SystemExit, match=r"the timed run failed \(3\)"):
        commands.timed([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_states_of_the_store_are_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_this_process(command: Sequence[str]) -> tuple[float, float]:
        done = run_here(*command[2:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return 0.0, 0.0

    monkeypatch.setattr(commands, "timed", in_this_process)
    words = ["recipe=digits_adamw", "recipe.epochs=1", "attack.steps=2", "subset=quick"]
    commands.main(["model.members=[test_byobnet,vit_ti]", *words])
    printed = capsys.readouterr().out
    assert printed.index("nothing stored: ") < printed.index("everything stored: ")
    assert "craft" in printed and "transfer" in printed
