"""Whether an architecture was found by search, inferred from its shape.

A search leaves choices that differ from block to block, where a person would use one throughout,
and the blocks of the design spaces that were searched. A network counts as searched when it has

- inverted bottlenecks (MobileNet's: expand, depthwise, linear projection) whose kernel or
  expansion varies, or that hold channel attention: MnasNet, MobileNetV3, EfficientNet, FBNet,
  MixNet, ReXNet; but not MobileNetV2, which repeats one block;
- grouped bottlenecks that do not narrow, with one group width over all stages: the RegNet
  design spaces;
- cells that join many separable convolutions of three sizes or more: NASNet;
- windowed attention whose window differs between stages: S3.
"""

from collections import defaultdict
from itertools import pairwise

from netkin.components.activations import is_activated
from netkin.components.gates import gates
from netkin.components.stem import Stem
from netkin.components.trace import Op, Trace


def is_searched(trace: Trace, stem: Stem) -> bool:
    """Whether a CNN has one of the marks above."""
    return _inverted(trace, stem) or _design_space(trace) or _cells(trace)


def _layers_before(trace: Trace, i: int) -> list[int]:
    """The layers over many places whose results an operation takes, through norms and the like."""

    def stop(j: int) -> bool:
        return _is_layer(trace.ops[j])

    return [j for j in trace.upstream(i, stop) if stop(j)]


def _layers_after(trace: Trace, i: int) -> list[int]:
    def stop(j: int) -> bool:
        return _is_layer(trace.ops[j]) or trace.is_residual(j)

    return [j for j in trace.downstream(i, stop) if _is_layer(trace.ops[j])]


def _ends_block(trace: Trace, i: int) -> bool:
    """Whether a layer is the last of its branch."""

    def stop(j: int) -> bool:
        return _is_layer(trace.ops[j]) or trace.is_residual(j)

    return any(trace.is_residual(j) for j in trace.downstream(i, stop))


def _is_layer(op: Op) -> bool:
    # One of a single output weighs places, as in an attention's pooling.
    return op.is_conv and len(op.weight) == 4 and op.positions > 1 < op.weight[0]


def _is_pointwise(op: Op) -> bool:
    return op.is_conv and len(op.weight) == 4 and max(op.kernel) == 1


def _inverted(trace: Trace, stem: Stem) -> bool:
    ops = trace.ops
    gated = [gate.at for gate in gates(trace)]
    spatial: dict[tuple[int, ...], list[int]] = defaultdict(list)  # by the layers before
    for i, op in enumerate(ops):
        if i > stem.end and op.is_depthwise and max(op.kernel) > 1:
            before = _layers_before(trace, i)
            if all(_is_pointwise(ops[j]) for j in before) and is_activated(trace, i):
                spatial[tuple(sorted(before))].append(i)
    blocks = []
    for before, depthwise in spatial.items():
        after = {j for i in depthwise for j in _layers_after(trace, i)}
        if not after or not all(_is_pointwise(ops[j]) for j in after):
            continue
        middle = sum(ops[i].width for i in depthwise)
        wide = sum(ops[j].weight[0] for j in before)
        ins = max(ops[j].weight[1] * ops[j].groups for j in before)
        outs = max(ops[j].weight[0] for j in after)
        enter = sum(ops[j].weight[1] * ops[j].groups for j in after)
        if wide == middle == enter and ins < middle > outs:
            held = any(max(depthwise) < g < min(after) for g in gated)
            kernel = tuple(sorted(ops[i].kernel for i in depthwise))
            blocks.append((kernel, middle / ins, held))
    if len(blocks) < 2:
        return False
    ratios = [ratio for _, ratio, _ in blocks]
    return (
        len({kernel for kernel, _, _ in blocks}) > 1
        or max(ratios) > 1.2 * min(ratios)
        or any(held for *_, held in blocks)
    )


def _design_space(trace: Trace) -> bool:
    ops = trace.ops
    widths, groups = set(), set()
    for i, op in enumerate(ops):
        if not op.is_grouped or max(op.kernel) == 1:
            continue
        before, after = _layers_before(trace, i), _layers_after(trace, i)
        if len(before) != 1 or not after or not _is_pointwise(ops[before[0]]):
            continue
        if not all(_is_pointwise(ops[j]) for j in after) or ops[before[0]].width != op.width:
            continue
        if not all(_ends_block(trace, j) for j in after):
            continue
        if max(ops[j].weight[0] for j in after) > op.width:
            return False
        widths.add(op.weight[1])
        groups.add(op.groups)
    return len(widths) == 1 and len(groups) > 1


def _cells(trace: Trace) -> bool:
    joins = [
        op for op in trace.ops if op.name == "cat" and len(op.inputs) >= 4 and op.positions > 1
    ]
    kernels = {op.kernel for op in trace.ops if op.is_depthwise and len(set(op.kernel)) == 1}
    return len(joins) > 3 and len(kernels) > 2


def windows_differ(trace: Trace) -> bool:
    """Whether attention with a learned bias of place has windows of several sizes, one of them
    larger than that of the stage before (smaller ones are forced when a feature map is small)."""
    sizes = []
    for op in trace.ops:
        # The bias is added to the map of queries by keys, [windows, heads, n, n].
        biased = op.name == "add" and len(op.shape) == 4 and bool(op.weight) and op.weight[0] == 1
        if biased and op.shape[-1] == op.shape[-2] and (not sizes or sizes[-1] != op.shape[-1]):
            sizes.append(op.shape[-1])
    return any(later > earlier for earlier, later in pairwise(sizes))
