"""What tests share: the command, a small trained store, and the rule that a test leaves nothing.

- `run_here(*overrides, cwd=FOLDER, script="evaluate")` is the command in this process, without a
  logger and without workers unless given, and returns its code, stdout and stderr. `run_command`
  is a process, as a user starts it: for signals, terminals and SLURM.
- `trained` is a folder made once for all workers, which tests only read: `store/` has the weights,
  clean predictions, noise, adversarial images and outcomes of four members (tests/helpers.py);
  `first/` has the outputs of a run of two of them with the overrides SMALL, `stdout.txt` what it
  printed, and `four/` the outputs of all four. A test that changes it fails.
- `folder` is the test's own copy of it, to be written to; `small_run` the same for tests that take
  longer than a few seconds, which are thereby slow.
- `mistake(*overrides, script="evaluate")` is the one line that a wrong command prints.
- After each test, handlers, files, signals, environment, torch's, Hydra's and matplotlib's state
  are compared with those before (tests/isolation.py), and restored; what was left is its failure.

README's `pytest` runs all but the marks slow, cluster and real; `-m` on the command line replaces
that. Test files run side by side, one a core (pytest-xdist), each with one thread.
"""

import fcntl
import importlib
import io
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # no test waits for a network

from hypothesis import HealthCheck, settings

settings.register_profile(
    "busy",  # a busy machine is no failure
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("busy")
ROOT = Path(__file__).parent.parent
SMALL = [
    "model.members=[test_byobnet,vit_ti]",
    "recipe=digits_adamw",
    "recipe.epochs=4",
    "attack.steps=8",
    "subset=quick",
]
"""Overrides for a run of seconds: two members, few epochs, few steps, few images. Its networks are
weaker than those of recipe=digits, so that they err on enough images to count."""
TRAINED = ROOT / "tests" / "trained"
"""The weights of SMALL's two members, as a run with an empty store makes them (store/weights)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def of_the_zoo(item: pytest.Item) -> bool:
        return isinstance(item, pytest.Function) and "trained" in item.fixturenames

    for item in items:
        if isinstance(item, pytest.Function) and "small_run" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    # First: one worker makes the zoo while the others, which begin further on, do without it.
    items.sort(key=lambda item: not of_the_zoo(item))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-answers", action="store_true", help="record tests/answers.txt")


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


def run_here(
    *overrides: str, cwd: Path, script: str = "evaluate", again: bool = False
) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has imported everything.

    Fails where the command leaves files open.

    Args:
        overrides: as typed; logger=none, one process and figures as small PNGs are added, where
            they say nothing of these.
        cwd: the folder that the command is started in.
        script: evaluate or train.
        again: whether the run's folder stays that of the config it was used for.
    """
    from experiments.cli.launch import launch
    from tests import isolation

    if not again:
        forget(cwd, overrides)
    main = importlib.import_module(script).main
    first = next((i for i, text in enumerate(overrides) if "=" in text), len(overrides))
    added = _unless_given(overrides, script)  # beside others: flags end a list of overrides
    typed = [*overrides[:first], *added, *overrides[first:]]
    out, err, opened = io.StringIO(), io.StringIO(), isolation.open_files(cwd)
    with (
        isolation.restored(),
        coarse_figures(),
        warnings.catch_warnings(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        os.chdir(cwd)
        sys.argv[:] = [f"{script}.py", *typed]
        try:
            launch(main)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        left = isolation.open_files(cwd) - opened
    assert not left, f"left open by {' '.join(typed)}: {', '.join(left)}"
    return subprocess.CompletedProcess(typed, code, out.getvalue(), err.getvalue())


@contextmanager
def coarse_figures() -> Iterator[pytest.MonkeyPatch]:
    """Figures of few pixels, in a block: drawing takes much of a command on stored outcomes."""
    from netkin.report import beside, style

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "MOST", 0)  # another process would not know of the pixels
        patch.setattr(style, "DPI", 60)
        patch.setattr(style, "SHARP", 60)
        yield patch


def _unless_given(overrides: tuple[str, ...], script: str) -> list[str]:
    keys = {text.partition("=")[0].split(".")[0] for text in overrides}
    added = [] if "logger" in keys else ["logger=none"]
    if not any("figure.formats" in text for text in overrides):
        added.append("figure.formats=[png]")
    if not any("hardware.threads" in text for text in overrides):
        added.append("hardware.threads=1")  # tests run beside each other
    if script == "evaluate" and not any("hardware.members_at_once" in text for text in overrides):
        added.append("hardware.members_at_once=1")
    return added


Mistake = Callable[..., str]


@pytest.fixture
def mistake(tmp_path: Path) -> Mistake:
    """The one line that a command prints for overrides that are wrong, having made nothing."""

    def line(*overrides: str, script: str = "evaluate") -> str:
        folders = ("hydra.run.dir=run", "hydra.sweep.dir=sweep")
        done = run_here(*folders, *overrides, cwd=tmp_path, script=script)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert not list((tmp_path / "store").rglob("*.safetensors"))
        return done.stderr

    return line


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, by its name."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the small zoo, which tests only read; see this module's docstring."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "trained"
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _train(shared / "training")
            (shared / "training").rename(folder)
    before = _contents(folder)
    yield folder
    assert _contents(folder) == before, "a test has changed what tests share: use `folder`"


def _train(folder: Path) -> None:
    from tests import helpers

    shutil.rmtree(folder, ignore_errors=True)  # of a worker that was stopped
    weights = folder / "store" / "weights" / "digits"
    shutil.copytree(TRAINED, weights)
    first = (*SMALL, "hydra.run.dir=first", "logger=csv", "figure.formats=[png,pdf]")
    done = run_here(*first, cwd=folder)
    if done.returncode:  # what training depends on has changed since: train again
        shutil.rmtree(folder / "store")
        done = run_here(*first, again=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    done = run_here(*helpers.overrides(folder), "hydra.run.dir=four", cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the small zoo's folder, for this test alone."""
    return shutil.copytree(trained, tmp_path / "small")


@pytest.fixture
def small_run(folder: Path) -> Path:
    """The same as `folder`, for tests that are slow."""
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test leaves this process as it was, and no file open."""
    from tests import isolation  # here, as it imports torch, which the workers' parent needs not

    base = tmp_path_factory.getbasetemp()
    before, opened = isolation.state(), isolation.open_files(base)
    yield
    found = isolation.differences(before, isolation.state())
    isolation.restore(before)
    for name, module in list(sys.modules.items()):  # a test's own, whose names others use, too
        if str(getattr(module, "__file__", None)).startswith(str(base)):
            del sys.modules[name]
    importlib.invalidate_caches()
    found += [f"open: {name}" for name in isolation.open_files(base) - opened]
    if found:
        pytest.fail("this test leaves behind " + "; ".join(found), pytrace=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny batches gain nothing from a second thread, and lose much of it to a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
