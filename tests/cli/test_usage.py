"""What a command says of itself: help, its first line, jobs of a sweep, and the index of runs."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from experiments.cli import index, usage
from experiments.cli.config import CONF, settings
from netkin.jobs.progress import Bars
from tests.conftest import SMALL, Mistake, run_here


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_help_names_every_experiment_with_what_it_answers(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usage.show(script, ["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for file in (CONF / "experiment").glob("*.yaml"):
        assert re.search(rf"(?m)^  {file.stem}(?:\n {{20}}| +)\S", text), file.stem
    for key, setting in settings("", script).items():
        assert f"  {key}: " in text and setting.about in " ".join(text.split())


@pytest.mark.parametrize("option", ["attack=pgd", "experiment=clusters", "dataset=imagenet"])
def test_help_of_an_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage.show("evaluate", [option, "-h"])
    text = capsys.readouterr().out
    assert text.startswith(f"{option}\n# ") and "@package" not in text
    if option.startswith("experiment"):
        assert re.search(r"\n# python (evaluate|train)\.py ", text)
        assert re.search(r"(?m)^  clusters\.restarts: 1000 +\S", text)


def test_help_of_an_option_that_is_misspelt(mistake: Mistake) -> None:
    assert "clusters" in mistake("experiment=clutsers", "--help")


def test_the_first_line_and_quiet(small_run: Path, tmp_path: Path) -> None:
    store = small_run / "store"
    words = [*SMALL, f"store.dir={store}", "logger=none", "hydra.run.dir=run"]
    done = run_here(*words, cwd=tmp_path)
    assert done.stdout.splitlines()[:2] == [
        f"pairwise: 2 models on digits; attack pgd; store {store}",
        "the store has weights of 2, clean predictions of 2, attacks on 2 of 2 models; 100 images",
    ]
    try:
        quiet = run_here(*words, "quiet=true", cwd=tmp_path)
    finally:
        Bars.quiet = False
    assert quiet.stdout == "\n".join(done.stdout.splitlines()[2:]) + "\n"


@pytest.mark.slow
def test_a_sweep_ends_with_its_jobs_and_index_lists_them(small_run: Path, tmp_path: Path) -> None:
    words = [text for text in SMALL if not text.startswith("attack.steps")]
    words += [f"store.dir={small_run / 'store'}", "logger=none", "hydra.sweep.dir=outputs/sweep"]
    done = run_here("-m", *words, "attack.steps=8,x", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    starts = [line for line in lines if line.startswith("job ")]
    assert starts[0].startswith("job 1 (attack.steps=8): pairwise: 2 models")
    assert re.search(r"0 +attack\.steps=8 +finished +\d\.\d{3}", done.stdout)
    assert "Jobs     outputs/sweep" in lines
    done = run_here("experiment=index", cwd=tmp_path)
    assert done.returncode == 0 and "1 runs below outputs" in done.stdout, done.stderr
    page = (tmp_path / "outputs" / "index.html").read_text()
    assert '<a href="./sweep/0/report.html">sweep/0</a>' in page
    table = pl.read_csv(tmp_path / "outputs" / "index.csv").to_dicts()
    assert [(row["job_type"], row["state"]) for row in table] == [("pairwise", "finished")]
    assert table[0]["similarity/mean"] > 0


def test_files_of_other_programs_are_no_runs(tmp_path: Path) -> None:
    """Nor are half-written ones."""
    run = {"name": "a", "job_type": "pairwise", "state": "finished", "began": "2026", "seconds": 1}
    texts = ["", "{", "[]", "null", "3", '{"numbers": []}', json.dumps({"numbers": {}})]
    texts += [json.dumps({**run, "numbers": {}} | wrong) for wrong in ({"seconds": "x"}, {})]
    for i, text in enumerate(texts):
        folder = tmp_path / f"{i}" / ".hydra"
        folder.mkdir(parents=True)
        (folder.parent / "summary.json").write_text(text)
        (folder / "overrides.yaml").write_text("[a=1]")
    (entry,) = index.runs(tmp_path)
    assert (entry.folder.name, entry.overrides) == (str(len(texts) - 1), ["a=1"])


def test_index_without_a_folder(mistake: Mistake) -> None:
    assert "runs must be a folder of runs such as outputs" in mistake("experiment=index")


def test_help_has_each_experiment_in_one_group() -> None:
    listed = [name for names in usage.EXPERIMENTS.values() for name in names]
    assert sorted(listed) == sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
