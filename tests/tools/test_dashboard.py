"""Dashboards: each key that a panel names is one that real small runs log."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.tools.dashboard import BOARDS
from tests.conftest import SMALL, run_command, run_here
from tests.test_tracking import inspected

QUICK = (
    "recipe=digits_adamw",
    "recipe.epochs=4",
    "recipe.validate_every=2",
    "recipes.teacher.epochs=4",
    "subset=quick",
)
RUNS = {
    "pairwise": ("evaluate", "model.members=[test_byobnet,vit_ti,test_vit]", *SMALL[1:]),
    "distill": ("train", "experiment=distill", "teacher=test_byobnet", *QUICK),
    "recipes": ("train", "experiment=seeds", "run=0", "recipes.resnet.epochs=1"),
}


@pytest.fixture(scope="module")
def boards(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each board: the JSON of its workspace, and what one of its runs logged."""
    folder = tmp_path_factory.mktemp("boards")
    # A process: wandb_workspaces warns of its own imports.
    done = run_command("experiment=dashboard", "hydra.run.dir=boards", "logger=none", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Nothing was saved to W&B: give entity=NAME" in done.stdout
    found = {}
    store = shutil.copytree(trained / "store", folder / "small_store")
    for name, (script, *words) in RUNS.items():
        words += [f"store.dir={store}", f"hydra.run.dir={name}"]
        words.append(f"hydra.sweep.dir={name}")
        done = run_here(*words, "logger=wandb", cwd=folder, script=script)
        assert done.returncode == 0, done.stderr
        written = json.loads((folder / "boards" / f"{name}.json").read_text())
        found[name] = (written, inspected(folder / name))
    return found


def keys_of(panel: dict[str, Any]) -> set[str]:
    return {*panel["keys"], *filter(None, (panel.get("x"), panel.get("by")))}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOARDS)
def test_a_board_shows_what_runs_log(boards: dict[str, Any], name: str) -> None:
    (written, run), board = boards[name], BOARDS[name]
    logged = {*run["summary"], *(f"config.{key}" for key in run["config"])}
    sections = json.dumps(written["spec"]["section"]["panelBankConfig"]["sections"])
    for panel in (panel for panels in board["sections"].values() for panel in panels):
        assert keys_of(panel) <= logged, panel["title"]
        assert all(key.removeprefix("config.") in sections for key in keys_of(panel))
    assert {*board["columns"]} <= logged
    for key in (key for key in logged if key in ("config.eps", "config.lr", "config.seed")):
        assert isinstance(run["config"][key.removeprefix("config.")], int | float)
    (runs,) = written["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert only["key"]["name"] == "jobType" and only["value"] == board["experiments"]


@pytest.mark.slow
def test_a_student_is_a_row_of_fig_5(boards: dict[str, Any]) -> None:
    row = boards["distill"][1]["summary"]
    assert row["similarity"] > 0 and row["similarity_images"] > 0
    assert re.match(r"pgd \(.*eps = 48/255, .*steps = 8\)", row["similarity_attack"])
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert (row["teacher"], row["teacher_base"]) == ("test_byobnet", "CNN")
    assert (row["student_base"], row["accuracy"]) == ("Transformer", row["student_accuracy"])


@pytest.mark.slow
def test_a_wrong_key_is_one_line(tmp_path: Path) -> None:
    words = ("experiment=dashboard", "entity=me")
    done = run_command(*words, "hydra.run.dir=run", cwd=tmp_path, WANDB_API_KEY="bad")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "W&B does not take the API key (WANDB_API_KEY invalid: " in line
    written = {file.stem for file in (tmp_path / "run").glob("*.json")}
    assert written - {".run", "summary"} == {*BOARDS}


@pytest.mark.slow
def test_without_a_key_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    words = ("logger.mode=online", "subset=quick")
    done = run_command(*words, cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "needs an API key of W&B; run `wandb login`" in line
    assert not (tmp_path / "store" / "weights").exists()
