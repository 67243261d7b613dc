"""Confounders: scores against chance, and additive fits of scores that are known to be additive."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from netkin.analysis import confounders
from netkin.similarity import Outcomes


def make(p: float, q: float, n: int, seed: int = 0) -> Outcomes:
    """Two models, all of whose clean predictions are right."""
    rng = np.random.default_rng(seed)
    return Outcomes(
        ("a", "b"),
        tuple(map(str, range(n))),
        np.ones((2, n), bool),
        rng.random((2, 2, n)) < p,
        rng.random((2, n)) < q,
    )


def test_rates_by_hand() -> None:
    """a's images fool b on 3 of 4, noise 1 of 4; b's fool a on 1 of 4, noise never."""
    correct = np.array([[True] * 5, [True, True, True, True, False]])
    fooled = np.zeros((2, 2, 5), bool)
    fooled[0, 1, :3], fooled[1, 0, 0] = True, True
    noise = np.array([[False] * 5, [True, False, False, False, True]])
    o = Outcomes(("a", "b"), tuple("12345"), correct, fooled, noise)
    assert confounders.noise_rates(o).tolist() == [0, 0.25]
    (row,) = confounders.pair_table(o).to_dicts()
    assert (row["noise_fools_a"], row["noise_fools_b"]) == (0, 0.25)
    rate = ((0.75 - 0.25) / 0.75 + 0.25) / 2
    assert row["corrected"] == pytest.approx(rate)
    assert confounders.corrected_matrix(o, confounders.pair_table(o))[0, 1] == pytest.approx(rate)
    assert row["corrected_low"] is None and row["corrected_high"] is None  # 3 and 4 images are few


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60), st.integers(0, 5))
def test_bounds(p: float, q: float, n: int, seed: int) -> None:
    o = make(p, q, n, seed)
    (row,) = confounders.pair_table(o).to_dicts()
    left = n * (1 - max(row["noise_fools_a"], row["noise_fools_b"]))
    assert (row["corrected_low"] is None) == (left < confounders.LEFT - 1e-6)
    if row["corrected_low"] is not None:
        assert row["corrected_low"] < row["corrected_high"] <= 1  # never certain
        assert row["corrected_low"] <= row["corrected"] <= row["corrected_high"]


def test_without_noise_the_corrected_rate_is_p() -> None:
    (row,) = confounders.pair_table(make(0.3, 0.0, 400)).to_dicts()
    z = make(0.3, 0.0, 400).per_image(0, 1)
    assert row["corrected"] == pytest.approx(z.mean())
    assert row["above_noise"]


def test_a_target_that_noise_always_fools_tells_nothing() -> None:
    (row,) = confounders.pair_table(make(1.0, 1.0, 50)).to_dicts()
    assert row["corrected"] == 0 and not row["above_noise"]


def test_pairs_at_chance_are_rarely_above_noise() -> None:
    above = [
        confounders.pair_table(make(0.3, 0.3, 200, s))["above_noise"].item() for s in range(400)
    ]
    assert np.mean(above) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.1), (0.9, 0.3), (0.3, 0.25), (0.98, 0.05)])
def test_coverage_of_corrected_rates(p: float, q: float) -> None:
    truth, hits, repeats = (p - q) / (1 - q), 0, 1000
    for seed in range(repeats):
        (row,) = confounders.pair_table(make(p, q, 300, seed)).to_dicts()
        hits += row["corrected_low"] <= truth <= row["corrected_high"]
    assert 0.93 <= hits / repeats <= 0.985


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


def test_effects_leave_the_relations_of_pairs() -> None:
    """Two families of three, with one model brittle and one not: what is left is the families."""
    family = np.repeat([0, 1], 3)
    related = np.equal.outer(family, family).astype(float)
    main = np.array([0.8, 0, -0.8, 0, 0.8, -0.8])
    scores = 2 + related + main[:, None] + main
    rest = confounders.main_effects(scores).rest
    inside = rest[np.equal.outer(family, family) & ~np.eye(6, dtype=bool)]
    assert np.ptp(inside) < 1e-9 and inside.min() > rest[:3, 3:].max()
    c = confounders.change(scores, rest)
    assert c.k == 2 and 0 < c.nearest <= 6
    assert confounders.change(scores, scores) == (1.0, 2, 0)


def test_equal_scores_have_no_clusters() -> None:
    assert confounders.change(np.arange(16.0).reshape(4, 4) * 0 + 1, np.ones((4, 4))).rand is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_asymmetry_is_the_larger_share(a: float, b: float) -> None:
    share = float(confounders.asymmetry(np.array([a]), np.array([b]))[0])
    assert np.isnan(share) if a + b == 0 else 0.5 <= share <= 1
