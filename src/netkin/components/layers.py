"""Layers of a stem: which operations count, how they are written, in which module they are."""

from math import isqrt

from netkin.components.trace import Op, Trace

RESAMPLING = ("pool", "upsample", "interpolate", "mean", "amax", "grid_sample")


def is_layer(op: Op) -> bool:
    """A learned convolution of a feature map, or a linear map of patches of the image."""
    if op.is_conv:
        return len(op.weight) == 4 and op.positions > 1
    return op.is_dense and len(op.shape) >= 2 and _patch(op) > 1


def is_linear(op: Op) -> bool:
    """A linear layer over many places, which is no convolution."""
    return op.is_dense and not op.is_conv and op.positions > 1


def _patch(op: Op) -> int:
    """Pixels a side of the patch that a linear layer on RGB pixels takes; 0 if it is not one."""
    inputs = min(op.weight) if len(op.weight) < 2 else op.weight[0]
    side = isqrt(inputs // 3)
    return side if 3 * side * side == inputs else 0


def kernel_of(op: Op) -> tuple[int, ...]:
    """Of a convolution, or the side of the patches."""
    return op.kernel if op.is_conv else (_patch(op),) * 2


def block_size(trace: Trace, first: int) -> int:
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


def completes(trace: Trace, before: Op, op: Op) -> bool:
    """Whether a 1 x 1 convolution is the second half of a separable one."""
    if not (before.is_depthwise and op.is_conv and max(op.kernel) == 1):
        return False
    parts = zip(before.path.split("."), op.path.split("."), strict=False)
    shared = []
    for one, other in parts:
        if one != other:
            break
        shared.append(one)
    module = ".".join(shared)
    inside = {o.path for o in trace.ops if is_layer(o) and is_within(o.path, module)}
    return inside == {before.path, op.path}


def is_within(path: str, module: str) -> bool:
    """Whether a path is a module's or that of one in it."""
    return path == module or path.startswith(module + ".")


def module_beside(path: str, home: str) -> str:
    """The module that a path leads into, as deep in the tree as `home`."""
    return ".".join(path.split(".")[: home.count(".") + 1])


def is_single(trace: Trace, top: str) -> bool:
    """A module that is one layer: a convolution with its norm, a pool."""
    convs = [
        i
        for i, op in enumerate(trace.ops)
        if op.is_conv and op.weight and op.positions > 1 and is_within(op.path, top)
    ]
    if not convs:
        return True
    listed = trace.classes.get(top) in ("Sequential", "ModuleList")
    # Parallel convolutions take one input.
    sources = {trace.source(i) for i in convs}
    return not listed and (len({trace.ops[i].path for i in convs}) == 1 or len(sources) == 1)


def written(layers: list[Op], block: int) -> list[str]:
    """In pixels of the image for the first layer, of its result for the others."""
    words = []
    for op in layers:
        scale = 1 if words else block
        kernel, stride = kernel_of(op), op.stride if op.is_conv else kernel_of(op)
        kernel = tuple(scale * side for side in kernel)
        size = str(kernel[0]) if len(set(kernel)) == 1 else "x".join(map(str, kernel))
        step = scale * stride[0]
        words.append(size if words and step == 1 else f"{size}s{step}")
    return words
