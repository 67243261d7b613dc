"""The answers of all studies of a matrix, on the twelve digits models' scores as they are recorded.

They stand in tests/answers.txt, so that a change of their words or numbers is seen in review. To
write it anew: pytest -n 0 tests/studies/test_answers.py --rewrite-answers
"""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import ROOT, run_here

ANSWERS = ROOT / "tests" / "answers.txt"
COMMANDS = {
    "clusters": "similarity=digits.csv clusters.draws=10 clusters.seeds=2 clusters.restarts=50",
    "compare": "a=digits.csv b=other.csv",
    "importance": "similarity=digits.csv importance.stages=20",
    "landmarks": "similarity=digits.csv landmarks=6",
    "relatives": "similarity=digits.csv model=vit_ti",
    "teachers": "similarity=digits.csv student=vit_ti teachers.number=6",
    "within": "similarity=digits.csv groups={attention:[vit_s,vit_ti,test_vit]}",
}
SLOW = ("clusters",)


def read() -> dict[str, str]:
    """The recorded answers, by experiment."""
    parts = ANSWERS.read_text().split("# experiment=")[1:] if ANSWERS.exists() else []
    return dict(part.split("\n\n", 1) for part in parts)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """A folder with the recorded scores, and with others that differ by noise."""
    shutil.copy(ROOT / "experiments/results/figures/digits_similarity.csv", tmp_path / "digits.csv")
    table = pl.read_csv(tmp_path / "digits.csv")
    noise = np.random.default_rng(0).normal(0, 0.3, (table.height, table.height))
    s = table.drop("").to_numpy() + np.triu(noise, 1) + np.triu(noise, 1).T
    pl.DataFrame({"": table[""], **dict(zip(table[""], s.T, strict=True))}).write_csv(
        tmp_path / "other.csv"
    )
    return tmp_path


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(e, marks=[pytest.mark.slow] if e in SLOW else []) for e in COMMANDS],
)
def test_answer(experiment: str, scores: Path, request: pytest.FixtureRequest) -> None:
    words = [f"experiment={experiment}", *COMMANDS[experiment].split(), "quiet=true"]
    done = run_here(*words, cwd=scores)
    assert done.returncode == 0, done.stderr
    answer = done.stdout.split("\nReport ")[0].strip() + "\n"
    recorded = read()
    if request.config.getoption("--rewrite-answers"):
        recorded[experiment] = answer
        parts = (f"# experiment={name}\n\n{recorded[name].strip()}\n" for name in sorted(recorded))
        ANSWERS.write_text("\n".join(parts))
    else:
        assert answer.strip() == recorded.get(experiment, "").strip()
