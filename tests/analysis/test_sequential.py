"""Critical values against published ones and simulated paths, looks, and coverage when stopping."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from netkin.analysis import sequential
from netkin.analysis.sequential import (
    Rule,
    critical_values,
    images_needed,
    level,
    look,
    looks,
)
from netkin.errors import UserError
from netkin.similarity import Outcomes, pairs
from tests.analysis.coverage import of_looks

FIVE = np.arange(1, 6) / 5


def test_critical_values_are_the_published_ones() -> None:
    """Five equal looks with the spending functions of Lan and DeMets, 5 % two-sided."""
    pocock = critical_values(FIVE, 0.05 * np.log(1 + (math.e - 1) * FIVE))
    assert pocock == pytest.approx([2.438, 2.427, 2.410, 2.397, 2.386], abs=5e-4)
    fleming = critical_values(FIVE, 4 - 4 * ndtr(-ndtri(0.0125) / np.sqrt(FIVE)))
    assert fleming == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=5e-4)


def test_random_walks_leave_the_levels_as_often_as_they_may() -> None:
    found = looks(5000, 100)
    values = -ndtri(np.array([level(n, 5000, 100) for n in found]) / 2)
    rng, steps = np.random.default_rng(0), np.diff([0, *found])
    walks = (rng.normal(size=(100_000, len(found))) * np.sqrt(steps)).cumsum(axis=1)
    outside = np.abs(walks / np.sqrt(found)) > values
    assert outside.any(axis=1).mean() == pytest.approx(0.05, abs=0.0025)
    halfway = found.index(2300)
    early = outside[:, : halfway + 1].any(axis=1).mean()
    assert early == pytest.approx(0.05 * math.sqrt(0.46), abs=0.0025)


@given(st.integers(1, 100_000), st.integers(1, 1000))
def test_looks_are_whole_shards_then_all_images(images: int, shard_size: int) -> None:
    found = looks(images, shard_size)
    assert found == sorted({*found}) and found[-1] == images
    assert all(n % shard_size == 0 for n in found[:-1])
    assert len(found) <= 3 + 2 * math.log2(max(1, images / shard_size))
    assert all(b / a <= 2 or b == images for a, b in pairwise(found))


def test_one_look_has_the_usual_interval() -> None:
    assert level(70, 70, 100) == pytest.approx(0.05, abs=1e-12)
    assert all(level(n, 5000, 100) < 0.05 for n in looks(5000, 100))


@pytest.mark.parametrize("p", [0.02, 0.3])
def test_intervals_hold_at_all_looks_together(p: float) -> None:
    """Those for a fixed number of images do not, so that a run that goes on for want of a clear
    result would be wrong too often."""
    found = of_looks(p, 0.5, 0.3, runs=2000)
    assert found.everywhere > 0.94 and found.stopped > 0.95
    assert found.plain_everywhere < 0.85


def outcomes(fooled: float, images: int, seed: int = 0) -> Outcomes:
    """Three models that are right on all images and fool each other at a rate."""
    rng = np.random.default_rng(seed)
    ids = tuple(map(str, range(images)))
    right = np.ones((3, images), dtype=bool)
    return Outcomes(("a", "b", "c"), ids, right, rng.random((3, 3, images)) < fooled)


def test_a_look_counts_the_pairs_that_are_narrow_enough() -> None:
    found = outcomes(0.3, 400)
    table = pairs(found, alpha=level(400, 5000, 100))
    widths = sorted(((table["high"] - table["low"]) / 2).to_list())
    for share, place in ((0.3, 0), (0.34, 1), (2 / 3, 1), (0.95, 2), (1, 2)):
        here = look(found, 5000, 100, Rule(widths[1], share))
        assert here.half_width == widths[place] and here.share == pytest.approx(2 / 3)
        assert here.reached == (place <= 1)
    assert widths[0] > ((pairs(found)["high"] - pairs(found)["low"]) / 2).min()


def test_a_pair_without_common_images_is_not_certain() -> None:
    found = outcomes(0.3, 100)
    found.correct[0, :50] = found.correct[1, 50:] = False
    here = look(found, 5000, 100, Rule(10.0, 0.1))
    assert not here.reached and here.share == 0 and "sequential/half_width" not in here.numbers


@given(st.floats(0.01, 2), st.floats(0.01, 2), st.integers(1, 10_000))
def test_images_needed_shrink_with_the_square(h0: float, h: float, n: int) -> None:
    assert images_needed(n, h0, h0) == pytest.approx(n)
    assert images_needed(n, h0, h / 2) == pytest.approx(4 * images_needed(n, h0, h))


@pytest.mark.parametrize(
    ("width", "share"), [(0, 1), (-1, 1), ("x", 1), (1, 0), (1, 1.5), (1, "x")]
)
def test_rules_that_no_run_could_follow(width: float, share: float) -> None:
    with pytest.raises(UserError, match=r"half_width must be above 0|share must be in \(0, 1\]"):
        Rule(width, share)


def test_more_nodes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.array(looks(50_000, 100)) / 50_000
    few = critical_values(times, 0.05 * np.sqrt(times))
    monkeypatch.setattr(sequential, "NODES", 400)
    assert few == pytest.approx(critical_values(times, 0.05 * np.sqrt(times)), abs=1e-6)
