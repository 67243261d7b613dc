"""Nothing is lost: the real command killed, stopped, run twice at once, split over devices, and on
a disk that fills up ends with the bytes of a run that nothing happened to, and its outcomes.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pytest

from tests.conftest import ROOT, SMALL, run_here

TINY = [
    *SMALL,
    "store.shard_size=12",
    "logger=csv",
    "figure.formats=[png]",
    "hardware.threads=1",
]
"""Two members and nine shards, the last of them smaller than the others."""

MOMENTS = ("write", "outcomes")
"""The work in progress when a process is killed: writing a shard, and transfer. Of trainings,
tests/train has it."""


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
    ]
    found = {str(file.relative_to(store)): file.read_bytes() for file in files}
    for table in store.glob("digits/*/*/outcomes"):
        rows = pl.read_parquet(table / "*/*.parquet").sort("target", "source", "image_id")
        found[str(table.relative_to(store))] = rows.write_csv().encode()
    for name in ("similarity.csv", "pairs.csv", "models.csv"):
        found[name] = (folder / run / name).read_bytes()
    return found


@pytest.fixture(scope="module")
def uninterrupted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small zoo was scored in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(trained / "store" / "weights", folder / "store" / "weights")
    done = run_here(*TINY, "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def predicted(uninterrupted: Path, tmp_path: Path) -> Path:
    """A folder whose store holds what comes before crafting."""
    for name in ("weights", "digits"):
        shutil.copytree(uninterrupted / "store" / name, tmp_path / "store" / name)
    for attack in (tmp_path / "store" / "digits").glob("*/pgd-*"):
        shutil.rmtree(attack)
    return tmp_path


def in_hand(store: Path) -> list[str]:
    """The work in progress of living processes, by their leases."""
    found = []
    for file in (store / ".leases").glob("*.*"):
        try:
            found.append(json.loads(file.read_text())["product"])
        except (OSError, ValueError, KeyError):
            continue
    return found


def kill_at(process: subprocess.Popen[str], moment: str, store: Path) -> bool:
    """SIGKILL to a process and its children, at a given moment; False if it ended before."""

    def reached() -> set[str]:
        if moment == "write":
            return set(map(str, store.glob("digits/*/pgd-*/adversarial/*/.0*.tmp")))
        return {product for product in in_hand(store) if f"{moment}/" in product}

    left = reached()  # by the one that was killed before, until this one sweeps it away
    while process.poll() is None:
        now = reached()
        left &= now
        if now - left:
            break
        time.sleep(0 if moment == "write" else 0.005)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


@pytest.mark.slow
def test_kills_change_no_byte(predicted: Path) -> None:
    """Of a run that stops among its first images: the one that goes on has enough with the same."""
    rule = ("score.half_width=0.5", "hardware.members_at_once=1", "hydra.run.dir=run")
    one, killed = predicted / "one", predicted / "killed"
    for folder in (one, killed):
        shutil.copytree(predicted / "store", folder / "store")
    done = run_here(*TINY, *rule, cwd=one)
    assert done.returncode == 0 and "going on" in done.stdout, done.stderr
    assert "0.5 nats; enough" in done.stdout
    for moment in MOMENTS:
        assert kill_at(start(killed, *rule), moment, killed / "store"), moment
    done = run_here(*TINY, *rule, cwd=killed, again=True)
    assert done.returncode == 0, done.stderr
    assert result(killed) == result(one)
    assert not list((killed / "store").rglob("*.tmp"))
    assert not in_hand(killed / "store")


@pytest.mark.slow
def test_two_processes_at_once_share_the_work(uninterrupted: Path, predicted: Path) -> None:
    runs = [start(predicted, "hardware.members_at_once=1", f"hydra.run.dir=run{i}") for i in (1, 2)]
    for run in runs:
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors
    shards = 0.0
    for i in (1, 2):
        stages = pl.read_csv(predicted / f"run{i}" / "stages.csv").filter(stage="craft")
        shards += float(stages["shards"].sum())
        found = result(predicted, f"run{i}")
        assert found == result(uninterrupted)
    assert 18 <= shards <= 19


@pytest.mark.slow
def test_two_devices_give_the_bytes_of_one(uninterrupted: Path, predicted: Path) -> None:
    """Nine shards a member over two processes, of which one does five and the other four."""
    process = start(
        predicted, "hardware.accelerator=cpu", "hardware.devices=2", "hydra.run.dir=run"
    )
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert re.search(r"^craft 4/4: \w+, part \d of 2", said, re.M)
    assert result(predicted) == result(uninterrupted)
    stages = pl.read_csv(predicted / "run" / "stages.csv").filter(stage="craft")
    assert dict(stages.select("model", "shards").iter_rows()) == {"test_byobnet": 9, "vit_ti": 9}
    assert len(list((predicted / "run").glob("*.html"))) == 1


def starting(process: subprocess.Popen[str]) -> bool:
    """Whether the process that workers are forks of exists, and imports what they need."""
    with suppress(psutil.Error):
        children = psutil.Process(process.pid).children()
        return any("forkserver" in " ".join(child.cmdline()) for child in children)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["imports", "workers"])
def test_a_stop_before_work_is_one_line(tmp_path: Path, wait: str) -> None:
    """While this process imports torch, and while its workers do."""
    process = start(tmp_path, "hardware.members_at_once=2", "hydra.run.dir=run")
    if wait == "imports":
        time.sleep(0.5)
    else:
        while process.poll() is None and not starting(process):
            time.sleep(0.005)
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.count("\n") == 1, errors
    assert errors.startswith("stopped") and "To go on: python " in errors


@pytest.mark.slow
def test_a_stop_says_what_is_done_and_how_to_go_on(predicted: Path) -> None:
    """A signal to the process group, as from SLURM; tests/cli/test_terminal.py has Ctrl-C."""
    store = predicted / "store"
    process = start(
        predicted, "hardware.members_at_once=2", "attack.steps=3000", "hydra.run.dir=run"
    )
    while process.poll() is None and not any("adversarial/" in p for p in in_hand(store)):
        time.sleep(0.01)
    stopped = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert time.monotonic() - stopped < 40  # "within seconds", on a busy machine
    assert process.returncode == 143
    assert errors.count("\n") == 1, errors
    assert re.match(r"stopped during craft, with 0 of 2 done \(\d+ of \d+ images\); ", errors)
    command = errors.split("To go on: ")[1]
    assert shlex.split(command)[0] == "python" and "attack.steps=3000" in shlex.split(command)
    assert not in_hand(store)  # given up, not only abandoned
