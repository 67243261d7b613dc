"""Batches that fit into memory: halved when they do not, for the rest of the run."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from netkin.errors import UserError

T = TypeVar("T")

log = logging.getLogger(__name__)


class Batches:
    """Cuts work on n images into batches of at most `size`, which shrinks when memory runs out.

    Images do not depend on others of their batch, so results do not depend on the size, beyond
    float rounding.
    """

    def __init__(self, size: int, name: str):
        self.size, self.name = size, name

    def run(self, n: int, work: Callable[[slice], T]) -> Iterator[T]:
        """Yield work(batch) for slices that cover range(n) in order.

        Raises UserError, naming the member, when a single image does not fit.
        """
        start = 0
        while start < n:
            batch = slice(start, min(start + self.size, n))
            try:
                result = work(batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._halve(batch.stop - batch.start, error)
                continue
            yield result
            start = batch.stop

    def _halve(self, tried: int, error: Exception) -> None:
        if tried == 1:
            raise UserError(
                f"{self.name} does not fit into memory with a single image "
                f"({str(error).splitlines()[0][:200]}); use a device with more memory, or leave "
                "the model out"
            ) from None
        self.size = tried // 2
        log.warning(
            "%s: out of memory with %d images, going on with %d", self.name, tried, self.size
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is the device's or the CPU allocator's lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error) and "memory" in str(error)
    )
