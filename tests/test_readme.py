"""Every command of README.md and docs/ runs, or composes where it needs more than a test has."""

import argparse
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

import experiments.studies
from experiments.cli.config import check_read
from experiments.cli.launch import spelled_out
from netkin.data.subset import draw
from tests.conftest import ROOT, run_here

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPICS = [
    *("attacks", "clusters-and-restarts", "dashboards", "data", "extending", "landmarks", "models"),
    *("outputs", "published", "python", "score", "speed", "statistics", "studies", "training"),
]
RUN = {  # what a test can afford; the rest is composed
    "python evaluate.py model.members=[resnet10t,test_vit2,test_mambaout] subset=quick logger=csv",
}
FLAGS = {"--config-dir": True, "--cfg": True, "--help": False, "-m": False}
"""The flags of commands, and whether a value follows."""


def commands_of(page: Path) -> list[str]:
    """The commands of a page's bash blocks, without their comments."""
    lines = [
        re.sub(r"\s+#\s.*", "", line)
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
        for line in block.strip().splitlines()
    ]
    return [line for line in lines if line.startswith("python ")]


def is_script(command: str) -> bool:
    """Whether it is a benchmark, which is not composed by Hydra."""
    return command.startswith("python -m ")


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


def example_files(page: Path) -> dict[str, str]:
    """The files that a page shows in full: "`path`:", and a block. Path to content."""
    pattern = r"^`([^`\n]+)`:\n\n```\w+\n(.*?)```"
    return dict(re.findall(pattern, page.read_text(), re.S | re.M))


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of docs/extending.md, as if they lay in the repository."""
    for name, content in example_files(ROOT / "docs" / "extending.md").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    shutil.copytree(tmp_path / "conf", tmp_path / "my_conf", dirs_exist_ok=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        experiments.studies,
        "__path__",
        [*experiments.studies.__path__, str(tmp_path / "experiments" / "studies")],
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_attack", "my_data", "experiments.studies.extremes"):
        sys.modules.pop(name, None)


def overrides_of(command: str) -> list[str]:
    """What a command changes in the config; a sweep's first value stands for the others."""
    words, overrides = iter(shlex.split(command)[2:]), []
    for word in words:
        if word in FLAGS:
            if FLAGS[word]:
                next(words)
            continue
        word = re.sub(r"^([^\[{]*?=[^,\[{(]*),.*", r"\1", word)
        word = re.sub(r"^(\w+)=(?:glob|range)\(.*\)$", r"\1=0", word)
        overrides.append(word)
    return spelled_out(overrides)


def composed(command: str, extra_configs: Path) -> DictConfig:
    """The config of a command; groups are searched in `extra_configs`, too."""
    script = Path(shlex.split(command)[1]).stem
    search = [f"hydra.searchpath=[file://{extra_configs}]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(script, overrides=[*overrides_of(command), *search])


def test_every_page_shows_commands() -> None:
    assert [page.stem for page in PAGES[1:]] == TOPICS
    for page in PAGES[1:]:  # each starts with one, or with a call (tests/test_api.py)
        start = "python\nimport netkin\n" if page.stem == "python" else "bash\npython "
        assert re.match(rf"# [^\n]+\n\n```{start}", page.read_text()), page
    assert commands_of(PAGES[0])
    assert set(COMMANDS) >= RUN


@pytest.mark.parametrize("command", [c for c in COMMANDS if not is_script(c)])
def test_commands_compose(command: str, examples: Path) -> None:
    config = composed(command, examples / "my_conf")
    script = Path(shlex.split(command)[1]).stem
    assert config.experiment.get("script", "evaluate") == script
    check_read(config, script, overrides_of(command))
    module = config.experiment.study
    assert callable(importlib.import_module(module).run), module


@pytest.mark.parametrize("command", [c for c in COMMANDS if is_script(c)])
def test_benchmarks_take_their_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/benchmarks run them."""
    _, _, module, *arguments = shlex.split(command)
    main = importlib.import_module(module).main
    if not arguments:
        return
    parse, seen = argparse.ArgumentParser.parse_args, []

    def stop(parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        seen.append(parse(parser, *given))
        raise InterruptedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(InterruptedError):
        main(arguments)
    assert seen


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(RUN))
def test_commands_run(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    done = run_here(*words[2:], "recipe.epochs=2", "attack.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_example_study_runs(examples: Path) -> None:
    scores = ROOT / "experiments" / "results" / "figures" / "digits_similarity.csv"
    arguments = ["experiment=extremes", f"similarity={scores}", "logger=none", "hydra.run.dir=run"]
    done = run_here("--config-dir", str(examples / "my_conf"), *arguments, cwd=examples)
    assert done.returncode == 0, done.stderr
    assert "Most similar: test_convnext and test_convnext2 (s = 4.6" in done.stdout
    assert (examples / "run" / "extremes.csv").read_text().count("\n") == 67
    assert (examples / "run" / "report.html").is_file()


def test_the_example_attack_stays_in_its_ball(examples: Path) -> None:
    attack = instantiate(composed("python evaluate.py attack=mine", examples / "my_conf").attack)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 2))
    pixels = torch.rand(5, 3, 4, 4)
    labels = model(pixels).argmax(1)
    changed = attack.perturb(model, pixels, labels, list("abcde"))
    assert 0 < (changed - pixels).abs().max() <= attack.eps + 1e-6
    loss = torch.nn.functional.cross_entropy
    assert loss(model(changed), labels) > loss(model(pixels), labels)


def test_the_example_dataset_gives_images(examples: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    np.savez(examples / "test.npz", images=pixels, labels=[0, 1, 2, 0, 1, 2])
    config = composed(
        "python evaluate.py dataset=arrays subset=full model=digits recipe=digits",
        examples / "my_conf",
    )
    images = instantiate(config.dataset.images)
    subset = draw(images, **config.subset)
    assert subset.classes == ("0", "1", "2") and sorted(subset.labels) == [0, 0, 1, 1, 2, 2]
    for position, label in zip(subset.positions, subset.labels, strict=True):
        assert images.labels[position] == label
        assert (np.asarray(images.load(position)) == pixels[position]).all()
    assert not images.notes  # as of every `netkin.data.images.Images`


def test_links_and_anchors_lead_somewhere() -> None:
    for page in [*PAGES, *(ROOT / "experiments" / "results").glob("*.md"), ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text()):
            link = "".join(target)
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            file = page.parent / name if name else page
            assert file.is_file(), f"{page.name}: {link}"
            if anchor:
                assert anchor in anchors_of(file), f"{page.name}: {link}"


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


def test_the_readme_is_short() -> None:
    """At most 1,000 words, as `wc -w` counts them: prose, tables, commands and their comments."""
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_every_file_on_the_map_exists() -> None:
    text = (ROOT / "README.md").read_text().partition("## Map")[2].partition("\n## ")[0]
    folders, named = [ROOT], set()
    for indent, row in re.findall(r"^( *)- (`.*)$", text, re.M):
        names, _, description = row.partition(": ")
        del folders[len(indent) // 2 + 1 :]
        paths = [folders[-1] / name for name in re.findall(r"`([^`]+)`", names)]
        for path in paths:
            assert path.exists(), row
        for name in re.findall(r"`([\w/]+(?:/|\.py))`", description):
            assert (paths[0] / name).exists() or (ROOT / name).exists(), row
        named.update(paths)
        folders.append(paths[0])
    for parent in ("src/netkin", "experiments"):  # every folder has its row
        for path in (ROOT / parent).iterdir():
            if path.is_dir() and not path.name.startswith(("_", ".")):
                assert path in named, path
