"""What a command imports: libraries that take seconds are loaded where they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = {"torch", "torchvision", "timm", "sklearn", "pandas", "pytorch_lightning", "wandb"}
CODE = """
import atexit, os, runpy, sys
script, *sys.argv = {words!r}
sys.argv.insert(0, script)
sys.path[0] = os.path.dirname(script)
atexit.register(lambda: print("loaded:", *sys.modules))
runpy.run_path(script, run_name="__main__")
"""
REFERENCE = ROOT.parent / "shared" / "reference"


def loaded(*words: str, cwd: Path, script: str = "evaluate") -> set[str]:
    """The modules that a command of a process of its own has loaded at its end."""
    code = CODE.format(words=[str(ROOT / f"{script}.py"), *words])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_help_loads_nothing_slow(script: str, tmp_path: Path) -> None:
    assert not loaded("--help", cwd=tmp_path, script=script) & {*HEAVY, "polars", "numpy"}


def test_the_index_loads_no_model_and_no_figure(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    words = ("experiment=index", "hydra.run.dir=run")
    assert not loaded(*words, cwd=tmp_path) & {*HEAVY, "matplotlib", "scipy"}


@pytest.mark.slow
def test_a_stored_run_builds_no_network(folder: Path) -> None:
    from tests.helpers import overrides  # it imports torch

    words = (*overrides(folder), "hydra.run.dir=again")
    assert not loaded(*words, cwd=folder) & (HEAVY - {"torch", "sklearn", "pandas"})


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the published scores")
def test_an_answer_from_a_csv_loads_neither_torch_nor_timm(tmp_path: Path) -> None:
    published = ("similarity=sat69", f"similarity.dir={REFERENCE}", "model=resnet50")
    words = ("experiment=relatives", *published, "logger=none", "hydra.run.dir=run")
    assert not loaded(*words, cwd=tmp_path) & HEAVY
