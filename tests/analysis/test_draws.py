"""Means over draws of images are those of the matrices, without holding these."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netkin import similarity
from netkin.analysis.groups import Draws, within_and_between
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
    close = {"rel": 1e-12, "abs": 1e-12, "nan_ok": True}
    assert within_and_between(draws, kinds) == pytest.approx(
        within_and_between(matrices, kinds), **close
    )
    ours = similarity.family_means(matrices[0], kinds, draws)
    theirs = similarity.family_means(matrices[0], kinds, matrices)
    assert ours.select("family_a", "family_b", "pairs").equals(
        theirs.select("family_a", "family_b", "pairs")
    )
    for column in ("mean", "low", "high"):
        assert ours[column].to_numpy() == pytest.approx(theirs[column].to_numpy(), **close)
