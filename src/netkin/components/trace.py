"""The operations of one forward pass, as a graph from the image to the logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

import torch

_VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "expand", "contiguous")
_TURNS = ("transpose", "permute", "t", "movedim", "alias", "detach", "clone", "_to_copy", "copy_")
_PARTS = ("slice", "select", "index", "split", "split_with_sizes", "chunk", "unbind")
_JOINS = ("unsqueeze", "squeeze", "stack", "cat", "constant_pad_nd", "roll", "as_strided")
PLUMBING = frozenset((*_VIEWS, *_TURNS, *_PARTS, *_JOINS))
"""Operations that move values and compute none."""


@dataclass(frozen=True)
class Op:
    """One operation on the image, or on a result computed from it.

    Attributes:
        name: of the ATen operation, such as "convolution"; in place or not is the same.
        path: of the innermost module that it happened in, such as "layer1.0.conv1".
        inputs: the operations whose results it takes, by their place in the trace.
        input_shapes: of these, in the same order.
        shape: of its (first) result.
        channels: which axis of the result holds channels, or None where that is not known.
        kernel, stride, groups: of convolution and pooling, (0, 0) and 0 for others.
        weight: the shape of its learned weight, or () without one.
        dims: the axes that a reduction or softmax runs over.
        mixes_positions: a matrix product with a learned weight that runs over positions.
        index: of a select or a slice: (dim, start, end).
    """

    name: str
    path: str
    inputs: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    channels: int | None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 0
    weight: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    mixes_positions: bool = False
    index: tuple[int, int, int] | None = None

    @property
    def positions(self) -> int:
        """Places of the result, each with all its channels: pixels, tokens; 0 where not known."""
        if self.channels is None:
            return 0
        size = self.shape[self.channels]
        return int(torch.Size(self.shape).numel() // size) if size else 0

    @property
    def width(self) -> int:
        """Channels of the result, 0 where not known."""
        return 0 if self.channels is None else self.shape[self.channels]

    @property
    def is_conv(self) -> bool:
        """A convolution of any kind, learned or fixed."""
        return self.name == "convolution"

    @property
    def is_spatial_conv(self) -> bool:
        """A convolution over more than one place."""
        return self.is_conv and len(self.kernel) >= 2 and max(self.kernel) > 1

    @property
    def is_dense(self) -> bool:
        """A learned linear map across channels: a convolution of one group, or a linear layer."""
        if self.is_conv:
            return self.groups == 1
        return self.name in ("addmm", "mm", "bmm", "baddbmm") and bool(self.weight)

    @property
    def is_depthwise(self) -> bool:
        """A convolution of each channel by itself."""
        return self.is_conv and len(self.weight) == 4 and self.weight[1] == 1 < self.groups

    @property
    def is_grouped(self) -> bool:
        """A convolution in groups of more than one channel each."""
        return self.is_conv and len(self.weight) == 4 and self.groups > 1 < self.weight[1]

    @property
    def is_product(self) -> bool:
        """A matrix product of two results that both depend on the image, as in attention."""
        return self.name in ("bmm", "baddbmm", "mm", "addmm") and not self.weight

    @property
    def is_pool(self) -> bool:
        """A pooling window that slides over the image."""
        return "pool" in self.name and bool(self.kernel)


@dataclass(frozen=True)
class Trace:
    """All operations from an image to its logits, in order.

    Attributes:
        ops: op 0 is the image.
        classes: module path -> name of its class, for the modules that ran.
        output: the op that computed the logits.
    """

    ops: tuple[Op, ...]
    classes: dict[str, str]
    output: int

    @cached_property
    def consumers(self) -> list[list[int]]:
        """The operations that take each one's result."""
        consumers: list[list[int]] = [[] for _ in self.ops]
        for i, op in enumerate(self.ops):
            for source in op.inputs:
                consumers[source].append(i)
        return consumers

    def upstream(self, start: int, stop: Callable[[int], bool]) -> Iterator[int]:
        """What `start` was computed from, latest first; what `stop` names is not followed."""
        return self._walk(start, stop, lambda i: self.ops[i].inputs, backwards=True)

    def downstream(self, start: int, stop: Callable[[int], bool]) -> Iterator[int]:
        """What was computed from `start`, earliest first; what `stop` names is not followed."""
        return self._walk(start, stop, lambda i: self.consumers[i], backwards=False)

    def _walk(
        self,
        start: int,
        stop: Callable[[int], bool],
        neighbours: Callable[[int], Sequence[int]],
        backwards: bool,
    ) -> Iterator[int]:
        sign = -1 if backwards else 1
        ahead = [sign * i for i in set(neighbours(start))]
        visited = set(ahead)
        heapify(ahead)
        while ahead:
            i = sign * heappop(ahead)
            yield i
            if not stop(i):
                for j in neighbours(i):
                    if sign * j not in visited:
                        visited.add(sign * j)
                        heappush(ahead, sign * j)

    def source(self, i: int) -> int:
        """The operation that computed what `i` takes, through those that only move values."""
        i = self.ops[i].inputs[0]
        while self.ops[i].name in PLUMBING and self.ops[i].inputs:
            i = self.ops[i].inputs[0]
        return i

    def is_residual(self, i: int) -> bool:
        """A sum of two feature maps of one shape: where a block's branch joins its shortcut."""
        op = self.ops[i]
        return (
            op.name == "add"
            and len(op.inputs) >= 2
            and len(set(op.input_shapes)) == 1
            and op.shape == op.input_shapes[0]
            and op.positions > 1
        )


def joined(names: set[str], order: tuple[str, ...]) -> str:
    """Names in a table's cell: those of `order` first."""
    known = [name for name in order if name in names]
    return " + ".join([*known, *sorted(names - set(order))])
