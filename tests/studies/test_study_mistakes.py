"""What a user of the studies gets wrong: one clear line each."""

from pathlib import Path

import numpy as np
import pytest

from netkin.analysis.matrix import Matrix
from tests.conftest import Mistake


@pytest.fixture
def matrices(tmp_path: Path) -> None:
    """Matrices in files of the folder that the commands run in."""
    scores = np.array([[9, 1, 2], [1, 9, 6], [2, 6, 9.0]])
    Matrix(("test_resnet", "vit_ti", "c"), scores).table().write_csv(tmp_path / "three.csv")
    Matrix(("a", "b", "c"), np.ones((3, 3))).table().write_csv(tmp_path / "constant.csv")
    (tmp_path / "wide.csv").write_text(",a,b\na,1,2\n")
    (tmp_path / "rest.csv").write_text("model,kind\nvit_ti,a\nc,b\n")
    (tmp_path / "folder").mkdir()


MEANING = [
    ("clusters similarity=three.csv k=10", "k must be at most 3, the number of models, got 10"),
    ("clusters similarity=three.csv k=none", "k must be "),
    ("clusters similarity=three.csv components=rest.csv", "lacks 1 of the 3 models: test_resnet"),
    ("clusters similarity=three.csv components=no.csv", "no.csv cannot be read"),
    ("importance similarity=three.csv", "give them with components=path.csv"),
    ("components model.members=[resnet5O]", "no model 'resnet5O'; did you mean resnet50"),
    ("components model.members=[resnet18] components=rest.csv", "1 of the 1 models: resnet18"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("within similarity=wide.csv", "is not square: 1 rows and 2 columns"),
        ("compare a=three.csv b=folder", "b=folder has no similarity.csv"),
        ("relatives similarity=folder model=c", "folder cannot be read (it is a folder)"),
        (
            "relatives similarity=three.csv model=c components=folder",
            "folder cannot be read (it is a folder); expected a CSV file",
        ),
        (
            "probe predictions=folder",
            "folder cannot be read (it is a folder); expected a CSV file with the columns",
        ),
        ("budget budget.steps=4", "budget.steps must be a list, each a whole number"),
        ("attacks sources=x", "sources must be a list of members such as [vit_s], got x"),
        ("pairwise dataset=null", "dataset is one of compatible, digits"),
        (
            "within similarity=three.csv groups={x:[d]}",
            "groups: group x: no model is named 'd'",
        ),
        (
            "ensemble similarity=three.csv model.members=[test_resnet,vit_ti] store.dir=store",
            "`python evaluate.py experiment=pairwise` with the same dataset, subset and model",
        ),
        (
            "ensemble similarity=three.csv store.dir=store",
            "this study needs the models' logits on images, and three.csv has scores",
        ),
        ("ensemble ensemble.sizes=[1]", "ensemble.sizes must be a list, each a whole number of 2"),
        ("compare a=three.csv b=constant.csv", "is constant"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MEANING),
    ],
)
@pytest.mark.usefixtures("matrices")
def test_one_line(mistake: Mistake, arguments: str, expected: str) -> None:
    experiment, *overrides = arguments.split()
    assert expected in mistake(f"experiment={experiment}", *overrides)


@pytest.mark.parametrize("experiment", ["measures", "precision"])
def test_studies_that_need_the_models_have_no_key_for_a_file(
    experiment: str, mistake: Mistake
) -> None:
    error = mistake(f"experiment={experiment}", "similarity=x.csv")
    assert "there is no setting similarity; it is one of experiment=clusters" in error
