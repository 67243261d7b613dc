"""The stem: the layers before the first block."""

from collections.abc import Iterator
from dataclasses import dataclass

from netkin.components.branches import fork, longest
from netkin.components.layers import (
    block_size,
    completes,
    is_layer,
    is_linear,
    is_single,
    is_within,
    kernel_of,
    module_beside,
    written,
)
from netkin.components.trace import Op, Trace


@dataclass(frozen=True)
class Stem:
    """The stem of a network.

    Attributes:
        layers: such as "3s2/3/3": kernel, and stride where it is not 1 (and always of the first).
        pooled: whether a pooling layer ends it, or lies beside its convolutions.
        convolutions: how many layers it has.
        end: its last operation in the trace.
    """

    layers: str
    pooled: bool
    convolutions: int
    end: int


@dataclass
class _Walk:
    """What was found from the image on, and whether a block stopped it inside its module."""

    layers: list[Op]
    end: int
    pooled: bool = False
    blocked: bool = False


def stem(trace: Trace) -> Stem:
    """The convolutions that follow each other from the image on, before the first block.

    It ends at a pooling layer, at the first block (a shortcut around several layers), and where
    the first convolution's module ends: with `stem.conv1` in it that is `stem`, with a lone `conv1`
    it is the next module of more than one layer. That module is the outermost one that holds no
    block and no more than half of the network's layers.

    Branches that join inside that module are one part of it: parallel convolutions that are added
    are one, with the largest kernel, and of longer branches the longest counts. A depthwise and a
    pointwise convolution in a module of their own are one. A convolution of pixels that were
    rearranged, as by space-to-depth, has the kernel and stride that it has on the image.
    """
    first = _first(trace)
    if first is None:
        return Stem("-", False, 0, 0)
    parts = trace.ops[first].path.split(".")
    walks = (
        _walk(trace, first, ".".join(parts[:depth]))
        for depth in range(1, len(parts) + 1)
        if depth == len(parts) or not _is_trunk(trace, ".".join(parts[:depth]))
    )
    walk = next((found for found in walks if not found.blocked), _Walk([trace.ops[first]], first))
    words = "/".join(written(walk.layers, block_size(trace, first)))
    return Stem(words, walk.pooled, len(walk.layers), walk.end)


def _first(trace: Trace) -> int | None:
    """Of the first layers, which may be parallel, the one with the largest kernel."""

    def stop(i: int) -> bool:
        return trace.ops[i].is_conv or trace.ops[i].is_dense or trace.ops[i].is_pool

    first = [i for i in trace.downstream(0, stop) if is_layer(trace.ops[i])]
    spatial = [i for i in first if max(kernel_of(trace.ops[i])) * block_size(trace, i) > 1]
    return max(spatial, key=lambda i: (max(kernel_of(trace.ops[i])), i), default=None)


def _is_trunk(trace: Trace, module: str) -> bool:
    """Whether a module holds more than half of all layers."""
    layers = [op.path for op in trace.ops if is_layer(op) or is_linear(op)]
    return 2 * sum(is_within(path, module) for path in layers) > len(layers)


def _walk(trace: Trace, first: int, home: str) -> _Walk:
    """The stem if `home` is the module of its first convolution."""
    found = _Walk([], 0)
    start = first
    join, inner = fork(trace, 0)
    while join is not None and join < first:
        join, inner = fork(trace, join)
    if join is not None and first in inner and _all_in(trace, inner, home):
        if not _composite(trace, join, inner, found):
            found.blocked = True
            return found
        start = join
    else:
        beside = [i for i in inner if i > first and is_layer(trace.ops[i])]
        found.layers, found.end = [trace.ops[first]], first
        if beside and not all(is_within(trace.ops[i].path, home) for i in beside):
            found.end = max(first, beside[0])
    for join, inner in _spine(trace, start):
        if any(_counts(trace.ops[i]) for i in inner):
            if not (_all_in(trace, inner, home) or _is_next(trace, inner, home, found.layers)):
                found.blocked = any(
                    _counts(trace.ops[i]) and is_within(trace.ops[i].path, home) for i in inner
                )
                break
            if not _composite(trace, join, inner, found):
                found.blocked = _all_in(trace, inner, home)
                break
        op = trace.ops[join]
        if op.is_conv and not op.weight:  # a blur belongs to the layer before it
            continue
        if op.is_pool:
            top = module_beside(op.path, home)
            if top == home or is_single(trace, top):
                found.pooled, found.end = True, join
            break
        if op.is_product or is_linear(op):
            break
        if not is_layer(op):
            continue
        if not (is_within(op.path, home) or _continues(trace, op, home, found.layers)):
            break
        found.end = join
        if not completes(trace, found.layers[-1], op):
            found.layers.append(op)
    return found


def _spine(trace: Trace, start: int) -> Iterator[tuple[int, list[int]]]:
    """The operations that all paths from `start` pass, each with what lies beside it."""
    join, inner = fork(trace, start)
    while join is not None:
        yield join, inner
        join, inner = fork(trace, join)


def _composite(trace: Trace, join: int, inner: list[int], found: _Walk) -> bool:
    """Add branches to the stem; False if they are a block."""
    branch = longest(trace, join, inner, is_layer)
    mixers = any(trace.ops[i].is_product or is_linear(trace.ops[i]) for i in inner)
    around = trace.is_residual(join) or _has_shortcut(trace, join, inner)
    if mixers or (len(branch) > 1 and around):
        return False
    found.layers += [trace.ops[i] for i in branch]
    found.pooled |= any(trace.ops[i].is_pool for i in inner)
    found.end = join
    return True


def _has_shortcut(trace: Trace, join: int, inner: list[int]) -> bool:
    """Whether one of the branches holds no layer."""

    def stop(i: int) -> bool:
        return i not in inner or _counts(trace.ops[i])

    return any(i not in inner for i in trace.upstream(join, stop))


def _counts(op: Op) -> bool:
    return is_layer(op) or op.is_pool or op.is_product or is_linear(op)


def _all_in(trace: Trace, inner: list[int], home: str) -> bool:
    counted = [trace.ops[i].path for i in inner if _counts(trace.ops[i])]
    return bool(counted) and all(is_within(path, home) for path in counted)


def _is_next(trace: Trace, inner: list[int], home: str, layers: list[Op]) -> bool:
    """Whether branches are one layer, in the module after `home`."""
    tops = {module_beside(trace.ops[i].path, home) for i in inner if _counts(trace.ops[i])}
    branches = [trace.ops[i] for i in inner if is_layer(trace.ops[i])]
    plain = all(op.is_dense for op in branches) and any(max(kernel_of(op)) > 1 for op in branches)
    single = all(
        is_single(trace, top) for top in tops | {module_beside(op.path, home) for op in layers}
    )
    return len(tops) == 1 and plain and single


def _continues(trace: Trace, op: Op, home: str, layers: list[Op]) -> bool:
    """Whether a layer outside `home` goes on with the stem: all have been single layers so far, or
    it stands in the place of a pool."""
    top = module_beside(op.path, home)
    plain = op.groups == 1 and max(op.kernel) > 1
    return plain and (
        "pool" in top.rpartition(".")[2].lower()
        or all(is_single(trace, module_beside(layer.path, home)) for layer in (*layers, op))
    )
