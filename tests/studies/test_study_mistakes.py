"""What a user of the studies gets wrong: one clear line each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from netkin.analysis.matrix import Matrix
from tests import helpers
from tests.common.test_mistakes import Mistake, mistake

__all__ = ["mistake"]  # a fixture


@pytest.fixture
def line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a study prints, on matrices in files of this folder."""
    scores = np.array([[9, 1, 2], [1, 9, 6], [2, 6, 9.0]])
    Matrix(("test_resnet", "vit_ti", "c"), scores).table().write_csv(tmp_path / "three.csv")
    Matrix(("a", "b", "c"), np.ones((3, 3))).table().write_csv(tmp_path / "constant.csv")
    (tmp_path / "wide.csv").write_text(",a,b\na,1,2\n")

    def said(*arguments: str) -> str:
        experiment, *rest = arguments
        given = [text.replace("FOLDER", str(tmp_path)) for text in rest]
        with pytest.raises(SystemExit) as stop:
            helpers.run(experiment, tmp_path / "run", [*given, "logger=none"])
        error = capfd.readouterr().err
        assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
        return error

    return said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("within similarity=FOLDER/constant.csv", "is constant: all 3 pairs have the score 1"),
        ("within similarity=FOLDER/wide.csv", "is not square: 1 rows and 2 columns"),
        ("within similarity=FOLDER/no.csv", "no.csv cannot be read"),
        (
            "within similarity=FOLDER/three.csv groups={x:[d]}",
            "groups: no model of group x is named 'd'",
        ),
        ("within similarity=FOLDER/three.csv within.sample=0", "within.sample must be a whole"),
        (
            "ensemble similarity=FOLDER/three.csv model.members=[test_resnet,vit_ti] "
            "store.dir=FOLDER/store",
            "2 of 2 models have no clean logits in",
        ),
        (
            "ensemble similarity=FOLDER/three.csv store.dir=FOLDER/store",
            "three.csv has no model 'vit_s'; did you mean vit_ti",
        ),
        ("ensemble ensemble.sizes=3", "ensemble.sizes must list whole numbers of 2 or more, got 3"),
        ("ensemble ensemble.sizes=[1]", "ensemble.sizes must list whole numbers of 2 or more"),
        ("measures measures.grid=0", "measures.grid must be a whole number"),
        ("attacks similarity=FOLDER/three.csv other=FOLDER/constant.csv", "is constant"),
    ],
)
def test_one_line(line: Callable[..., str], arguments: str, expected: str) -> None:
    assert expected in line(*arguments.split())


@pytest.mark.parametrize("experiment", ["measures", "precision"])
def test_studies_that_need_the_models_have_no_key_for_a_file(
    experiment: str, mistake: Mistake
) -> None:
    error = mistake(f"experiment={experiment}", "similarity=x.csv")
    assert "Key 'similarity' is not in struct" in error


def test_missing_logits_name_the_command_that_makes_them(line: Callable[..., str]) -> None:
    said = line(
        "ensemble",
        "similarity=FOLDER/three.csv",
        "model.members=[test_resnet,vit_ti]",
        "store.dir=FOLDER/store",
    )
    assert "`python evaluate.py experiment=pairwise`" in said
