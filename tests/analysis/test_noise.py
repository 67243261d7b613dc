"""The noise of images in correlations: coverage by simulation, ceilings, and halves."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkin import similarity
from netkin.analysis import matrix, noise
from netkin.analysis.matrix import pair_values
from netkin.analysis.noise import Sampled, over_images, without_noise
from netkin.analysis.statistics import correlations
from netkin.similarity import Outcomes
from tests.analysis.coverage import DIGITS, another, of_r, samples
from tests.studies.test_comparison import outcomes


@pytest.mark.parametrize(("r", "images"), [(0.5, 200), (0.9, 200), (0.9, 500)])
def test_the_interval_over_images_covers_and_percentiles_do_not(r: float, images: int) -> None:
    """On scores like those of the digits. All values: experiments/results/statistics.md."""
    found = of_r(matrix.read(DIGITS).scores, r, images, repetitions=120, draws=150)
    assert found["corrected"] >= 0.88 and found["percentile"] < found["corrected"] - 0.05
    assert found["measured"] < found["true"]
    assert found["without_noise"] == pytest.approx(found["true"], abs=0.02)


def test_the_ceiling_is_what_noise_leaves_of_a_perfect_correlation() -> None:
    """Two measurements of the same true scores on different images."""
    x, _ = another(matrix.read(DIGITS).scores, 0.5)
    found, tops = [], []
    first, second = (samples(x, x, 300, 60, 2, seed) for seed in (0, 1))
    for (a, _), (b, _) in zip(first, second, strict=True):
        found.append(np.corrcoef(a.values, b.values)[0, 1])
        tops.append(noise.ceiling(a.halves, b.halves))
    assert np.mean(tops) == pytest.approx(np.mean(found), abs=0.015)


@given(st.integers(5, 30), st.integers(0, 1000))
def test_without_noise_nothing_changes(pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, pairs))
    still = without_noise(x, y, np.tile(x, (4, 1)), np.tile(y, (4, 1)))
    r = np.corrcoef(x, y)[0, 1]
    assert (still.r, still.low, still.high) == pytest.approx((r, r, r))
    a, b = (v + 0.3 * rng.normal(size=(50, pairs)) for v in (x, y))
    found = without_noise(x, y, a, b)
    if not np.isnan(found.r):
        assert -1 <= found.low <= found.high <= 1
        swapped = without_noise(y, -3 * x + 1, b, -3 * a + 1)
        assert swapped.r == pytest.approx(-found.r, abs=1e-6)


def test_what_is_unknown_is_left_out_or_undefined() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 10))
    draws = 0.1 * rng.normal(size=(2, 40, 10))
    a, b = x + draws[0], y + draws[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_noise = without_noise(x, y, x + 3 * rng.normal(size=(40, 10)), b)
        assert np.isnan([all_noise.r, all_noise.low]).all()
        assert np.isnan(without_noise(x[:2], y[:2], a[:, :2], b[:, :2]).r)
        gap, gaps = x.copy(), a.copy()
        gap[3], gaps[:, 3], gaps[7, 5] = np.nan, np.nan, np.nan
        found = without_noise(gap, y, gaps, b)
        kept = np.arange(10) != 3
        whole = without_noise(x[kept], y[kept], a[:, kept], b[:, kept])
        assert found.r == pytest.approx(whole.r, abs=0.01)
    sampled = Sampled(x, a, a), Sampled(y, b, b)
    few = over_images(*sampled, models=4)
    assert np.isnan([few.r, few.low, few.high]).all() and few.ceiling >= 0
    assert "interval" not in noise.text(few.row())
    assert "95% interval over images" in noise.text(over_images(*sampled, 5).row())


def test_halves_of_classes_agree_less_where_classes_decide() -> None:
    """As the correlation of their matrices; on classes that all alike decide nothing, as images."""
    rng, n, images = np.random.default_rng(0), 6, 200
    labels = np.repeat(np.arange(10), 20)
    by_class = rng.uniform(0, 0.6, (n, n, 10))[:, :, labels]
    for rate, less in ((by_class, True), (rng.uniform(0, 0.6, (n, n, 1)), False)):
        fooled = rng.random((n, n, images)) < rate
        correct = rng.random((n, images)) < 0.9
        names, ids = tuple("abcdef"), tuple(map(str, range(images)))
        measured = Outcomes(names, ids, correct, fooled)
        found = noise.agreement(measured, labels.tolist())
        drawn = pair_values(similarity.bootstrap(measured, counts=noise.halves(images)))
        r = correlations(drawn[::2], drawn[1::2]).mean()
        assert found.images == pytest.approx(r)
        assert found.reliability == pytest.approx(2 * r / (1 + r))
        assert (found.images - found.classes > 0.1) == less
    assert np.isnan(noise.agreement(measured).classes)


@given(st.integers(2, 40), st.integers(1, 5))
def test_halves_are_disjoint_and_complete(n: int, splits: int) -> None:
    found = noise.halves(n, splits)
    np.testing.assert_array_equal(found[::2] + found[1::2], 1)
    assert set(found[::2].sum(axis=1)) == {n // 2}


def test_scores_of_halves_are_those_of_the_images_in_them() -> None:
    found = outcomes()
    parts = noise.sampled_scores(found, 5)
    directions = noise.sampled_scores(found, 5, one_sided=True)
    for i, weights in enumerate(noise.halves(40)):
        half = found.on(np.flatnonzero(weights).tolist())
        np.testing.assert_allclose(parts.halves[i], similarity.smoothed_matrix(half))
        np.testing.assert_allclose(directions.halves[i], similarity.one_sided(half))
    assert directions.draws.shape == parts.draws.shape == (5, 3, 3)
    found.correct[0, 1:] = False  # a model with one correct image: one half has none
    unknown = np.isnan(noise.sampled_scores(found, 5).halves)
    assert unknown[:, 0].all(axis=1).sum() == noise.SPLITS and not unknown[:, 1:, 1:].any()


def test_simulated_draws_have_the_noise_of_so_many_images() -> None:
    """A pair's score has the spread of a binomial rate of both directions, and no bias."""
    scores = matrix.read(DIGITS).scores
    draws = noise.simulated_draws(scores, 2000, 500)
    assert draws.shape == (500, *scores.shape)
    np.testing.assert_array_equal(draws, draws.transpose(0, 2, 1))
    assert (draws[:, range(12), range(12)] == np.diag(scores)).all()
    rows, columns = np.tril_indices(12, k=-1)
    rates = np.exp(scores[rows, columns]) / 100
    often = (rates > 0.02) & (rates < 0.99)
    rows, columns, rates = rows[often], columns[often], rates[often]
    expected = np.sqrt((1 - rates) / (4000 * rates))
    spread = draws[:, rows, columns].std(axis=0)
    np.testing.assert_allclose(spread / expected, 1, atol=0.15)
    bias = draws[:, rows, columns].mean(axis=0) - scores[rows, columns]
    assert np.abs(bias / expected).max() < 0.25
