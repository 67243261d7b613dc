"""Batches are halved when memory runs out, and images come out in order, each once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netkin.errors import UserError
from netkin.runner import Batches

MESSAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
]


@given(st.integers(0, 100), st.integers(1, 64), st.integers(1, 64), st.sampled_from(MESSAGES))
def test_every_image_once_in_order(n: int, size: int, fits: int, error: Exception) -> None:
    sizes = []

    def work(batch: slice) -> list[int]:
        length = batch.stop - batch.start
        if length > fits:
            raise error
        sizes.append(length)
        return list(range(batch.start, batch.stop))

    batches = Batches(size, "m")
    assert [i for result in batches.run(n, work) for i in result] == list(range(n))
    assert max(sizes, default=0) <= min(size, fits)
    if n >= size > fits:
        assert batches.size <= fits  # remembered for the next call


def test_a_single_image_that_does_not_fit_names_the_model() -> None:
    def work(batch: slice) -> None:
        raise MESSAGES[0]

    with pytest.raises(UserError, match="giant does not fit into memory with a single image"):
        list(Batches(8, "giant").run(10, work))


def test_other_errors_are_not_swallowed() -> None:
    def work(batch: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Batches(8, "m").run(10, work))
