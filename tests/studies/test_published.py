"""The published 69 (`similarity=sat69`), by the commands of docs/published.md, from copies."""

import re
import shlex
import urllib.request
from html import unescape
from pathlib import Path

import pytest

from experiments.cli import sat69
from experiments.cli.config import composed
from experiments.cli.launch import spelled_out
from tests import helpers
from tests.conftest import Mistake

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
HERE = f"similarity.dir={REFERENCE}"
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published data are not beside the project"
)
QUESTIONS = {
    "experiment=select similarity=sat69 select.size=3": "twins_pcpvt_base + xcit_medium_24",
    "experiment=select similarity=sat69 select.max_params=60e6": "coat_lite_small + ",
    "experiment=select similarity=sat69 select.student=deit_small_patch16_224": (
        "resnet101 is the most promising teacher for deit_small_patch16_224"
    ),
    "experiment=relatives similarity=sat69 model=resnet50": (
        "resnet50 is most like resnetblur50 (s = 3.56)"
    ),
    "experiment=within similarity=sat69": "Yes: a pair within a group has 2.88 on average",
    "experiment=teachers similarity=sat69": "convit_base, crossvit_base_240, ",
    "experiment=compare a=sat69 b=sat69": "Yes, they agree on which models are alike",
}


def commands(text: str) -> list[list[str]]:
    """The commands in a text, as words."""
    found = re.findall(r"python (?:evaluate|train)\.py [^<\n`]*", text)
    return [shlex.split(command) for command in found]


def check_command(words: list[str]) -> None:
    """Raises where a command is not complete: it has to compose, and to name its data."""
    script = Path(words[1]).stem
    words = [re.sub(r"^(teacher=[^,\[]*),.*", r"\1", w) for w in words[2:] if w != "-m"]
    config = composed(script, spelled_out(words))
    assert config.experiment.get("script", "evaluate") == script


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_begins_with_a_verdict_and_its_commands_are_complete(
    question: str, tmp_path: Path
) -> None:
    name, *rest = question.split()
    run = helpers.run(name.split("=")[1], tmp_path / "run", [*rest, HERE, "logger=none"])
    assert helpers.page_text(run / "report.html", "answer").startswith(QUESTIONS[question])
    answer = unescape((run / "report.html").read_text()).split('class="answer"')[1]
    answer = answer.split("<section")[0]
    printed = commands(answer)
    if "select.student" in question or "teachers" in question:
        assert printed
    for words in printed:
        check_command(words)
    assert not re.search(r"\d\.\d+e-\d", answer)


def stand_ins(folder: Path) -> list[str]:
    """Overrides by which the files come from copies, under the names that they are published by."""
    names = {"scores": "a.csv", "components": "b c.csv", "accuracies": "d.csv"}
    for key, name in names.items():
        (folder / name).write_bytes((REFERENCE / sat69.COPIES[key]).read_bytes())
    urls = {key: (folder / name).as_uri() for key, name in names.items()}
    return ["similarity=sat69", *(f"similarity.{key}.url='{url}'" for key, url in urls.items())]


def test_files_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*stand_ins(tmp_path), f"store.dir={tmp_path / 'store'}", "logger=none"]
    first = helpers.run("within", tmp_path / "first", overrides)
    stored = sorted(file.name for file in (tmp_path / "store" / "published").iterdir())
    assert stored == ["a.csv", "b c.csv", "d.csv"]
    monkeypatch.setattr(urllib.request, "urlopen", None)
    second = helpers.run("within", tmp_path / "second", overrides)
    assert (first / "within.csv").read_bytes() == (second / "within.csv").read_bytes()


def test_mistakes(mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["experiment=within", *stand_ins(tmp_path)]
    missing = "similarity.accuracies.url=file:///no/where.csv"
    said = mistake(*overrides, missing)
    assert (
        "file:///no/where.csv" in said and "published" in said and "similarity.dir=FOLDER" in said
    )
    assert "invalid hash value" in mistake(
        *overrides, "similarity.scores.sha256=abc", "store.dir=new"
    )
    assert "is not the published file" in mistake(*overrides, "similarity.scores.sha256=abc")
    (tmp_path / "d.csv").write_text("model,top5\na,1\n")
    other = "store.dir=other"
    assert "expected model, top1, param_count" in mistake(*overrides, other)
    assert "lacks SAT_release.csv (or sat69_scores.csv)" in mistake(
        "experiment=within", f"similarity.dir={tmp_path}"
    )
    assert "relatives.model: the matrix has no model 'resnet5O'; did you mean resnet50" in mistake(
        "experiment=relatives", "model=resnet5O", HERE
    )
    assert "needs the models' logits on images" in mistake("experiment=ensemble", HERE)
    assert "b has no default" in mistake("experiment=compare", "a=sat69", HERE)
    assert "does not read similarity" in mistake("similarity=sat69")
