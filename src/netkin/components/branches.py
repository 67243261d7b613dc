"""Branches of a graph of operations: where they part and where they join again."""

from collections.abc import Callable

from netkin.components.trace import Op, Trace


def fork(trace: Trace, start: int) -> tuple[int | None, list[int]]:
    """The first operation that all paths from `start` pass, and those between them in order.

    None if no operation follows.
    """
    if not trace.consumers[start]:
        return None, []
    inner: list[int] = []
    last = max(trace.consumers[start])
    for i in trace.downstream(start, lambda _: False):
        if i == last:
            return i, inner
        inner.append(i)
        last = max([last, *trace.consumers[i]])
    return None, inner


def longest(trace: Trace, join: int, inner: list[int], is_layer: Callable[[Op], bool]) -> list[int]:
    """Of the branches that `join` takes the one with the most layers, or the largest kernel."""
    layers: dict[int, list[int]] = {}

    def rank(branch: list[int]) -> tuple[int, int]:
        return len(branch), sum(max(trace.ops[i].kernel, default=1) for i in branch)

    for i in (*inner, join):
        before = max((layers.get(j, []) for j in trace.ops[i].inputs), key=rank, default=[])
        layers[i] = [*before, i] if i != join and is_layer(trace.ops[i]) else before
    return layers[join]
