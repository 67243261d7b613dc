"""The stem: the layers before the first block."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from math import isqrt

from netkin.components.trace import Op, Trace


@dataclass
class Stem:
    """The stem of a network.

    Attributes:
        convs: its convolutions, in order.
        end: its last operation in the trace.
        pooled: whether a pooling layer ends it, or lies beside its convolutions.
        blocked: whether a block stopped it inside its module.
        layers: such as "3s2/3/3": kernel, and stride where it is not 1 (and always of the first).
    """

    convs: list[Op]
    end: int
    pooled: bool = False
    blocked: bool = False
    layers: str = "-"


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
        return Stem([], 0)
    parts = trace.ops[first].path.split(".")
    walks = (
        _walk(trace, first, ".".join(parts[:depth]))
        for depth in range(1, len(parts) + 1)
        if depth == len(parts) or not _is_trunk(trace, ".".join(parts[:depth]))
    )
    found = next((walk for walk in walks if not walk.blocked), Stem([trace.ops[first]], first))
    found.layers = "/".join(_written(found.convs, _block_size(trace, first)))
    return found


def _first(trace: Trace) -> int | None:
    """Of the first layers, which may be parallel, the one with the largest kernel."""
    ops = trace.ops
    below = trace.downstream(0, lambda i: ops[i].is_conv or ops[i].is_dense or ops[i].is_pool)
    first = [i for i in below if _is_layer(ops[i])]
    spatial = [i for i in first if max(_kernel_of(ops[i])) * _block_size(trace, i) > 1]
    return max(spatial, key=lambda i: (max(_kernel_of(ops[i])), i), default=None)


def _is_trunk(trace: Trace, module: str) -> bool:
    """Whether a module holds more than half of all layers."""
    layers = [op.path for op in trace.ops if _is_layer(op) or _is_linear(op)]
    return 2 * sum(_is_within(path, module) for path in layers) > len(layers)


def _walk(trace: Trace, first: int, home: str) -> Stem:
    """The stem if `home` is the module of its first convolution."""
    found = Stem([], 0)
    start = first
    join, inner = next((step for step in _spine(trace, 0) if step[0] >= first), (first, []))
    if first in inner and _all_in(trace, inner, home):
        if not _composite(trace, join, inner, found):
            found.blocked = True
            return found
        start = join
    else:
        beside = [i for i in inner if i > first and _is_layer(trace.ops[i])]
        found.convs, found.end = [trace.ops[first]], first
        if beside and not all(_is_within(trace.ops[i].path, home) for i in beside):
            found.end = max(first, beside[0])
    for join, inner in _spine(trace, start):
        if any(_counts(trace.ops[i]) for i in inner):
            if not (_all_in(trace, inner, home) or _is_next(trace, inner, home, found.convs)):
                found.blocked = any(
                    _counts(trace.ops[i]) and _is_within(trace.ops[i].path, home) for i in inner
                )
                break
            if not _composite(trace, join, inner, found):
                found.blocked = _all_in(trace, inner, home)
                break
        op = trace.ops[join]
        if op.is_conv and not op.weight:  # a blur belongs to the layer before it
            continue
        if op.is_pool:
            top = _module_beside(op.path, home)
            if top == home or _is_single(trace, top):
                found.pooled, found.end = True, join
            break
        if op.is_product or _is_linear(op):
            break
        if not _is_layer(op):
            continue
        if not (_is_within(op.path, home) or _continues(trace, op, home, found.convs)):
            break
        found.end = join
        if not _completes(trace, found.convs[-1], op):
            found.convs.append(op)
    return found


def _spine(trace: Trace, start: int) -> Iterator[tuple[int, list[int]]]:
    """The operations that all paths from `start` pass, each with those before it, in order."""
    while trace.consumers[start]:
        inner: list[int] = []
        last = max(trace.consumers[start])
        for i in trace.downstream(start, lambda _: False):
            if i == last:
                break
            inner.append(i)
            last = max([last, *trace.consumers[i]])
        start = last
        yield start, inner


def _composite(trace: Trace, join: int, inner: list[int], found: Stem) -> bool:
    """Add branches to the stem; False if they are a block."""
    branch = _longest(trace, join, inner)
    mixers = any(trace.ops[i].is_product or _is_linear(trace.ops[i]) for i in inner)
    above = trace.upstream(join, lambda i: i not in inner or _counts(trace.ops[i]))
    around = trace.is_residual(join) or any(i not in inner for i in above)  # a branch of no layer
    if mixers or (len(branch) > 1 and around):
        return False
    found.convs += [trace.ops[i] for i in branch]
    found.pooled |= any(trace.ops[i].is_pool for i in inner)
    found.end = join
    return True


def _counts(op: Op) -> bool:
    return _is_layer(op) or op.is_pool or op.is_product or _is_linear(op)


def _all_in(trace: Trace, inner: list[int], home: str) -> bool:
    counted = [trace.ops[i].path for i in inner if _counts(trace.ops[i])]
    return bool(counted) and all(_is_within(path, home) for path in counted)


def _is_next(trace: Trace, inner: list[int], home: str, layers: list[Op]) -> bool:
    """Whether branches are one layer, in the module after `home`."""
    tops = {_module_beside(trace.ops[i].path, home) for i in inner if _counts(trace.ops[i])}
    branches = [trace.ops[i] for i in inner if _is_layer(trace.ops[i])]
    plain = all(op.is_dense for op in branches) and any(max(_kernel_of(op)) > 1 for op in branches)
    single = all(
        _is_single(trace, top) for top in tops | {_module_beside(op.path, home) for op in layers}
    )
    return len(tops) == 1 and plain and single


def _continues(trace: Trace, op: Op, home: str, layers: list[Op]) -> bool:
    """Whether a layer outside `home` goes on with the stem: all have been single layers so far, or
    it stands in the place of a pool."""
    top = _module_beside(op.path, home)
    plain = op.groups == 1 and max(op.kernel) > 1
    return plain and (
        "pool" in top.rpartition(".")[2].lower()
        or all(_is_single(trace, _module_beside(layer.path, home)) for layer in (*layers, op))
    )


def _longest(trace: Trace, join: int, inner: list[int]) -> list[int]:
    """Of the branches that `join` takes the one with the most layers, or the largest kernel."""
    layers: dict[int, list[int]] = {}

    def rank(branch: list[int]) -> tuple[int, int]:
        return len(branch), sum(max(trace.ops[i].kernel, default=1) for i in branch)

    for i in (*inner, join):
        before = max((layers.get(j, []) for j in trace.ops[i].inputs), key=rank, default=[])
        layers[i] = [*before, i] if i != join and _is_layer(trace.ops[i]) else before
    return layers[join]


RESAMPLING = ("pool", "upsample", "interpolate", "mean", "amax", "grid_sample")


def _is_layer(op: Op) -> bool:
    """A learned convolution of a feature map, or a linear map of patches of the image."""
    if op.is_conv:
        return len(op.weight) == 4 and op.positions > 1
    return op.is_dense and len(op.shape) >= 2 and _patch(op) > 1


def _is_linear(op: Op) -> bool:
    """A linear layer over many places, which is no convolution."""
    return op.is_dense and not op.is_conv and op.positions > 1


def _patch(op: Op) -> int:
    """Pixels a side of the patch that a linear layer on RGB pixels takes; 0 if it is not one."""
    inputs = min(op.weight) if len(op.weight) < 2 else op.weight[0]
    side = isqrt(inputs // 3)
    return side if 3 * side * side == inputs else 0


def _kernel_of(op: Op) -> tuple[int, ...]:
    """Of a convolution, or the side of the patches."""
    return op.kernel if op.is_conv else (_patch(op),) * 2


def _block_size(trace: Trace, first: int) -> int:
    """Pixels a side that were moved into channels before the first convolution, 1 if none were."""
    op = trace.ops[first]
    if not op.is_conv:
        return 1
    above = [trace.ops[i] for i in trace.upstream(first, lambda _: False)]
    if any(word in other.name for other in above for word in RESAMPLING):
        return 1
    block = max(1, round(trace.ops[0].shape[2] / op.input_shapes[0][2]))
    # Patches may have been moved into the batch instead, as in TNT.
    return block if op.input_shapes[0][1] in (block**2, trace.ops[0].shape[1] * block**2) else 1


def _completes(trace: Trace, before: Op, op: Op) -> bool:
    """Whether a 1 x 1 convolution is the second half of a separable one."""
    if not (before.is_depthwise and op.is_conv and max(op.kernel) == 1):
        return False
    parts = zip(before.path.split("."), op.path.split("."), strict=False)
    module = ".".join(one for one, other in takewhile(lambda pair: pair[0] == pair[1], parts))
    inside = {o.path for o in trace.ops if _is_layer(o) and _is_within(o.path, module)}
    return inside == {before.path, op.path}


def _is_within(path: str, module: str) -> bool:
    """Whether a path is a module's or that of one in it."""
    return path == module or path.startswith(module + ".")


def _module_beside(path: str, home: str) -> str:
    """The module that a path leads into, as deep in the tree as `home`."""
    return ".".join(path.split(".")[: home.count(".") + 1])


def _is_single(trace: Trace, top: str) -> bool:
    """A module that is one layer: a convolution with its norm, a pool."""
    inside = [(i, op) for i, op in enumerate(trace.ops) if _is_within(op.path, top)]
    convs = [i for i, op in inside if op.is_conv and op.weight and op.positions > 1]
    listed = trace.classes.get(top) in ("Sequential", "ModuleList")
    # Parallel convolutions take one input.
    fewest = min(len({trace.ops[i].path for i in convs}), len({trace.source(i) for i in convs}))
    return not convs or (not listed and fewest == 1)


def _written(layers: list[Op], block: int) -> list[str]:
    """In pixels of the image for the first layer, of its result for the others."""
    cells = []
    for op in layers:
        scale = 1 if cells else block
        kernel, stride = _kernel_of(op), op.stride if op.is_conv else _kernel_of(op)
        kernel = tuple(scale * side for side in kernel)
        size = str(kernel[0]) if len(set(kernel)) == 1 else "x".join(map(str, kernel))
        step = scale * stride[0]
        cells.append(size if cells and step == 1 else f"{size}s{step}")
    return cells
