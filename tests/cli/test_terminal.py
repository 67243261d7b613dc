"""Signals of a terminal, with the default logger: one line, whatever W&B does, and an end to all
that was begun."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netkin.jobs.signals import STOPPING
from tests.conftest import ROOT
from tests.store.test_restart import TINY, in_hand
from tests.test_tracking import records

LOGGED = [text for text in TINY if text != "logger=csv"]
"""With W&B offline, as users have it."""


class Terminal:
    """The command in a pseudo-terminal of its own, whose output is kept."""

    def __init__(self, folder: Path, *overrides: str):
        self.master, slave = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
        # A shell makes the terminal its own before the command runs.
        own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        own += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", own, str(ROOT / "evaluate.py"), *LOGGED, *overrides],
            cwd=folder,
            env=environment | {"TERM": "dumb", "COLUMNS": "400"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def read_until(self, reached: Callable[[], bool]) -> bool:
        """Read what is printed until something holds; False if the command ended before."""
        while not reached():
            if select.select([self.master], [], [], 0.005)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode()
                except OSError:  # all of its processes have closed it
                    return False
        return True

    def end(self) -> int:
        """Read the rest; the exit code."""
        self.read_until(lambda: False)
        os.close(self.master)
        return self.process.wait(60)

    def hang_up(self) -> int:
        """Close the terminal, as the end of an ssh connection does; the exit code."""
        os.close(self.master)
        return self.process.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "key", "code"), [("train", b"", 129), ("craft", b"\x03", 130)])
def test_a_stop(trained: Path, tmp_path: Path, stage: str, key: bytes, code: int) -> None:
    """By the terminal's end, and by Ctrl-C among workers, who get it, too. One line says what is
    done and how to go on. tests/cluster has SIGTERM."""
    store, in_work = tmp_path / "store", {"train": "weights/", "craft": "adversarial/"}[stage]
    workers = {"train": 1, "craft": 2}[stage]
    if stage == "craft":
        shutil.copytree(trained / "store" / "weights", store / "weights")
    words = ("hydra.run.dir=run", f"hardware.members_at_once={workers}", "attack.steps=3000")
    terminal = Terminal(tmp_path, *words)
    assert terminal.read_until(lambda: any(in_work in each for each in in_hand(store)))
    if key:
        os.write(terminal.master, key)
        assert terminal.end() == code, terminal.text
        *bars, said, nothing = re.split(r"\r?\n", terminal.text)
        assert nothing == "", terminal.text
        found = r"stopped during craft, with 0 of 2 done \(\d+ of \d+ images\); .*To go on: (.*)"
        match = re.fullmatch(found, said)
        assert match is not None, terminal.text
        command = shlex.split(match[1])
        assert command[0] == "python" and "attack.steps=3000" in command
        assert "Traceback" not in terminal.text and "wandb" not in "".join(bars), terminal.text
    else:
        assert terminal.hang_up() == code
    assert not list((store / ".leases").iterdir())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "stopped"
    (end,) = (record.exit for record in records(tmp_path / "run") if record.HasField("exit"))
    assert end.exit_code == 1


@pytest.mark.parametrize("number", sorted(STOPPING))
def test_a_signal_before_any_work(number: signal.Signals) -> None:
    """`nohup` is as if the terminal's end had not come."""
    code = "import os, sys; from experiments.cli import stop; stop.before_work(); "
    command = [sys.executable, "-c", code + f"os.kill(os.getpid(), {int(number)})"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert done.stderr == "stopped before any work. To go on: python -c\n"
    if number == signal.SIGHUP:
        code = f'nohup "{sys.executable}" -c "{command[-1]}"'
        assert subprocess.run(["sh", "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_the_reader_of_its_lines_may_leave(trained: Path, tmp_path: Path) -> None:
    """As `| head -1` does: the run goes on to its end, in silence."""
    words = ["experiment=store", f"store.dir={trained / 'store'}", "hydra.run.dir=unread"]
    with (tmp_path / "unread.txt").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "evaluate.py"), *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"store: ")
        process.stdout.close()
        assert process.wait(600) == 0
        errors.seek(0)
        assert not errors.read()
    assert (tmp_path / "unread" / "report.html").is_file()
