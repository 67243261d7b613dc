"""When a run may stop, and how certain scores are there."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkin.analysis.sequential import Rule, certainty, images_needed, stops
from netkin.similarity import Outcomes, pairs


@given(st.integers(1, 100_000), st.integers(1, 1000))
def test_stops_are_whole_shards_then_all_images(images: int, shard_size: int) -> None:
    found = stops(images, shard_size)
    assert found == sorted({*found}) and found[-1] == images
    assert all(n % shard_size == 0 for n in found[:-1])
    assert len(found) <= 3 + 2 * math.log2(max(1, images / shard_size))
    assert all(b / a <= 2 or b == images for a, b in pairwise(found))


def outcomes(fooled: float, images: int, seed: int = 0) -> Outcomes:
    """Three models that are right on all images and fool each other at a rate."""
    rng = np.random.default_rng(seed)
    ids = tuple(map(str, range(images)))
    right = np.ones((3, images), dtype=bool)
    return Outcomes(("a", "b", "c"), ids, right, rng.random((3, 3, images)) < fooled)


def test_the_pairs_that_are_narrow_enough_are_counted() -> None:
    found = outcomes(0.3, 400)
    table = pairs(found)
    widths = sorted(((table["high"] - table["low"]) / 2).to_list())
    for share, place in ((0.3, 0), (0.34, 1), (2 / 3, 1), (0.95, 2), (1, 2)):
        here = certainty(found, 5000, Rule(widths[1], share))
        assert here.half_width == widths[place] and here.share == pytest.approx(2 / 3)
        assert here.reached == (place <= 1)


def test_a_pair_without_common_images_is_not_certain() -> None:
    found = outcomes(0.3, 100)
    found.correct[0, :50] = found.correct[1, 50:] = False
    here = certainty(found, 5000, Rule(10.0, 0.1))
    assert not here.reached and here.share == 0 and "sequential/half_width" not in here.numbers


@given(st.floats(0.01, 2), st.floats(0.01, 2), st.integers(1, 10_000))
def test_images_needed_shrink_with_the_square(h0: float, h: float, n: int) -> None:
    assert images_needed(n, h0, h0) == pytest.approx(n)
    assert images_needed(n, h0, h / 2) == pytest.approx(4 * images_needed(n, h0, h))
