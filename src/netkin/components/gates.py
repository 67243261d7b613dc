"""Channel-wise attention: a feature map scaled (or shifted) by a vector that is pooled from it."""

from dataclasses import dataclass

from netkin.components.parts import norm_class
from netkin.components.trace import Trace


@dataclass(frozen=True)
class Gate:
    """One channel attention.

    Attributes:
        kind: SE (two layers between pool and gate), ESE (one), ECA (a convolution along
            channels), GCA (pooled by attention over places), CBAM (also max-pooled), Split (a
            softmax over parallel branches), GE (no layer).
        location: Middle, when a convolution of the same block follows, or End.
        at: the operation that applies it.
    """

    kind: str
    location: str
    at: int


def gates(trace: Trace) -> list[Gate]:
    """The channel attention of a network, in order."""
    attention = []
    for i, op in enumerate(trace.ops):
        if norm_class(trace.classes.get(op.path, "")):
            continue  # it scales by a mean over places, but to normalise
        if op.name in ("mul", "add") and len(op.inputs) == 2 and op.positions > 1:
            source = _pooled_input(trace, i)
            if source is not None and (kind := _kind(trace, source, op.name == "add")):
                attention.append(Gate(kind, _location(trace, i), i))
    return attention


def channel_attention(trace: Trace) -> tuple[str, str]:
    """What, such as "Yes (SE)", and where: "Middle", "End" or both; ("No", "~") without."""
    attention = gates(trace)
    if not attention:
        return "No", "~"
    kinds = ", ".join(dict.fromkeys(gate.kind for gate in attention))
    locations = {gate.location for gate in attention}
    return f"Yes ({kinds})", " + ".join(where for where in ("Middle", "End") if where in locations)


def _pooled_input(trace: Trace, i: int) -> int | None:
    """Of the two factors the one that has each channel once, if the other has it at many places."""
    op = trace.ops[i]
    for small, large in (op.inputs, op.inputs[::-1]):
        while trace.ops[small].name in ("expand", "alias") and trace.ops[small].inputs:
            small = trace.ops[small].inputs[0]
        gate, features = trace.ops[small], trace.ops[large]
        axis = features.channels
        if axis is None or len(gate.shape) != len(features.shape) or features.shape == gate.shape:
            continue
        if gate.shape[axis] != features.shape[axis] or features.shape[axis] == 1:
            continue
        places = [n for d, n in enumerate(gate.shape) if d != axis]
        if all(n == 1 for n in places) or _after_softmax(trace, small):
            return small
    return None


def _after_softmax(trace: Trace, i: int) -> bool:
    def stop(j: int) -> bool:
        return trace.ops[j].is_dense or trace.ops[j].is_conv or trace.ops[j].is_product

    above = [i, *trace.upstream(i, stop)]
    return any("softmax" in trace.ops[j].name for j in above) and any(map(stop, above))


def _kind(trace: Trace, source: int, added: bool) -> str:
    """The operations between the pool and the gate; empty where it is no attention."""

    def pools(j: int) -> bool:
        op = trace.ops[j]
        before = max((trace.ops[k].positions for k in op.inputs), default=0)
        reduces = op.name in ("mean", "sum", "amax", "_adaptive_avg_pool2d") or op.is_product
        return before > 1 and (op.positions == 1 or min(op.shape[-2:]) == 1) and reduces

    between, pool = [], []
    for j in [source, *trace.upstream(source, pools)]:
        (pool if pools(j) else between).append(trace.ops[j])
    if not pool or any(op.positions > 3 and op.is_conv for op in between):
        return ""
    learned = {op.path for op in between if op.is_dense or op.is_conv}
    if any("softmax" in op.name for op in between):
        return "Split"
    if any(op.is_product for op in pool):
        return "GCA"
    if any(op.is_conv and len(op.weight) == 3 for op in between):
        return "ECA"
    if any(op.name == "amax" for op in pool):
        return "CBAM"
    if added and not learned:
        return ""
    return ("GE", "ESE")[len(learned)] if len(learned) < 2 else "SE"


def _location(trace: Trace, i: int) -> str:
    block = trace.ops[i].path.rpartition(".")[0]

    def stop(j: int) -> bool:
        return trace.is_residual(j) or not trace.ops[j].path.startswith(block)

    after = trace.downstream(i, stop)
    inside = [trace.ops[j] for j in after if trace.ops[j].path.startswith(block + ".")]
    return "Middle" if any(op.is_conv and op.positions > 1 for op in inside) else "End"
