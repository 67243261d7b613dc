"""Advice: the search against enumeration, the prediction against data, and the guideline."""

from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from netkin.analysis import select
from netkin.analysis.matrix import Matrix
from netkin.analysis.select import Prediction, mean_similarity
from netkin.analysis.statistics import pearson, power
from netkin.errors import UserError
from tests import helpers
from tests.conftest import Mistake
from tests.helpers import MEMBERS, has_figures, on_four


def scores(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).uniform(1, 4, (n, n))
    return (a + a.T) / 2


@given(st.integers(3, 8), st.integers(2, 4), st.integers(0, 100), st.booleans())
def test_the_search_finds_the_best_of_all(n: int, size: int, seed: int, include: bool) -> None:
    size = min(size, n)
    s = scores(n, seed)
    must = [n - 1] if include else []
    found = select.search(lambda g: mean_similarity(s, g), n, size, must)
    every = [g for g in combinations(range(n), size) if {*must} <= {*g}]
    assert sorted(map(tuple, found.tolist())) == every
    best = min(every, key=lambda g: np.mean([s[a, b] for a, b in combinations(g, 2)]))
    assert tuple(found[0]) == best


def test_a_narrow_beam_still_finds_good_ensembles_within_the_parameters() -> None:
    s = scores(15)
    params = np.arange(1.0, 16.0)
    found = select.search(lambda g: mean_similarity(s, g), 15, 4, (), params, 20.0, keep=30)
    assert (params[found].sum(axis=1) <= 20).all()
    whole = select.search(lambda g: mean_similarity(s, g), 15, 4, (), params, 20.0)
    assert mean_similarity(s, found[:1])[0] <= np.quantile(mean_similarity(s, whole), 0.05)
    with pytest.raises(UserError, match="max_params=5 is less than any ensemble of 4"):
        select.search(lambda g: mean_similarity(s, g), 15, 4, (), params, 5.0)


def test_the_prediction_recovers_the_line_that_made_the_data() -> None:
    s, errors = scores(9), np.linspace(0.1, 0.3, 9)
    groups = np.array([*combinations(range(9), 3)])
    truth = Prediction(0.6, -0.1, errors, s)
    found = select.fit_prediction(s, errors, groups, truth(groups))
    assert (found.intercept, found.slope) == pytest.approx((0.6, -0.1))
    nobody = select.fit_prediction(s, np.zeros(9), groups, np.zeros(len(groups)))
    assert (nobody(groups) == 0).all()


def test_expected_errors_are_those_of_correlated_normal_margins() -> None:
    errors, rho = np.array([0.1, 0.2, 0.3]), 0.6
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(400_000, 1)), rng.normal(size=(400_000, 3))
    margins = np.sqrt(rho) * shared + np.sqrt(1 - rho) * own - norm.ppf(errors)
    measured = (margins.mean(axis=1) < 0).mean()
    found = select.expected_error(errors, np.array([[0, 1, 2]]), rho)
    assert found[0] == pytest.approx(measured, abs=0.002)
    alike = select.expected_error(errors, np.array([[1, 1]]), 1.0)
    assert alike[0] == pytest.approx(0.2)


def test_similarity_chooses_only_among_errors_that_do_not_differ() -> None:
    expected, similarity = np.array([0.10, 0.102, 0.2, 0.101]), np.array([3.0, 2.0, 1.0, 2.5])
    order, near = select.least_similar_of_the_best(expected, similarity, 0.003)
    assert order.tolist() == [1, 3, 0, 2] and near == 3
    order, near = select.least_similar_of_the_best(expected, similarity, 0.0)
    assert order[0] == 0 and near == 1


def test_what_similarity_adds_is_measured_on_held_out_models() -> None:
    s, errors = scores(9), np.linspace(0.1, 0.3, 9)
    groups = np.array([*combinations(range(9), 3)])
    truth = Prediction(0.6, -0.1, errors, s)(groups)
    found = select.held_out_models(s, errors, groups, truth)
    assert found is not None and found["models"] == 9
    assert found["r"] == pytest.approx(1) and found["error"] == pytest.approx(0, abs=1e-9)
    assert found["r_alone"] < 0.99 and 0 < found["low"] < found["gain"] < found["high"]
    assert found["gain"] == pytest.approx(found["error_alone"] - found["error"])
    assert select.held_out_models(s, errors, groups[:1], truth[:1]) is None
    four = groups[(groups < 4).all(axis=1)]
    assert select.held_out_models(s, errors, four, truth[: len(four)]) is None


def test_similarity_that_adds_nothing_is_not_said_to_add() -> None:
    """ERR is random; similarity of the models, too."""
    errors = np.linspace(0.1, 0.3, 10)
    groups = np.array([*combinations(range(10), 2)])
    gains = []
    for seed in range(60):
        reduction = np.random.default_rng(seed).uniform(0.2, 0.4, len(groups))
        measured = errors[groups].mean(axis=1) * (1 - reduction)
        found = select.held_out_models(scores(10, seed), errors, groups, measured)
        assert found is not None
        gains.append(found["low"] > 0)
    assert np.mean(gains) <= 0.05


def test_the_power_of_a_study_is_that_of_its_test() -> None:
    """Of studies with 25 students and the paper's r a third finds it."""
    rng, found, r = np.random.default_rng(0), [], select.STUDENTS_R
    for _ in range(4000):
        x, y = rng.normal(size=(2, 25))
        found.append(pearson(x, r * x + np.sqrt(1 - r**2) * y).p < 0.05)
    assert power(r, 25) == pytest.approx(np.mean(found), abs=0.025)
    enough = select.teachers_for_power()
    assert power(r, enough) >= select.POWER > power(r, enough - 1)
    assert power(0.0, 25) == pytest.approx(0.05) and np.isnan(power(r, 3))


def test_teachers_by_the_guideline() -> None:
    names = ["student", "vit near", "vit far", "cnn far", "cnn middle", "cnn near"]
    bases = ["Transformer"] * 3 + ["CNN"] * 3
    s = np.zeros((6, 6))
    s[0, 1:] = [4, 1.8, 1, 2.5, 3]
    ranked = select.teachers(s, 0, bases, names)
    order = ["cnn far", "vit near", "cnn middle", "cnn near", "vit far"]
    assert ranked["teacher"].to_list() == order
    assert [names[i] for i in ranked["position"]] == order
    assert [*(ranked["base_architecture"] == "Transformer")] == [name[0] == "v" for name in order]
    assert ranked["fit"].to_list() == pytest.approx([1, 1, 0.5, 1 / 3, 0.8 / 3])


def test_select(folder: Path) -> None:
    """Ensembles of two, whose errors ensemble_pairs.csv has; and teachers by base architecture."""
    run = on_four("select", folder, "select.size=2", "select.student=vit_ti", "select.top=6")
    has_figures(run, "select_ensembles", "select_teachers")
    table = pl.read_csv(run / "select_ensembles.csv")
    assert table.height == 6 and table["predicted_error"].is_sorted()
    pairs = pl.read_csv(on_four("ensemble", folder) / "ensemble_pairs.csv")
    measured = {frozenset(row["models"].split(" + ")): row for row in table.to_dicts()}
    for row in pairs.to_dicts():
        found = measured[frozenset((row["a"], row["b"]))]
        assert found["measured_error"] == pytest.approx(row["top1_error"])
        assert found["mean_similarity"] == pytest.approx(row["similarity"])
        assert found["measured_low"] <= row["top1_error"] <= found["measured_high"]
    teachers = pl.read_csv(run / "select_teachers.csv")
    assert set(teachers["teacher"]) == {*MEMBERS} - {"vit_ti"}
    (own,) = teachers.filter(teacher="other").to_dicts()
    assert own["base_architecture"] == "Transformer" and own["reason"].startswith("same base")
    twin = 202_426 + 214_218
    with_limit = on_four("select", folder, "select.size=2", f"select.max_params={twin}")
    assert (pl.read_csv(with_limit / "select_ensembles.csv")["params"] <= twin).all()

    Matrix(tuple("abcd"), scores(4)).table().write_csv(folder / "abcd.csv")
    (folder / "accuracies.csv").write_text("model,accuracy\na,0.9\nb,0.8\nc,0.7\nd,0.1\n")
    arguments = [f"similarity={folder / 'abcd.csv'}", "logger=none", "select.include=[c]"]
    blind = helpers.run("select", folder / "blind", arguments)
    table = pl.read_csv(blind / "select_ensembles.csv")
    assert table.height == 3 and table["models"].str.contains("c").all()
    assert table["mean_similarity"].is_sorted() and "measured_error" not in table.columns
    arguments += [f"select.accuracies={folder / 'accuracies.csv'}", "select.size=2"]
    table = pl.read_csv(helpers.run("select", folder / "blind", arguments) / "select_ensembles.csv")
    assert "d" not in table["models"][0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["select.size=5"], "select.size must be 2 to 4, the number of models, got 5"),
        (["select.include=[a,b,c,d]"], "select.include names 4 models, more than select.size=3"),
        (["select.include=[x]"], "select.include: the matrix has no model 'x'"),
        (["select.student=aa"], "select.student: the matrix has no model 'aa'"),
        (["select.max_params=5"], "select.max_params needs the models' sizes"),
        (["select.accuracies=none.csv"], "none.csv cannot be read"),
        (["select.student=a"], "components"),
    ],
)
def test_mistakes(mistake: Mistake, arguments: list[str], expected: str, tmp_path: Path) -> None:
    Matrix(tuple("abcd"), scores(4)).table().write_csv(tmp_path / "m.csv")
    assert expected in mistake("experiment=select", "similarity=m.csv", *arguments)
