"""Ctrl-C in a terminal, with the default logger, in each stage: one line, whatever W&B does."""

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL
from tests.store.test_restart import TINY, in_hand

LOGGED = [text for text in TINY if text != "logger=csv"]
"""With W&B offline, as users have it."""
STAGES = {"train": "weights/", "craft": "adversarial/"}
"""What processes have in hand in a stage; the second with workers."""


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


@pytest.mark.slow
def test_ctrl_c_in_each_stage(tmp_path: Path) -> None:
    """The terminal sends it to the whole process group."""
    store = tmp_path / "store"
    for stage, product in STAGES.items():
        workers = 2 if stage == "craft" else 1
        terminal = Terminal(
            tmp_path, f"hydra.run.dir={stage}", f"hardware.members_at_once={workers}"
        )
        assert terminal.read_until(lambda p=product: any(p in each for each in in_hand(store)))
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 130, terminal.text
        *bars, said, nothing = re.split(r"\r?\n", terminal.text)
        assert nothing == "" and said.startswith(f"stopped during {stage}, with "), terminal.text
        assert "Traceback" not in terminal.text and "wandb" not in "".join(bars), terminal.text
        assert not in_hand(store)


def test_the_reader_of_its_lines_may_leave(small_run: Path) -> None:
    """As `| head -1` does: the run goes on to its end, in silence."""
    folder = small_run / "unread"
    command = [sys.executable, str(ROOT / "evaluate.py"), *SMALL, f"hydra.run.dir={folder}"]
    with (small_run / "unread.txt").open("w+") as errors:
        process = subprocess.Popen(
            [*command, "logger=csv"],
            cwd=small_run,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"pairwise: ")
        process.stdout.close()
        assert process.wait(600) == 0
        errors.seek(0)
        assert not errors.read()
    assert json.loads((folder / "summary.json").read_text())["state"] == "finished"
    assert (folder / "report.html").is_file()
