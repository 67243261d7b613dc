"""Sweeps and runs on a real SLURM: put back, preempted, killed, stopped, refused.

A day in small: twelve jobs, of which three are preempted, one is killed and one fails, and a
launcher that is started again. The bytes are those of a local run.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_sweep import files
from tests.cluster.one_node import OneNode, missing
from tests.conftest import ROOT, run_command, run_here
from tests.store.test_restart import in_hand

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

GOOD = [f"m{i:02d}" for i in range(11)]
RUN = [
    "experiment=craft",
    "attack.steps=20",
    "subset=quick",
    "store.shard_size=12",
    "hardware.members_at_once=1",
]
"""Nine shards a member: in each shard, a member's model is called 20 times or a few more."""
LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.poll_s=0.5",
    "hydra.launcher.array_parallelism=4",
]
IMAGES = "digits/*/pgd-*/adversarial/*/*.safetensors"


def members(*names: str) -> str:
    """Members that are right on most digits; the one called broken gives NaN."""
    own = "{{name: {}, _target_: tests.cluster.nets.{}, pretrained: true, mean: 0, std: 1}}"
    nets = {name: "broken" if name == "broken" else "prototypes" for name in names}
    return "model.members=[" + ",".join(own.format(*each) for each in nets.items()) + "]"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneNode]:
    """A SLURM with five cores, and the variables that its commands need."""
    node = OneNode(tmp_path_factory.mktemp("slurm"), cpus=5)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in node.environment.items():
            patch.setenv(key, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src")]))
        yield node
    node.stop()


class Command:
    """The real command in the background, with what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str, sleep: float = 0.0):
        self.file = folder / f"printed{time.monotonic_ns()}"
        with self.file.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(ROOT / "evaluate.py"), *arguments],
                cwd=folder,
                env={**os.environ, "SLEEP": str(sleep)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.file.read_text()

    def end(self) -> int:
        """Its exit code."""
        return self.process.wait(600)


def wait_for(condition: Callable[[], object], command: Command) -> None:
    """Wait until something is the case."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end and command.process.poll() is None, command.text
        time.sleep(0.1)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The images of the good members, from one run on this machine."""
    folder = tmp_path_factory.mktemp("local")
    done = run_command(*RUN, members(*GOOD), "logger=none", "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = files(folder / "store", IMAGES)
    assert len(found) == 11 * 9
    return found


@pytest.fixture(scope="module")
def timed(node: OneNode, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """A sweep of one job of more than a minute, with a time limit of a minute: begun first, since
    it takes long, with the default logger and processes that load."""
    folder = tmp_path_factory.mktemp("timed")
    more = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=5"]
    more += ["hardware.loader_processes=2", "source=m00", "hydra.sweep.dir=sweep"]
    return folder, Command(folder, "-m", *RUN, members(*GOOD), *LAUNCHER, *more, sleep=0.3)


def crafting(store: Path) -> set[str]:
    """The members that are being attacked."""
    return {product.split("/")[-2] for product in in_hand(store) if "adversarial/" in product}


def hurry_until(node: OneNode, condition: Callable[[], object], command: Command) -> None:
    """Wait until something is the case, and let jobs that were put back start at once."""
    wait_for(lambda: node.hurry() or condition(), command)


def test_a_day_in_small(
    node: OneNode, timed: tuple, local: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    sweep = ["-m", *RUN, members(*GOOD, "broken"), "source=glob(*)", *LAUNCHER, "logger=csv"]

    first = Command(tmp_path, *sweep, "hydra.sweep.dir=first", sleep=0.05)
    wait_for(lambda: len(crafting(store)) >= 3, first)
    node.run("sbatch", "-p", "urgent", "-c", "4", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: first.text.count("put back into the queue") >= 3, first)
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 130, first.text
    assert re.match(
        r"stopped with \d+ of 12 jobs done, \d+ still in SLURM \(to end them: scancel( \d+_\d+)+"
        r"\); what is finished is kept\. To go on: python .*-m ",
        first.text.splitlines()[-1],
    )
    assert "Traceback" not in first.text
    (array,) = re.findall(r"submitted to SLURM: (\d+)\n", first.text)
    ids = {name: f"{array}_{i}" for i, name in enumerate([*GOOD, "broken"])}

    second = Command(tmp_path, *sweep, "hydra.sweep.dir=second", sleep=0.05)
    hurry_until(node, lambda: "in the queue already" in second.text and crafting(store), second)
    killed = sorted(crafting(store))[0]
    node.run("scancel", ids[killed])
    hurry_until(node, lambda: " failed: " in second.text, second)
    while second.process.poll() is None:
        node.hurry()
        time.sleep(0.5)
    assert second.end() == 1, second.text
    assert "submitted to SLURM" not in second.text
    last = second.text.splitlines()[-1]
    assert last.startswith("error: 2 of 12 jobs failed: ")
    assert f"{ids[killed]} source='{killed}' (ended by SLURM or from outside, state CANC" in last
    assert f"{ids['broken']} source='broken' (broken gives NaN or infinite logits on " in last
    states = {name: node.last_state(job) for name, job in ids.items()}
    assert states == {n: "COMPLETED" for n in GOOD} | {killed: "CANCELLED", "broken": "FAILED"}

    third = Command(tmp_path, *sweep, "hydra.sweep.dir=third")
    assert third.end() == 1, third.text
    assert "12 jobs: 10 done before, 0 in the queue already, 2 to submit" in third.text
    assert third.text.splitlines()[-1].startswith("error: 1 of 12 jobs failed: ")
    assert files(store, IMAGES) == local


def test_sigterm_to_a_job_that_sbatch_started(node: OneNode, tmp_path: Path) -> None:
    """To all processes of the job, W&B's among them: the exit code and the line of any stop."""
    words = [sys.executable, str(ROOT / "evaluate.py"), *RUN, members(*GOOD), "source=m00"]
    script = f"#!/bin/sh\nSLEEP=0.3 exec srun {shlex.join([*words, 'hydra.run.dir=run'])}\n"
    (tmp_path / "job.sh").write_text(script)
    said = node.run("sbatch", "-o", "log", str(tmp_path / "job.sh"), cwd=tmp_path)
    job, log = said.split()[-1], tmp_path / "log"
    end = time.monotonic() + 300
    while not crafting(tmp_path / "store"):
        assert time.monotonic() < end and node.state(job) in ("PENDING", "RUNNING"), log.read_text()
        time.sleep(0.1)
    node.run("scancel", "--signal=TERM", job)
    node.last_state(job)
    assert "ExitCode=143:0" in node.run("scontrol", "show", "job", job)
    text = log.read_text()
    assert text.count("stopped during craft, with 0 of 1 done") == 1
    assert "Traceback" not in text and "wandb" not in text and "srun` command" not in text


def test_ctrl_c_with_cancel_leaves_no_job(node: OneNode, tmp_path: Path) -> None:
    more = ["hydra.launcher.cancel=true", "hydra.sweep.dir=sweep"]
    more += ["+hydra.launcher.additional_parameters.begin=now+1hour"]
    sweep = Command(tmp_path, "-m", *RUN, members(*GOOD), "source=m00,m01", *LAUNCHER, *more)
    wait_for(lambda: "2 jobs: 2 waiting" in sweep.text, sweep)
    sweep.process.send_signal(signal.SIGTERM)
    assert sweep.end() == 143
    assert "stopped with 0 of 2 jobs done, 2 cancelled; what is" in sweep.text
    (array,) = re.findall(r"submitted to SLURM: (\d+)\n", sweep.text)
    assert set(node.last_state(array).split()) == {"CANCELLED"}


def test_what_sbatch_refuses_is_one_line(node: OneNode, tmp_path: Path) -> None:
    more = ["hydra.launcher.partition=nowhere", "hydra.sweep.dir=sweep"]
    done = run_here("-m", *RUN, members(*GOOD), "source=m00,m01", *LAUNCHER, *more, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: sbatch refuses 2 jobs: ")
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stdout


def test_a_time_limit_puts_a_job_back(
    node: OneNode, timed: tuple[Path, Command], local: dict[str, bytes]
) -> None:
    folder, command = timed
    while command.process.poll() is None:
        node.hurry()
        time.sleep(0.5)
    assert command.end() == 0, command.text
    (log,) = folder.glob("sweep/.submitit/*/*_log.out")
    text, restarts = log.read_text(), command.text.count("put back into the queue")
    assert 1 <= restarts <= text.count("Requeued job")  # hurried, it may be back between two polls
    # Not by the processes that load, too.
    assert text.count("Calling checkpoint method") == text.count("Requeued job")
    assert "Traceback" not in text and "Error" not in text
    wanted = {name: data for name, data in local.items() if "/m00/" in name}
    assert files(folder / "store", IMAGES) == wanted
