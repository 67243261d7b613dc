"""The score: properties, a naive second implementation, and the coverage of its intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from netkin.errors import UserError
from netkin.similarity import (
    ALWAYS,
    Z_95,
    Outcomes,
    bootstrap,
    interval,
    matrix,
    pairs,
    resample,
    score,
    smoothed,
    smoothed_matrix,
    strangers,
)
from tests.helpers import with_interval


@st.composite
def outcomes(draw: st.DrawFn) -> Outcomes:
    """2 to 4 models on 1 to 30 images, at least one of which all classify correctly."""
    n, images = draw(st.integers(2, 4)), draw(st.integers(1, 30))
    correct = draw(arrays(bool, (n, images)))
    correct[:, draw(st.integers(0, images - 1))] = True
    fooled = draw(arrays(bool, (n, n, images)))
    return Outcomes(tuple("abcd"[:n]), tuple(map(str, range(images))), correct, fooled)


def naive_score(o: Outcomes, a: int, b: int, eps_s: float = 0.01) -> float:
    """Eq. 1 word by word."""
    errors = 0
    images = 0
    for i in range(len(o.image_ids)):
        if o.correct[a, i] and o.correct[b, i]:
            images += 1
            if o.fooled[a, b, i]:
                errors += 1
            if o.fooled[b, a, i]:
                errors += 1
    return math.log(max(eps_s, 100 * errors / (2 * images)))


@given(outcomes(), st.sampled_from([0.01, 0.5]))
def test_matrix_equals_the_formula_word_by_word(o: Outcomes, eps_s: float) -> None:
    n = len(o.members)
    expected = [[naive_score(o, a, b, eps_s) for b in range(n)] for a in range(n)]
    np.testing.assert_allclose(matrix(o, eps_s), expected, rtol=1e-12)


@given(outcomes())
def test_symmetric_and_bounded(o: Outcomes) -> None:
    s = matrix(o)
    assert (s == s.T).all()
    assert s.min() >= math.log(0.01) and s.max() <= ALWAYS + 1e-12


@given(outcomes(), st.randoms(use_true_random=False))
def test_order_of_images_does_not_matter(o: Outcomes, random) -> None:
    order = list(range(len(o.image_ids)))
    random.shuffle(order)
    shuffled = Outcomes(
        o.members, tuple(o.image_ids[i] for i in order), o.correct[:, order], o.fooled[:, :, order]
    )
    np.testing.assert_allclose(matrix(shuffled), matrix(o))
    a, b = pairs(shuffled), pairs(o)
    for column in ("n", "a_fools_b", "b_fools_a", "score", "low", "high"):
        np.testing.assert_allclose(a[column], b[column])


@given(outcomes())
def test_images_that_one_of_a_pair_gets_wrong_do_not_count(o: Outcomes) -> None:
    both = o.correct[:, None] & o.correct[None]
    flipped = Outcomes(o.members, o.image_ids, o.correct, np.where(both, o.fooled, ~o.fooled))
    assert (matrix(flipped) == matrix(o)).all()


def test_diagonal_of_a_perfect_attack_is_ln_100() -> None:
    o = Outcomes(("a", "b"), ("1", "2"), np.ones((2, 2), bool), np.ones((2, 2, 2), bool))
    np.testing.assert_allclose(np.diag(matrix(o)), 4.605170, atol=1e-6)


def test_diagonal_is_white_box_success() -> None:
    correct = np.array([[True, True, True, True, False]] * 2)
    fooled = np.zeros((2, 2, 5), bool)
    fooled[0, 0, [0, 4]] = True  # one of the four correct images
    fooled[1, 1, :2] = True
    o = Outcomes(("a", "b"), tuple("12345"), correct, fooled)
    np.testing.assert_allclose(np.diag(matrix(o)), np.log([25, 50]))


def test_both_directions_are_kept_apart() -> None:
    correct = np.array([[True, True, True, True, False], [True] * 5])
    fooled = np.zeros((2, 2, 5), bool)
    fooled[0, 1, :3] = True  # a's images fool b on three of four
    fooled[1, 0, 0] = True
    fooled[1, 0, 4] = True  # outside X
    (row,) = pairs(Outcomes(("a", "b"), tuple("12345"), correct, fooled)).to_dicts()
    assert (row["a"], row["b"], row["n"]) == ("a", "b", 4)
    assert (row["a_fools_b"], row["b_fools_a"]) == (0.75, 0.25)
    assert row["score"] == pytest.approx(math.log(50))
    assert row["low"] < row["score"] < row["high"]


@given(st.floats(1e-6, 1.0), st.floats(0, 1))
def test_floor(eps_s: float, p: float) -> None:
    assert float(score(p, eps_s)) == pytest.approx(math.log(max(eps_s, 100 * p)))


@pytest.mark.parametrize("eps_s", [0, -1])
def test_floor_must_be_positive(eps_s: float) -> None:
    with pytest.raises(UserError, match="eps_s must be above 0"):
        score(0.5, eps_s)


@given(st.integers(1, 2000))
def test_bound_is_exact_when_nothing_transfers(n: int) -> None:
    """Of a binomial whose number of draws is the number of images."""
    result = with_interval(np.zeros(n))
    assert result.score == result.low == pytest.approx(math.log(0.01))
    # The rate at which seeing n failures in a row has a probability of 2.5 %.
    assert result.high == pytest.approx(math.log(100 * (1 - 0.025 ** (1 / n))))
    if n >= 50:
        assert result.high == pytest.approx(math.log(370 / n), abs=0.25)


@given(st.integers(1, 500), st.sampled_from([0.5, 1.0]))
def test_no_interval_claims_certainty(n: int, value: float) -> None:
    result = with_interval(np.full(n, value))
    assert result.low < result.score <= ALWAYS + 1e-12
    assert result.score <= result.high


def test_interval_of_equal_directions_is_that_of_a_binomial() -> None:
    """Both directions agree on every image: n draws, for which SciPy's exact interval is known."""
    z = np.r_[np.ones(300), np.zeros(700)]
    exact = binomtest(300, 1000).proportion_ci(0.95, "exact")
    result = with_interval(z)
    assert result.low == pytest.approx(math.log(100 * exact.low))
    assert result.high == pytest.approx(math.log(100 * exact.high))


def test_interval_of_independent_directions_is_narrower() -> None:
    """With one direction always and one never, p is 1/2 for certain but for the images unseen."""
    together = with_interval(np.r_[np.ones(250), np.zeros(250)])
    apart = with_interval(np.full(500, 0.5))
    assert apart.high - apart.low < 0.1 * (together.high - together.low)
    assert apart.low < apart.score < apart.high


RATES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.98, 0.995)


@pytest.mark.parametrize("kind", ["independent", "lopsided", "equal"])
@pytest.mark.parametrize("n", [20, 30, 100, 500])
@pytest.mark.parametrize("p", RATES)
def test_coverage_is_95_per_cent_or_more(p: float, n: int, kind: str) -> None:
    """With directions that are independent, one of which is larger, and that always agree."""
    larger = min(1.0, 1.72 * p) if kind == "lopsided" else p
    smaller = 2 * p - larger
    both = p if kind == "equal" else larger * smaller
    cells = np.array([1 - 2 * p + both, 2 * (p - both), both]).clip(0)  # z = 0, 1/2, 1
    repeats, hits, memo = 2000, 0, {}
    for counts in map(tuple, np.random.default_rng(1).multinomial(n, cells / cells.sum(), repeats)):
        if counts not in memo:
            memo[counts] = with_interval(np.repeat((0.0, 0.5, 1.0), counts))
        hits += memo[counts].low <= math.log(100 * p) + 1e-9
        hits -= memo[counts].high < math.log(100 * p) - 1e-9
    # Three standard errors of the simulation below 95 %.
    assert hits / repeats >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repeats)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_smoothed_is_finite_and_close_to_the_score(n: int, share: float) -> None:
    k = round(2 * share * n) / 2
    s = float(smoothed(k, n))
    assert math.log(100 / (2 * n + 2)) - 1e-9 <= s <= ALWAYS
    if k >= 1:
        assert abs(s - math.log(100 * k / n)) <= 0.5 / k + 1e-9
    assert np.isnan(smoothed(0, 0))


@given(outcomes())
def test_smoothed_matrix_word_by_word(o: Outcomes) -> None:
    s = smoothed_matrix(o)
    for a in range(len(o.members)):
        for b in range(len(o.members)):
            z = o.per_image(a, b)
            assert s[a, b] == pytest.approx(math.log(100 * (z.sum() + 0.5) / (len(z) + 1)))


def test_bootstrap_agrees_with_the_interval_and_shares_its_draws() -> None:
    rng = np.random.default_rng(0)
    fooled = rng.random((3, 3, 400)) < 0.3
    fooled[2] = fooled[1]  # a third model that is the second's twin
    fooled[:, 2] = fooled[:, 1]
    o = Outcomes(("a", "b", "c"), tuple(map(str, range(400))), np.ones((3, 400), bool), fooled)
    draws = bootstrap(o, draws=2000, seed=0)
    low, high = interval(draws[:, 0, 1])
    exact = with_interval(o.per_image(0, 1))
    assert low == pytest.approx(exact.low, abs=0.03)
    assert high == pytest.approx(exact.high, abs=0.03)
    np.testing.assert_array_equal(draws[:, 0, 1], draws[:, 0, 2])
    np.testing.assert_array_equal(draws, bootstrap(o, draws=2000, seed=0))


@given(outcomes())
@settings(max_examples=30)
def test_bootstrap_is_symmetric_and_bounded(o: Outcomes) -> None:
    draws = bootstrap(o, draws=20)
    known = draws[~np.isnan(draws)]
    assert known.min(initial=0) >= math.log(0.01) and known.max(initial=0) <= ALWAYS + 1e-12
    np.testing.assert_array_equal(draws, draws.transpose(0, 2, 1))


def test_the_same_seed_gives_the_same_draws() -> None:
    counts = resample(50, 20, seed=3)
    assert counts.shape == (20, 50) and (counts.sum(axis=1) == 50).all()
    assert (counts == resample(50, 20, seed=3)).all()
    assert (counts != resample(50, 20, seed=4)).any()


def test_interval_ignores_undefined_draws() -> None:
    draws = np.arange(201.0)
    assert interval(draws) == interval(np.r_[draws, np.nan]) == pytest.approx((5, 195))
    assert np.isnan(interval(np.full(5, np.nan))).all()


def test_bootstrap_interval_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(resample(400, 2000) @ values / 400)
    half = Z_95 * values.std(ddof=1) / math.sqrt(400)
    expected = (values.mean() - half, values.mean() + half)
    assert (low, high) == pytest.approx(expected, abs=0.1 * half)


def test_outcomes_on_some_images_are_a_run_on_those_images() -> None:
    rng = np.random.default_rng(0)
    o = Outcomes(
        ("a", "b"), tuple("12345678"), rng.random((2, 8)) < 0.9, rng.random((2, 2, 8)) < 0.5
    )
    part = o.on([6, 1, 2])
    assert part.image_ids == ("7", "2", "3") and part.members == o.members
    assert (part.correct == o.correct[:, [6, 1, 2]]).all()
    assert (part.fooled == o.fooled[:, :, [6, 1, 2]]).all()


def test_an_empty_x_names_the_pair() -> None:
    correct = np.array([[True, False], [False, True], [True, True]])
    o = Outcomes(("left", "right", "both"), ("1", "2"), correct, np.zeros((3, 3, 2), bool))
    with pytest.raises(UserError, match="no image is classified correctly by right and left"):
        matrix(o)
    with pytest.raises(UserError, match="left and right"):
        pairs(o)


def test_strangers_are_the_fewest() -> None:
    """Of a chain of pairs without an image, the middle; of two models, the less accurate."""
    correct = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]], dtype=bool)
    assert strangers(correct) == {1: [0, 2]}
    assert strangers(np.array([[1, 1, 0], [0, 0, 1]], dtype=bool)) == {1: [0]}
    assert strangers(np.array([[1, 1], [0, 0]], dtype=bool)) == {1: [0, 1]}
    assert strangers(np.ones((3, 2), dtype=bool)) == {}
    apart = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    assert strangers(apart, landmarks=[0]) == {3: [0]} and len(strangers(apart)) == 2


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 5))))
def test_without_strangers_all_pairs_have_images(correct: np.ndarray) -> None:
    left = np.delete(correct, list(strangers(correct)), axis=0)
    assert (left[:, None] & left).any(axis=2).all()


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected correct \(2, 3\)"):
        Outcomes(("a", "b"), tuple("123"), np.ones((2, 2), bool), np.ones((2, 2, 3), bool))
