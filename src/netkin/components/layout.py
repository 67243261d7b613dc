"""Which axis of a tensor holds channels, followed through an operation.

Networks keep features as [B, C, H, W], [B, N, C], windows or heads, and go from one to the other
by views and transposes. Whether a linear layer mixes channels or places, and at how many places,
can be told only by the axis of its channels.
"""

from math import prod
from typing import Any

Shape = tuple[int, ...]


def channel_axis(
    name: str,
    arguments: dict[str, Any],
    axis: int | None,
    before: Shape,
    after: Shape,
    over_positions: bool,
) -> int | None:
    """The channels' axis of an operation's result, None where it is lost.

    Args:
        name: of the ATen operation.
        arguments: by the names of its schema.
        axis: the channels' axis of its main input, of shape `before`.
        after: the shape of its result.
        over_positions: whether it is a linear layer over places instead of channels.
    """
    if name == "convolution" and len(after) == 3 and axis == 2:
        return 2  # along channels, as in ECA
    if name in ("convolution", "native_group_norm", "native_batch_norm"):
        return 1
    if name == "native_layer_norm":
        return len(after) - 1 if len(arguments["normalized_shape"]) == 1 else axis
    if name in ("addmm", "mm", "bmm", "baddbmm"):
        return axis if over_positions else len(after) - 1
    if axis is None:
        return None
    if name in ("permute", "transpose", "t"):
        return _moved(name, arguments, axis, len(before))
    if name in ("view", "_unsafe_view", "reshape", "unflatten"):
        return _viewed(axis, before, after)
    if name in ("mean", "sum", "amax", "amin", "select", "unbind", "unsqueeze", "squeeze", "stack"):
        return _resized(name, arguments, axis, before, after)
    if name == "im2col":
        return 1
    return axis if len(before) == len(after) else None


def _moved(name: str, arguments: dict[str, Any], axis: int, ndim: int) -> int:
    if name == "permute":
        return [d % ndim for d in arguments["dims"]].index(axis)
    first, second = (0, 1) if name == "t" else (arguments["dim0"], arguments["dim1"])
    order = list(range(ndim))
    order[first % ndim], order[second % ndim] = order[second % ndim], order[first % ndim]
    return order.index(axis)


def _viewed(axis: int, before: Shape, after: Shape) -> int | None:
    """The axis that the innermost step along the channels falls into."""
    step = prod(before[axis + 1 :])
    for new in reversed(range(len(after))):
        inner = prod(after[new + 1 :])
        if inner <= step < inner * after[new]:
            return new
    return None


def _resized(
    name: str, arguments: dict[str, Any], axis: int, before: Shape, after: Shape
) -> int | None:
    """After axes came or went."""
    if name in ("unsqueeze", "stack"):
        new = arguments.get("dim", 0) % len(after)
        return axis + (new <= axis)
    dims = arguments.get("dim", range(len(before)))
    gone = {d % len(before) for d in ([dims] if isinstance(dims, int) else list(dims or ()))}
    if name == "squeeze":
        gone = {d for d in gone if before[d] == 1}
    if len(after) == len(before):  # the axis stays, with size 1
        return None if axis in gone and before[axis] > 1 else axis
    if axis in gone:
        return None
    return axis - sum(d < axis for d in gone)
