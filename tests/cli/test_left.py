"""What a run does to its machine: it sends nothing, and leaves no temporary file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL, TRAINED

SEALED = """
ip link set lo up && ip route add local default dev lo || exit 77
"$@" || exit 1
sent() { awk '/:/ { sum += $11 } END { print sum }' /proc/net/dev; }
sent
python -c 'import socket as s; s.socket(type=s.SOCK_DGRAM).sendto(b"x", ("10.9.9.9", 9))'
sent
"""
"""Runs a command in a network of its own, where all addresses are this machine's, and prints how
many packets were sent; then one is sent to see that it is counted. 77 where it lacks the right."""


@pytest.mark.slow
def test_nothing_is_left(tmp_path: Path) -> None:
    """By the default logger, a training, workers, and all libraries that they import."""
    temporary, weights = tmp_path / "tmp", tmp_path / "store" / "weights" / "digits"
    temporary.mkdir()
    weights.mkdir(parents=True)
    for file in TRAINED.glob("test_byobnet.*"):
        shutil.copy(file, weights)
    hidden = ("WANDB", "HF_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    command = [sys.executable, str(ROOT / "evaluate.py"), *SMALL, "hardware.members_at_once=2"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip")
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", SEALED, "sh", *command],
        cwd=tmp_path,
        env=inherited | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("needs the right to make a network")
    assert (done.returncode, done.stderr) == (0, "")
    sent, with_one_more = map(int, done.stdout.splitlines()[-2:])
    assert sent == 0 < with_one_more
    assert list(temporary.iterdir()) == []
    assert list(tmp_path.glob("outputs/*/*/wandb/data/artifacts/staging/*"))
