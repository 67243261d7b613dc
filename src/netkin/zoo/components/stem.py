"""The stem: the layers before the first block."""

from dataclasses import dataclass
from math import isqrt

from netkin.zoo.components.trace import Op, Trace


@dataclass(frozen=True)
class Stem:
    """The stem of a network.

    Attributes:
        layers: such as "3s2/3/3": kernel, and stride where it is not 1 (and always of the first).
        pooled: whether a pooling layer ends it.
        convolutions: how many layers it has.
        end: its last operation in the trace.
    """

    layers: str
    pooled: bool
    convolutions: int
    end: int


def stem(trace: Trace) -> Stem:
    """The convolutions that follow each other from the image on, without a branch beside them.

    It ends at a pooling layer, at the first branch (a shortcut, a residual block), at a
    depthwise or 1 x 1 convolution, and where the first convolution's module ends: with
    `stem.conv1` in it that is `stem`, with a lone `conv1` it is the next module of more than one
    layer.
    """
    layers: list[Op] = []
    at, end, pooled = 0, 0, False
    inside = ""
    while True:
        ahead = _ahead(trace, at)
        if not layers:
            # Of several parallel convolutions of the image, the largest counts.
            first = [i for i in ahead if _is_layer(trace.ops[i])]
            if not first:
                break
            at = max(first, key=lambda i: (max(_kernel(trace.ops[i])), i))
            layers.append(trace.ops[at])
            inside = trace.ops[at].path.split(".")[0]
            end = at
            if len(ahead) > 1:
                end = max(ahead)
                break
            continue
        if len(ahead) != 1:
            break
        (at,) = ahead
        op = trace.ops[at]
        if op.is_pool:
            top = op.path.split(".")[0]
            pooled = top == inside or _is_single(trace, top)
            end = at if pooled else end
            break
        if op.is_conv and not op.weight:  # a blur belongs to the layer before it
            continue
        if not (_is_layer(op) and _belongs(trace, op, inside, layers)):
            break
        layers.append(op)
        end = at
    return Stem("/".join(_written(layers)) or "-", pooled, len(layers), end)


def _ahead(trace: Trace, start: int) -> list[int]:
    """The next layers and pools after an operation, and the ends of shortcuts beside them."""

    def stop(i: int) -> bool:
        op = trace.ops[i]
        return op.is_conv or op.is_dense or op.is_pool or op.is_product or trace.is_residual(i)

    return [i for i in trace.downstream(start, stop) if stop(i)]


def _is_layer(op: Op) -> bool:
    if op.is_conv:
        return op.groups == 1 and max(op.kernel) > 1 and bool(op.weight)
    return op.is_dense and len(op.shape) >= 2 and _patch(op) > 1  # a linear map of patches


def _patch(op: Op) -> int:
    """Pixels a side of the patch that a linear layer on RGB pixels takes; 0 if it is not one."""
    inputs = min(op.weight) if len(op.weight) < 2 else op.weight[0]
    side = isqrt(inputs // 3)
    return side if 3 * side * side == inputs else 0


def _kernel(op: Op) -> tuple[int, ...]:
    return op.kernel if op.is_conv else (_patch(op),) * 2


def _belongs(trace: Trace, op: Op, inside: str, layers: list[Op]) -> bool:
    """Whether a layer is in the stem's module, or all have been single layers so far."""
    top = op.path.split(".")[0]
    if top == inside:
        return True
    return all(_is_single(trace, path.path.split(".")[0]) for path in (*layers, op))


def _is_single(trace: Trace, top: str) -> bool:
    """A child of the network that is one layer: a convolution with its norm, a pool."""
    convs = {
        op.path
        for op in trace.ops
        if op.is_conv and op.weight and (op.path == top or op.path.startswith(top + "."))
    }
    listed = trace.classes.get(top) in ("Sequential", "ModuleList")
    return not convs or (len(convs) == 1 and not listed)


def _written(layers: list[Op]) -> list[str]:
    words = []
    for op in layers:
        kernel, stride = _kernel(op), op.stride if op.is_conv else _kernel(op)
        size = str(kernel[0]) if len(set(kernel)) == 1 else "x".join(map(str, kernel))
        step = stride[0]
        words.append(size if words and step == 1 else f"{size}s{step}")
    return words
