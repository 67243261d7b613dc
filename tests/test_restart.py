"""Nothing is lost: the real command killed, stopped, run twice at once, split over devices, and on
a disk that fills up ends with the bytes of a run that nothing happened to.

`python tests/test_restart.py 50` kills it fifty times instead of ten.
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from conftest import ROOT, run_command

TINY = [
    "model.members=[test_byobnet,vit_ti]",
    "recipe.epochs=1",
    "recipe.validate_every=1",
    "attack.steps=25",
    "subset=quick",
    "store.shard_size=12",
    "logger=csv",
]
"""Two members and nine shards, the last of them smaller than the others."""

MOMENTS = (
    *("weights", "weights", "weights", "clean"),
    *("adversarial", "adversarial", "write", "adversarial", "write", "outcomes"),
)
"""What is in hand when a process is killed: training, the clean pass, crafting, writing a shard,
and transfer."""


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """The command as a process, at the head of a group of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *TINY, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def result(folder: Path, run: str = "run") -> dict[str, bytes]:
    """The bytes that must not depend on what happened on the way: by file."""
    store = folder / "store"
    files = [
        *store.glob("weights/**/*.safetensors"),
        *store.glob("digits/**/logits.safetensors"),
        *store.glob("digits/**/adversarial/*/*.safetensors"),
        *store.glob("digits/**/*.parquet"),
    ]
    found = {str(file.relative_to(store)): file.read_bytes() for file in files}
    for name in ("similarity.csv", "pairs.csv", "models.csv"):
        found[name] = (folder / run / name).read_bytes()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny zoo was trained and scored, in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_command(*TINY, "workers=1", "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def trained(uninterrupted: Path, tmp_path: Path) -> Path:
    """A folder whose store holds what comes before crafting."""
    for name in ("weights", "digits"):
        shutil.copytree(uninterrupted / "store" / name, tmp_path / "store" / name)
    for attack in (tmp_path / "store" / "digits").glob("*/pgd-*"):
        shutil.rmtree(attack)
    return tmp_path


def in_hand(store: Path) -> list[str]:
    """What living processes have in hand, as their leases say."""
    found = []
    for file in (store / ".leases").glob("*.*"):
        try:
            found.append(json.loads(file.read_text())["product"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def at(moment: str, store: Path) -> bool:
    if moment == "write":
        return any(store.glob("digits/*/pgd-*/adversarial/*/.*.tmp"))
    return any(f"{moment}/" in product for product in in_hand(store))


def kill_at(process: subprocess.Popen[str], moment: str, store: Path, delay: float) -> bool:
    """SIGKILL to a process and its children, when it has come to a moment; False if it ended."""
    stale = set(in_hand(store)) if moment != "write" else set()
    before = {p for p in store.glob("digits/*/pgd-*/adversarial/*/.*.tmp")}
    while process.poll() is None:
        if moment == "write":
            reached = {p for p in store.glob("digits/*/pgd-*/adversarial/*/.*.tmp")} - before
        else:
            # The lease of one that was killed before this one is swept away at the start.
            stale &= set(in_hand(store))
            reached = {p for p in in_hand(store) if f"{moment}/" in p} - stale
        if reached:
            time.sleep(delay)
            break
        time.sleep(0.0005 if moment == "write" else 0.005)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def killed_run(folder: Path, moments: list[str], seed: int, *overrides: str) -> Counter[str]:
    """Run the command, kill it at each moment in turn, run it again; how often at which."""
    draw, killed = random.Random(seed), Counter()
    for moment in moments:
        longest = {"weights": 1.0, "adversarial": 0.3}.get(moment, 0.0)
        process = start(folder, "hydra.run.dir=run", *overrides)
        killed[moment] += kill_at(process, moment, folder / "store", draw.uniform(0, longest))
    process = start(folder, "hydra.run.dir=run", *overrides)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return killed


@pytest.mark.slow
def test_ten_kills_change_no_byte(uninterrupted: Path, tmp_path: Path) -> None:
    killed = killed_run(tmp_path, list(MOMENTS), 0, "workers=1")
    assert killed == Counter(MOMENTS)
    assert result(tmp_path) == result(uninterrupted)
    assert not list((tmp_path / "store").rglob("*.tmp"))
    assert not in_hand(tmp_path / "store")


if __name__ == "__main__":
    print("see test_ten_kills_change_no_byte")
