"""A small zoo that is trained once a session, and the real command as a process.

Test files run side by side, one a core (pytest-xdist): each process has one thread.
"""

import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "busy",  # a busy machine is no failure
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("busy")
ROOT = Path(__file__).parent.parent
SMALL = ["model.members=[test_byobnet,vit_ti]", "recipe.epochs=4", "attack.steps=8", "subset=quick"]
"""Overrides for a run of seconds: two members, few epochs, few steps, few images."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the small zoo, which is trained once a process, are slow."""
    for item in items:
        if isinstance(item, pytest.Function) and "small_run" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


def forget(cwd: Path, overrides: tuple[str, ...]) -> None:
    """Let a run's folder be of another config: most tests use one for several."""
    for folder in (
        text.split("=", 1)[1] for text in overrides if text.startswith("hydra.run.dir=")
    ):
        (cwd / folder / ".run.json").unlink(missing_ok=True)


def run_command(
    *overrides: str, cwd: Path, script: str = "evaluate.py", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, as a user would start it."""
    forget(cwd, overrides)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *overrides],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def run_here(*overrides: str, cwd: Path, again: bool = False) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has imported everything: for tests of what it does.

    With `again` its folder stays that of the config it was used for.
    """
    if not again:
        forget(cwd, overrides)
    import evaluate
    from experiments.cli.launch import launch

    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["evaluate.py", *overrides, "hardware.members_at_once=1"])
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        try:
            launch(evaluate.main)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(list(overrides), code, out.getvalue(), err.getvalue())


Mistake = Callable[..., str]


@pytest.fixture
def mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Mistake:
    """The one line that a command prints for overrides that are wrong, having made nothing."""

    def line(*overrides: str, script: str = "evaluate") -> str:
        from experiments.cli.launch import launch

        folders = ("hydra.run.dir=run", "hydra.sweep.dir=sweep", "logger=none")
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *folders, *overrides])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            launch(importlib.import_module(script).main)
        err = capfd.readouterr().err
        assert stop.value.code == 1
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert not list((tmp_path / "store").rglob("*.safetensors"))
        return err

    return line


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small zoo ran once: `store/`, and the run's outputs in `first/`."""
    folder = tmp_path_factory.mktemp("small")
    done = run_command(*SMALL, "hydra.run.dir=first", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny batches gain nothing from a second thread, and lose much of it to a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
