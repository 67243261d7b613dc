"""Every command that the README shows runs, or composes where it needs more than a test has."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import ROOT, run_command

README = (ROOT / "README.md").read_text()
COMMANDS = [
    re.sub(r"\s{2,}#.*", "", line)
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.strip().splitlines()
    if line.startswith("python ")
]
RUN = {  # what a test can afford; the rest is composed
    "python evaluate.py --help",
    "python evaluate.py model.members=[resnet10t,test_vit2,test_mambaout] subset=quick logger=csv",
}


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 7
    assert set(COMMANDS) >= RUN


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    if "--config-dir" in command:
        pytest.skip("needs a config of the user's; test_experiments runs one")
    overrides = [word for word in shlex.split(command)[2:] if not word.startswith("-")]
    # A sweep's first value stands for the others.
    overrides = [re.sub(r"^([^\[{]*?=[^,\[{]*),.*", r"\1", word) for word in overrides]
    overrides = [re.sub(r"^model=(test_\w+)$", r"model.members=[\1]", word) for word in overrides]
    script = Path(shlex.split(command)[1]).stem
    overrides = [re.sub(r"^source=glob\(.*\)$", "source=x", word) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(script, overrides=overrides)
    assert config.experiment.get("script", "evaluate") == script
    assert config.experiment.study.startswith("experiments.")


@pytest.mark.parametrize("command", sorted(RUN))
def test_commands_run(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    faster = ["recipe.epochs=1", "attack.steps=2"] if "--help" not in words else []
    done = run_command(*words[2:], *faster, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_file_on_the_map_exists() -> None:
    rows = re.findall(r"^\| ((?:`[^|]*`,? ?)+) \|", README, re.M)
    folder = Path()
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row):
            path = Path(name)
            # `a/b.py`, `c.py` and `a/b/`, `c/` name siblings.
            path = path if (ROOT / path).exists() else folder / path
            assert (ROOT / path).exists(), name
            folder = path.parent
