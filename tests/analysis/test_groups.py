"""Means of groups and their intervals, over draws of images too, and the study of them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.studies import within as study
from netkin import similarity
from netkin.analysis.groups import Draws, family_means, mean_of
from netkin.analysis.matrix import Matrix, pair_values, read
from netkin.analysis.statistics import over_images
from netkin.similarity import Outcomes
from tests import helpers
from tests.analysis.test_matrix import PUBLISHED
from tests.helpers import MEMBERS, has_figures, on_four, smoothed_score


def test_means_by_hand() -> None:
    scores = np.array([[9, 1, 2], [1, 9, 6], [2, 6, 9.0]])
    draws = np.stack([scores + shift for shift in np.linspace(-1, 1, 41)])
    pairs = np.tri(3, k=-1, dtype=bool)
    found = mean_of(pairs, scores, draws)
    assert (found["mean"], found["models"], found["pairs"]) == (3, 3, 3)
    assert (found["images_low"], found["images_high"]) == pytest.approx((3 - 0.95, 3 + 0.95))
    # Leaving one out gives 6, 2 and 1: sum of squares 14, SE = sqrt(2 / 3 * 14), t(2) = 4.303.
    half = (found["models_high"] - found["models_low"]) / 2
    assert half == pytest.approx(4.302653 * np.sqrt(28 / 3), rel=1e-5)
    between = mean_of(pairs & [True, True, False] & [[False], [False], [True]], scores)
    assert (between["mean"], between["pairs"]) == (4, 2)
    assert "models_low" not in mean_of(pairs[:2, :2], scores[:2, :2])
    for limits, ends in (((-4.6, 4.605), (-4.6, 4.605)), ((0, 2), (0, 3))):  # the mean is no score
        found = mean_of(pairs, scores, limits=limits)
        assert (found["models_low"], found["models_high"]) == ends


def test_jackknife_covers_the_mean_of_pairs_of_models() -> None:
    """Scores s_ij = u_i + u_j of 12 random models: the interval holds the true mean, 0."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        u = rng.normal(size=12)
        found = mean_of(np.tri(12, k=-1, dtype=bool), u[:, None] + u)
        held += found["models_low"] <= 0 <= found["models_high"]
    assert held / 300 == pytest.approx(0.95, abs=0.04)


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published scores are not here")
def test_on_the_published_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some of its models, as a file without their components, which are read off."""
    matrix, some = read(PUBLISHED), slice(0, 69, 9)
    assert pair_values(matrix.scores).mean() == pytest.approx(2.665, abs=5e-4)
    part = Matrix(matrix.names[some], matrix.scores[some, some])
    part.table().write_csv(tmp_path / "some.csv")
    monkeypatch.setattr(study, "FAMILIES_UP_TO", 4)
    run = helpers.run("within", tmp_path / "run", ["similarity=some.csv", "logger=none"])
    table = pl.read_csv(run / "within.csv")
    row = table.row(by_predicate=pl.col("group") == "all models", named=True)
    assert row["pairs"] == 28 and row["mean"] == pytest.approx(pair_values(part.scores).mean())
    assert "CNN" in table["group"].to_list()
    assert not table["group"].str.contains("_registry|unknown").any()
    has_figures(run, "within")


def test_within(folder: Path) -> None:
    """The twins have the highest similarity; a matrix of its own is a group."""
    Matrix(("x", "y", "z"), np.array([[9, 1, 2], [1, 9, 6], [2, 6, 9.0]])).table().write_csv(
        folder / "own.csv"
    )
    run = on_four("within", folder, f"within.matrices={{own: {folder / 'own.csv'}}}")
    has_figures(run, "within")
    table = {row["group"]: row for row in pl.read_csv(run / "within.csv").to_dicts()}
    assert [*table] == ["ByobNet", "ViT", "own", "different groups", "all models"]
    assert table["own"]["mean"] == 3 and table["own"]["images_low"] is None
    assert table["different groups"]["pairs"] == 4 and table["all models"]["pairs"] == 6
    for group in ("ByobNet", "ViT"):
        assert table[group]["images_low"] <= table[group]["mean"] <= table[group]["images_high"]
        assert table[group]["mean"] > table["different groups"]["mean"]
    run = on_four("within", folder, f"groups={{mine: [{MEMBERS[0]}, vit*]}}")
    first = pl.read_csv(run / "within.csv").row(0, named=True)
    assert first["group"] == "mine" and first["mean"] == pytest.approx(smoothed_score(folder))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_means_are_those_of_the_matrices(n: int, images: int, seed: int, groups: int) -> None:
    """Also where the rest leaves a pair without images."""
    rng = np.random.default_rng(seed)
    correct = rng.random((n, images)) < 0.7
    correct[:, 0] = True
    names = tuple(map(str, range(n)))
    ids = tuple(map(str, range(images)))
    outcomes = Outcomes(names, ids, correct, rng.random((n, n, images)) < 0.5)
    kinds = [str(k) for k in rng.integers(0, groups, n)]
    draws, whole = Draws(outcomes, 9), similarity.smoothed_matrix(outcomes)
    matrices = similarity.bootstrap(outcomes, counts=similarity.leave_out(images, 9))
    same, lower = np.equal.outer(kinds, kinds), np.tri(n, k=-1, dtype=bool)
    for found, pairs in zip(
        draws.within_and_between(kinds).T, (same & lower, ~same & lower), strict=True
    ):
        expected = (
            matrices[:, pairs].mean(axis=1) if pairs.any() else np.full(len(matrices), np.nan)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    for row in family_means(whole, kinds, draws).to_dicts():
        a, b = (np.array(kinds) == row[k] for k in ("family_a", "family_b"))
        pairs = lower & (np.outer(a, b) | np.outer(b, a))
        assert row["pairs"] == pairs.sum()
        assert row["mean"] == pytest.approx(whole[pairs].mean(), nan_ok=True)
        ends = over_images(row["mean"], matrices[:, pairs].mean(axis=1), (-np.inf, np.log(100)))
        assert (row["low"], row["high"]) == pytest.approx(ends, nan_ok=True)


def test_family_means_leave_out_a_model_with_itself() -> None:
    s = np.array([[9, 1, 2], [1, 9, 4], [2, 4, 9.0]])
    table = family_means(s, ["CNN", "ViT", "ViT"])
    assert table.rows() == [("CNN", "ViT", 2, 1.5, None, None), ("ViT", "ViT", 1, 4.0, None, None)]
