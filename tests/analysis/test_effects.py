"""Additive fits on scores that are known to be additive, and on the published matrix's shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from netkin.analysis import confounders

effect = st.floats(-2, 2, allow_subnormal=False)


@given(st.integers(3, 8).flatmap(lambda n: st.tuples(*[arrays(float, n, elements=effect)] * 2)))
def test_directions_recover_additive_scores(pair: tuple[np.ndarray, np.ndarray]) -> None:
    strength, brittleness = pair
    d = confounders.directions(1.5 + strength[:, None] + brittleness)
    np.testing.assert_allclose(d.strength, strength - strength.mean(), atol=1e-9)
    np.testing.assert_allclose(d.brittleness, brittleness - brittleness.mean(), atol=1e-9)
    assert min(d.by_source, d.by_target) >= -1e-9 and max(d.by_source, d.by_target) <= 1 + 1e-9


@given(st.integers(3, 8).flatmap(lambda n: arrays(float, n, elements=effect)))
def test_main_effects_recover_additive_scores(main: np.ndarray) -> None:
    scores = 2 + main[:, None] + main
    m = confounders.main_effects(scores)
    np.testing.assert_allclose(m.effects, main - main.mean(), atol=1e-9)
    rest = m.rest[np.tril_indices(len(main), -1)]
    np.testing.assert_allclose(rest, rest[0], atol=1e-9)
    assert m.explained == pytest.approx(1) or np.ptp(scores) < 1e-3


def test_only_targets_differ() -> None:
    d = confounders.directions(np.tile([0.0, 1.0, 4.0, 2.0], (4, 1)))
    assert d.by_target == pytest.approx(1)
    assert d.brittleness.argmax() == 2 and np.ptp(d.strength) == pytest.approx(0, abs=1e-9)


def test_effects_leave_the_kinship_of_pairs() -> None:
    """Two families of three, with one model brittle and one not: what is left is the families."""
    family = np.repeat([0, 1], 3)
    kin = np.equal.outer(family, family).astype(float)
    main = np.array([0.8, 0, -0.8, 0, 0.8, -0.8])
    scores = 2 + kin + main[:, None] + main
    rest = confounders.main_effects(scores).rest
    inside = rest[np.equal.outer(family, family) & ~np.eye(6, dtype=bool)]
    assert np.ptp(inside) < 1e-9 and inside.min() > rest[:3, 3:].max()
    c = confounders.change(scores, rest)
    assert c.k == 2 and c.models == 6 and 0 < c.nearest <= 6
    assert confounders.change(scores, scores) == confounders.Change(1.0, 2, 0, 6)


def test_equal_scores_have_no_clusters() -> None:
    assert confounders.change(np.arange(16.0).reshape(4, 4) * 0 + 1, np.ones((4, 4))).rand is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_asymmetry_is_the_larger_share(a: float, b: float) -> None:
    share = float(confounders.asymmetry(np.array([a]), np.array([b]))[0])
    assert np.isnan(share) if a + b == 0 else 0.5 <= share <= 1
