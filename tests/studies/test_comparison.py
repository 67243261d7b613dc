"""Scores by two attacks, of two files, and of one direction."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from netkin import similarity
from netkin.analysis.matrix import Matrix
from netkin.analysis.statistics import target_test
from netkin.similarity import Outcomes, resample
from tests import helpers
from tests.conftest import Mistake
from tests.helpers import MEMBERS, four_store, has_figures, on_four


def outcomes(n: int = 3, images: int = 40) -> Outcomes:
    rng = np.random.default_rng(0)
    return Outcomes(
        tuple(f"m{i}" for i in range(n)),
        tuple(map(str, range(images))),
        rng.random((n, images)) < 0.9,
        rng.random((n, n, images)) < 0.4,
    )


def test_one_sided_scores_are_the_two_halves_of_p() -> None:
    found = outcomes()
    halves = np.exp(similarity.one_sided(found)) / 100
    whole = np.exp(similarity.smoothed_matrix(found)) / 100
    np.testing.assert_allclose((halves + halves.T) / 2, whole)
    assert not np.allclose(halves, halves.T)
    for row in similarity.pairs(found).iter_rows(named=True):
        a, b = found.members.index(row["a"]), found.members.index(row["b"])
        n = row["n"]
        rates = [(rate * n + 0.5) / (n + 1) for rate in (row["a_fools_b"], row["b_fools_a"])]
        assert (halves[a, b], halves[b, a]) == pytest.approx(tuple(rates))


def test_one_sided_draws_are_the_draws_of_the_score() -> None:
    found = outcomes()
    counts = resample(40, 6)
    halves = np.exp(similarity.one_sided(found, counts=counts)) / 100
    whole = np.exp(similarity.bootstrap(found, 6)) / 100
    np.testing.assert_allclose((halves + halves.transpose(0, 2, 1)) / 2, whole)


def test_p_over_targets_is_uniform_where_there_is_nothing_and_small_where_there_is() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(100):
        x, y = rng.normal(size=(2, 2, 8))
        x[0, 0] = np.nan
        found.append(target_test(x, y, 99, seed).p)
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.1)
    assert target_test(x, 2 * x, 199).p == 1 / 200
    few = target_test(x[:, :4], 2 * x[:, :4], 199)
    assert (few.permutations, few.p) == (24, 1 / 24)


def test_attacks(folder: Path) -> None:
    """Two attacks, by the numbers of the pairwise study; some sources; one direction; two files."""
    run = on_four("attacks", folder, "attacks=[pgd,{attack: pgd, steps: 2}]", "permutations=99")
    has_figures(run, "attacks")
    table = pl.read_csv(run / "attacks.csv")
    assert table.height == 6 and set(table["other"]) == {"pgd (steps = 2)"}
    (row,) = table.filter(a="vit_ti", b="test_byobnet").to_dicts()
    # attack.steps=8 of the run is kept
    assert row["s_reference"] == pytest.approx(helpers.smoothed_score(folder))
    assert row["s_other"] < row["s_reference"]
    strength = (
        pl.read_csv(run / "white_box.csv").group_by("attack").agg(pl.mean("white_box_success"))
    )
    assert strength.height == 2
    (link,) = pl.read_csv(run / "correlations.csv").to_dicts()
    # Four models: no interval, and all permutations.
    assert link["images_low"] is None and link["models_low"] is None
    assert link["permutations"] == 24 and 1 / 24 <= link["p"] <= 1
    assert 0 <= link["noise_ceiling"] <= 1
    assert "too few models for an interval or a verdict" in (run / "report.html").read_text()
    steps = sorted(four_store(folder).glob("digits/quick-*/pgd-*/outcomes"))

    arguments = ("attacks=[pgd,{attack: pgd, steps: 3}]", "sources=[vit_ti]", "permutations=99")
    run = on_four("attacks", folder, *arguments)
    table = pl.read_csv(run / "attacks.csv")
    assert set(table["a"]) == {"vit_ti"} and set(table["b"]) == {*MEMBERS} - {"vit_ti"}
    (new,) = {*four_store(folder).glob("digits/quick-*/pgd-*/outcomes")} - {*steps}
    assert set(pl.read_parquet(new / "*/*.parquet")["source"]) == {"vit_ti"}
    (link,) = pl.read_csv(run / "correlations.csv").to_dicts()
    assert link["test"] == "target permutation" and link["n"] == 3

    run = on_four("attacks", folder, "one_sided=true", "permutations=99")
    table = pl.read_csv(run / "attacks.csv")
    back = table.filter(reference="one-sided")
    assert back.height == 12 and set(back["other"]) == {"the other direction"}
    turned = back.join(back, left_on=["a", "b"], right_on=["b", "a"])
    assert (turned["s_reference"] == turned["s_other_right"]).all()
    table = table.filter(other="one-sided")
    (pair,) = pl.read_csv(folder / "first" / "pairs.csv").to_dicts()
    for a, b, rate in (("a", "b", "a_fools_b"), ("b", "a", "b_fools_a")):
        (row,) = table.filter(a=pair[a], b=pair[b]).to_dicts()
        k = pair["n"] * pair[rate]
        assert row["s_other"] == pytest.approx(np.log(100 * (k + 0.5) / (pair["n"] + 1)))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 5))
    x = x + x.T
    Matrix(tuple("abcde"), x).table().write_csv(folder / "x.csv")
    Matrix(tuple("edcb"), 1 - x[:0:-1, :0:-1]).table().write_csv(folder / "y.csv")
    arguments = [f"similarity={folder / 'x.csv'}", f"other={folder / 'y.csv'}", "logger=none"]
    run = helpers.run("attacks", folder / "files", arguments)
    (link,) = pl.read_csv(run / "correlations.csv").to_dicts()
    assert link["r"] == pytest.approx(-1) and (link["models"], link["n"]) == (4, 6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["attacks=[pgd]"], "attacks must list two or more"),
        (["attacks=[pgd,pgd]"], "attacks lists pgd twice"),
        (["attack.steps=10"], "attacks: pgd and pgd (steps = 10) are the same attack"),
        (["attacks=[pgd,{attack: pgd, stepz: 3}]"], "attack pgd has no setting 'stepz'; did you"),
        (["attacks=[pgd,{steps: 3}]"], "is an option or {attack: option, ...}"),
        (["sources=[vit_x]"], "sources: the run has no model 'vit_x'; did you mean vit_s"),
        (["similarity=none.csv"], "name the other one with other=path.csv"),
    ],
)
def test_mistakes(mistake: Mistake, arguments: list[str], expected: str) -> None:
    assert expected in mistake("experiment=attacks", *arguments)
