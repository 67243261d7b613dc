"""Two matrices of the same models: files, attacks, directions, precisions, steps and images."""

import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from experiments.studies.compare import carried, cheapest, class_table, passes
from netkin import similarity
from netkin.analysis.matrix import Matrix
from netkin.analysis.statistics import target_test
from netkin.similarity import Outcomes, resample
from tests import helpers
from tests.conftest import Mistake, run_here
from tests.helpers import MEMBERS, four_store, has_figures, on_four, page_text

OWN = OmegaConf.create({"least_r": 0.95, "most_bias": 0.1, "least_inside": 0.9})


def outcomes(n: int = 3, images: int = 40) -> Outcomes:
    rng = np.random.default_rng(0)
    return Outcomes(
        tuple(f"m{i}" for i in range(n)),
        tuple(map(str, range(images))),
        rng.random((n, images)) < 0.9,
        rng.random((n, n, images)) < 0.4,
    )


def test_one_sided_scores_are_the_two_halves_of_p() -> None:
    """In draws of images, too."""
    found = outcomes()
    halves = np.exp(similarity.one_sided(found, counts=resample(40, 6))) / 100
    whole = np.exp(similarity.bootstrap(found, 6)) / 100
    np.testing.assert_allclose((halves + halves.transpose(0, 2, 1)) / 2, whole)
    halves = np.exp(similarity.one_sided(found)) / 100
    whole = np.exp(similarity.smoothed_matrix(found)) / 100
    np.testing.assert_allclose((halves + halves.T) / 2, whole)
    assert not np.allclose(halves, halves.T)
    for row in similarity.pairs(found).iter_rows(named=True):
        a, b = found.members.index(row["a"]), found.members.index(row["b"])
        n = row["n"]
        rates = [(rate * n + 0.5) / (n + 1) for rate in (row["a_fools_b"], row["b_fools_a"])]
        assert (halves[a, b], halves[b, a]) == pytest.approx(tuple(rates))


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
    """Two attacks, by the numbers of the pairwise study; some sources; one direction."""
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
    assert "too few models for an interval or a verdict" in page_text(run / "report.html")
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


def test_compare(folder: Path) -> None:
    """A run with itself, and with one of its members renamed and a score changed."""
    first = folder / "first"
    four = folder / "compared.csv"
    s = np.array([[4, 1, 2, 3], [1, 4, 3, 2.5], [2, 3, 4, 1.5], [3, 2.5, 1.5, 4]])
    names = ["test_byobnet", "vit_ti", "m", "n"]
    pl.DataFrame({"": names, **dict(zip(names, s, strict=True))}).write_csv(four)
    other = s.copy()
    other[0, 1] = other[1, 0] = 1.75
    pl.DataFrame({"": names, **dict(zip(names, other, strict=True))}).write_csv(
        folder / "changed.csv"
    )
    arguments = [f"a={four}", f"b={folder / 'changed.csv'}", "logger=none"]
    done = helpers.run("compare", folder / "compare", arguments)
    has_figures(done, "compare", "differences")
    table = pl.read_csv(done / "compare.csv")
    assert table["difference"].to_list() == [-0.75, 0, 0, 0, 0, 0]
    assert {table["a"][0], table["b"][0]} == {"test_byobnet", "vit_ti"}
    page = page_text(done / "report.html")
    assert "Not certain: 4 models are too few for a verdict." in page
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 5))
    x = x + x.T
    Matrix(tuple("abcde"), x).table().write_csv(folder / "x.csv")
    Matrix(tuple("edcb"), 1 - x[:0:-1, :0:-1]).table().write_csv(folder / "y.csv")
    arguments = [f"a={folder / 'x.csv'}", f"b={folder / 'y.csv'}", "logger=none"]
    done = helpers.run("compare", folder / "files", arguments)
    (link,) = pl.read_csv(done / "correlations.csv").to_dicts()
    assert link["r"] == pytest.approx(-1) and (link["models"], link["n"]) == (4, 6)
    assert "How much of a difference is noise of the images is unknown" in page
    noisy_runs(rng, folder)
    wrong = run_here("experiment=compare", f"a={first}", f"b={four}", cwd=folder)
    assert wrong.returncode == 1 and "share 2 models, expected 3" in wrong.stderr


def noisy_runs(rng: np.random.Generator, folder: Path) -> None:
    """Two measurements of 30 models, each half noise, are two of the same similarities; not where
    both are on the same images, nor where each is certain."""
    upper = np.triu(rng.normal(2, 0.5, (3, 30, 30)), 1)
    s = (upper + upper.transpose(0, 2, 1))[[0, 0]] + (upper + upper.transpose(0, 2, 1))[1:]
    names = tuple(f"m{i}" for i in range(30))
    for half, others, alike in ((1 / 3, True, True), (1 / 3, False, False), (0.98, True, False)):
        for i, scores in enumerate(s):
            run = folder / f"noisy{i}"
            run.mkdir(exist_ok=True)
            Matrix(names, scores).table().write_csv(run / "similarity.csv")
            table = {"halves_of": ["images", "classes"], "r": [half, None]}
            table["images"] = [str(i if others else 0)] * 2
            pl.DataFrame(table).write_csv(run / "agreement.csv")
        arguments = [f"a={folder / 'noisy0'}", f"b={folder / 'noisy1'}", "logger=none"]
        done = helpers.run("compare", folder / "files", arguments)
        (link,) = pl.read_csv(done / "correlations.csv").to_dicts()
        answer = re.findall("(Yes|No|Not certain)[,:]", (done / "report.html").read_text())[0]
        assert link["r"] == pytest.approx(0.5, abs=0.1)
        without = link["r_without_noise"] or link["r"]
        assert without > 0.85 and answer != "No" if alike else without < 0.6 and answer == "No"


@pytest.mark.slow
def test_precision(folder: Path) -> None:
    """Four members in bfloat16 and from another seed, by the numbers of the pairwise study."""
    run = on_four("precision", folder)
    has_figures(run, "precision")
    rows = pl.read_csv(run / "precision.csv")
    variants = ["bf16-mixed", "seed 1", "transfer bf16-mixed"]
    assert rows["other"].unique(maintain_order=True).to_list() == variants
    assert rows.height == 3 * 6
    table = pl.read_csv(run / "correlations.csv")
    for row in table.to_dicts():
        mine = rows.filter(other=row["other"])["difference"].to_numpy()
        assert row["mean_absolute_difference"] == pytest.approx(np.abs(mine).mean())
        assert row["mean_low"] <= row["mean_high"] and 0 <= row["inside_interval"] <= 1
        targets = row["other"].startswith("transfer")
        assert row["differing_pixels"] == 0 if targets else 0 < row["differing_pixels"] < 1
        assert row["differing_outcomes"] <= row["differing_predictions"] < 1
        # Rounding a target's numbers moves none of these few predictions across a boundary.
        assert (row["differing_outcomes"] == 0) == targets
    # Each precision has images of its own, in a folder that says which; targets share them.
    identities = [
        (file.parent.name, file.read_text())
        for file in four_store(folder).glob("digits/quick-*/pgd-*/identity.json")
    ]
    assert sum('"precision": "bf16-mixed"' in text for _, text in identities) == 1


def test_a_class_that_carries_a_pair_is_found() -> None:
    """One class has all transfers of a pair; of the others all classes are alike."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(5), 40)
    fooled = rng.random((4, 4, 200)) < 0.3
    fooled[0, 1] = fooled[1, 0] = labels == 3
    names, ids = ("a", "b", "c", "d"), tuple(map(str, range(200)))
    found = Outcomes(names, ids, rng.random((4, 200)) < 0.9, fooled)
    inside = (labels == np.arange(5)[:, None]).astype(float)
    pairs = carried(found, inside, list("vwxyz"))
    (row,) = pairs.filter(a="a", b="b").to_dicts()
    assert (row["class"], row["class_rate"], row["classes"]) == ("y", 1, 1)
    assert row["score"] == pytest.approx(similarity.smoothed_matrix(found)[0, 1])
    assert pairs.filter(pl.col("class").is_not_null()).height == 1
    assert pairs.filter(a="c", b="d")["classes"].item() > 4.5
    table = class_table(found, inside, list("vwxyz"))
    rates = [found.on(np.flatnonzero(labels == c).tolist()) for c in range(5)]
    expected = [
        np.mean([o.per_image(i, j).mean() for i in range(4) for j in range(i)]) for o in rates
    ]
    assert table.sort("class")["fooling_rate"].to_list() == pytest.approx(expected)
    assert table["class"][0] == "y" and table["images"].to_list() == [40] * 5


def test_classes(folder: Path) -> None:
    done = on_four("classes", folder)
    has_figures(done, "classes")
    assert pl.read_csv(done / "pairs.csv").height == 6
    assert pl.read_csv(done / "classes.csv")["images"].sum() > 0


@pytest.mark.slow
def test_budget(folder: Path) -> None:
    """Two and four steps of the four members against their eight."""
    done = on_four("budget", folder, "budget.steps=[2,4,8]")
    has_figures(done, "budget")
    table = pl.read_csv(done / "correlations.csv")
    assert table["steps"].to_list() == [2, 4] and table["cost"].is_sorted()
    assert (table["cost"] < 1).all() and table["inside_interval"].is_between(0, 1).all()
    page = page_text(done / "report.html")
    assert re.search(r"(Yes|No)\. ", page) and "2 steps shift scores by" in page
    if use := re.search(r"To use it: python evaluate\.py (.+?) [A-Z]", page):
        assert run_here(*shlex.split(use[1]), "--cfg", "job", cwd=folder).returncode == 0


def test_cost_is_counted_by_hand() -> None:
    correct = np.array([[True, True, False], [True, True, True]])
    outcomes = Outcomes(("a", "b"), ("0", "1", "2"), correct, np.zeros((2, 2, 3), dtype=bool))
    crafted, evaluated = 5, 2 + 3 + 2 * 2
    assert passes(outcomes, 10) == crafted * 10 * 3 + evaluated


def test_the_cheapest_that_is_the_same() -> None:
    good = {"r": 0.99, "mean_difference": 0.0, "inside_interval": 1.0}
    rows = [
        {"cost": 0.1, **good, "r": 0.9},
        {"cost": 0.2, **good, "mean_difference": -0.2},
        {"cost": 0.3, **good, "inside_interval": 0.5},
        {"cost": 0.5, **good},
        {"cost": 0.4, **good},
    ]
    best = cheapest(rows, OWN)
    assert best is not None and best["cost"] == 0.4
    assert cheapest(rows[:3], OWN) is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("attacks attacks=[pgd]", "attacks must list two or more"),
        ("attacks attacks=[pgd,pgd]", "attacks lists pgd twice"),
        ("attacks attack.steps=10", "attacks: pgd and pgd (steps = 10) are the same attack"),
        ("attacks attacks=[pgd,{attack:pgd,stepz:3}]", "pgd has no setting 'stepz'; did you"),
        ("attacks attacks=[pgd,{steps:3}]", "is an option or {attack: option, ...}"),
        ("attacks sources=[vit_x]", "sources: the run has no model 'vit_x'; did you mean vit_s"),
        ("precision precisions=[32-true]", "precisions names 32-true, which is the run's own"),
        ("precision precisions=[tf32]", "precisions tf32 needs a GPU"),
        ("precision transfer.precision=tf32", "transfer.precision tf32 needs a GPU"),
        (
            "precision precisions=[8-true]",
            "precisions has no '8-true'; did you mean 32-true? (there are",
        ),
        ("precision precisions=[]", "precisions must be auto or a list"),
        ("precision seed=0", "seed must differ from attack.seed (0)"),
        ("precision attack=clean", "needs an attack with a seed"),
        ("budget attack=noise", "takes an attack of steps, such as pgd, got noise"),
        ("budget attack.steps=5 budget.steps=[5]", "must have a number below attack.steps=5"),
    ],
)
def test_mistakes(mistake: Mistake, arguments: str, expected: str) -> None:
    experiment, *overrides = arguments.split()
    assert expected in mistake(f"experiment={experiment}", *overrides)
