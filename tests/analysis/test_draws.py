"""Means over draws of images are those of the matrices, without holding these."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netkin import similarity
from netkin.analysis.groups import Draws, family_means
from netkin.similarity import Outcomes


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_means_are_those_of_the_matrices(n: int, images: int, seed: int, groups: int) -> None:
    """Also where a draw leaves a pair without images."""
    rng = np.random.default_rng(seed)
    correct = rng.random((n, images)) < 0.7
    correct[:, 0] = True
    names = tuple(map(str, range(n)))
    ids = tuple(map(str, range(images)))
    outcomes = Outcomes(names, ids, correct, rng.random((n, n, images)) < 0.5)
    kinds = [str(k) for k in rng.integers(0, groups, n)]
    matrices, draws = similarity.bootstrap(outcomes, 9), Draws(outcomes, 9)
    same, lower = np.equal.outer(kinds, kinds), np.tri(n, k=-1, dtype=bool)
    for found, pairs in zip(
        draws.within_and_between(kinds).T, (same & lower, ~same & lower), strict=True
    ):
        expected = matrices[:, pairs].mean(axis=1) if pairs.any() else np.full(9, np.nan)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    for row in family_means(matrices[0], kinds, draws).to_dicts():
        a, b = (np.array(kinds) == row[k] for k in ("family_a", "family_b"))
        pairs = lower & (np.outer(a, b) | np.outer(b, a))
        assert row["pairs"] == pairs.sum()
        assert row["mean"] == pytest.approx(matrices[0, pairs].mean(), nan_ok=True)
        ends = similarity.interval(matrices[:, pairs].mean(axis=1))
        assert (row["low"], row["high"]) == pytest.approx(ends, nan_ok=True)


def test_family_means_leave_out_a_model_with_itself() -> None:
    s = np.array([[9, 1, 2], [1, 9, 4], [2, 4, 9.0]])
    table = family_means(s, ["CNN", "ViT", "ViT"])
    assert table.rows() == [("CNN", "ViT", 2, 1.5, None, None), ("ViT", "ViT", 1, 4.0, None, None)]
