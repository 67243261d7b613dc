"""Norms, activations, channel attention, kinds of convolution and the final pooling.

Which modules are activations is told by what they compute, not by a list: every operation in it is
elementwise and depends on one input, and one of them is not linear. A module that computes such a
function from others (StarReLU: s * relu(x)² + b) is one activation, named for its class. A module
that only scales or shifts another one (timm's GammaAct) is that one.
"""

import re
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files

from netkin.components.trace import Op, Trace

NAMES = tomllib.loads((files("netkin.components") / "names.toml").read_text(encoding="utf-8"))
NORMS, ACTIVATIONS, ORDER = NAMES["norms"], NAMES["activations"], NAMES["order"]
MAXIMA = ("amax", "max", "max_pool2d_with_indices", "adaptive_max_pool2d", "_adaptive_max_pool2d")
AVERAGES = ("mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d")


def _joined(names: set[str], kind: str) -> str:
    """Names in a table's cell: those of ORDER first."""
    known = [name for name in ORDER[kind] if name in names]
    return " + ".join([*known, *sorted(names - set(known))])


def norm_class(name: str) -> str:
    """The norm that a class of this name computes from elementary operations, empty if none."""
    known = NAMES["norm_classes"].items()
    return next((norm for pattern, norm in known if re.search(pattern, name, re.I)), "")


def normalization(trace: Trace) -> str:
    """Such as "LN + BN"; "Affine transform" for learned scales and shifts in place of a norm, and
    "Norm-free" without either."""
    norms = {NORMS[op.name] for op in trace.ops if op.name in NORMS}
    norms |= {norm for name in trace.classes.values() if (norm := norm_class(name))}
    if norms:
        return _joined(norms, "norms")
    # A learned scale and shift in one: beta + alpha * x, as in ResMLP.
    affine = any(op.name == "addcmul" and op.weight and op.positions > 1 for op in trace.ops)
    return "Affine transform" if affine else "Norm-free"


def final_pooling(trace: Trace) -> str:
    """How places become one before the classifier: GAP, CLS token, Attention, Max, Sum, Flatten
    (a linear layer or convolution over all of them), or None. Several of one feature map, which are
    added or concatenated, are all named, such as "GAP + Max"."""
    for i in (trace.output, *trace.upstream(trace.output, lambda _: False)):
        pooling = _pooling(trace, i)
        if pooling == "CLS token" and _attends_before(trace, i):
            return "Attention"
        if pooling in ORDER["pools"]:
            return _joined({pooling, *_parallel_pools(trace, i)}, "pools")
        if pooling:
            return pooling
    return "None"


def _parallel_pools(trace: Trace, pool: int) -> set[str]:
    """The kinds of pooling that take the same feature map and lead to the output."""
    source = trace.source(pool)
    beside = [i for i in trace.upstream(trace.output, lambda i: i <= source) if i > source]
    kinds = {_pooling(trace, i) for i in beside if trace.source(i) == source}
    return kinds & set(ORDER["pools"])


def _pooling(trace: Trace, i: int) -> str:
    op = trace.ops[i]
    by_softmax = op.is_product and "softmax" in trace.ops[trace.source(i)].name
    if by_softmax and len(op.inputs) > 1 and op.shape[-2] == 1:
        return "Attention"
    if op.name == "slice" and op.positions == 2 and _positions_before(op, trace) > 3:
        return "CLS token"  # two of them: one for distillation
    if op.positions != 1:
        return ""
    if op.is_conv:
        return "Flatten" if _covers_all(op) else ""
    positions = _positions_before(op, trace)
    stacked = any(trace.ops[j].name == "stack" for j in op.inputs)
    if stacked and op.name in (*AVERAGES, "sum"):
        return ""  # of the logits of several heads
    if op.name in AVERAGES:
        if positions > 3:
            return "GAP"
        # Of a map of one place: the pool is there, but only its axes tell it from averaged heads.
        if _over_space(op):
            above = [trace.ops[j] for j in trace.upstream(i, trace.is_residual)]
            return "Flatten" if any(o.is_conv and _covers_all(o) for o in above) else "GAP"
    if positions < 4:  # fewer are heads, whose logits are averaged
        return ""
    if op.name in MAXIMA:
        return "Max"
    if op.name in ("select", "slice"):
        return "CLS token"
    if op.name == "sum":
        return "Sum"
    flattened = op.name in ("view", "_unsafe_view", "reshape") and len(op.input_shapes[0]) == 4
    return "Flatten" if flattened and len(op.shape) == 2 else ""


def _covers_all(op: Op) -> bool:
    """A convolution of a whole feature map, as VGG's first fully connected layer."""
    return max(op.kernel) > 3 and op.kernel == op.input_shapes[0][2:]


def _over_space(op: Op) -> bool:
    ndim = len(op.input_shapes[0])
    dims = tuple(sorted(d % ndim for d in op.dims))
    return "pool" in op.name or (ndim, dims) in ((4, (2, 3)), (4, (1, 2)), (3, (1,)))


def _attends_before(trace: Trace, i: int) -> bool:
    """Whether attention precedes a token's last block: it pools, and the token only reads."""

    def stop(j: int) -> bool:
        op = trace.ops[j]
        return op.name == "add" and len(op.inputs) == 2 and len(set(op.input_shapes)) == 1

    return any(trace.ops[j].is_product for j in trace.upstream(i, stop))


def _positions_before(op: Op, trace: Trace) -> int:
    return max((trace.ops[i].positions for i in op.inputs), default=0)


SQUARES = ("pow", "square")
BOUNDS = ("clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where", "abs")
CURVES = ("sigmoid", "hardsigmoid", "tanh", "exp", "log", "log1p", "erf", "sin", "cos", "sqrt")
BENT = frozenset((*ACTIVATIONS, *SQUARES, *BOUNDS, *CURVES))
"""Elementwise operations that are not linear. A sigmoid by itself is a gate, no activation."""
ELEMENTWISE = BENT | {"mul", "add", "sub", "rsub", "div", "neg", "addcmul", "clone", "_to_copy"}
ACTIVE_NORMS = ("EvoNorm", "FRN")
CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


def is_activated(trace: Trace, i: int) -> bool:
    """Whether an operation takes the result of an activation, which may be part of a norm."""
    source = trace.source(i)
    if trace.ops[source].name in ACTIVATIONS:
        return True
    path = trace.ops[source].path
    if trace.ops[source].name not in ELEMENTWISE or not path:
        return False
    if norm_class(trace.classes.get(path, "")) in ACTIVE_NORMS:
        return True
    return bool(_name(trace, path, [j for j, op in enumerate(trace.ops) if op.path == path]))


def activation(trace: Trace) -> str:
    """Such as "ReLU + SiLU", those inside channel attention among them; gates are not. "-" where
    there is none, as when it is part of the norm."""
    modules = _modules(trace)
    names = set()
    for i, op in enumerate(trace.ops):
        if op.name in BENT:
            outermost = next((path for path in _ancestors(op.path) if path in modules), None)
            if outermost is not None:
                names.add(modules[outermost])
            elif op.name in ACTIVATIONS:
                names.add("SquaredReLU" if _is_squared(trace, i) else ACTIVATIONS[op.name])
    names.discard("")
    return _joined(names, "activations") if names else "-"


def _modules(trace: Trace) -> dict[str, str]:
    """The modules that compute an activation, each with its name, "" if it is a gate."""
    within: dict[str, list[int]] = defaultdict(list)
    for i, op in enumerate(trace.ops):
        for path in _ancestors(op.path):
            within[path].append(i)
    named = {path: _name(trace, path, inside) for path, inside in within.items()}
    return {path: name for path, name in named.items() if name is not None}


def _ancestors(path: str) -> list[str]:
    """The modules that an operation of this path is in, from the outermost, without the network."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)] if path else []


def _name(trace: Trace, path: str, inside: list[int]) -> str | None:
    """What a module of these operations computes, None if it is no activation."""
    ops = [trace.ops[i] for i in inside]
    module = trace.classes.get(path)
    if module is None or module in CONTAINERS or norm_class(module):
        return None
    if any(op.name not in ELEMENTWISE for op in ops) or not _has_one_input(trace, inside):
        return None
    kinds = {op.name for op in ops} & BENT
    if not kinds:
        return None
    if module in NAMES["activation_classes"]:
        return NAMES["activation_classes"][module]
    multiplies = any(op.name in ("mul", "div") and len(op.inputs) > 1 for op in ops)
    if len(kinds) > 1 or multiplies:
        return module
    return ACTIVATIONS.get(kinds.pop(), "")


def _has_one_input(trace: Trace, inside: list[int]) -> bool:
    """Whether each operation depends on one result from outside; a module may run several times."""
    sources: dict[int, set[int]] = {}
    for i in inside:
        sources[i] = set().union(*(sources.get(j, {j}) for j in trace.ops[i].inputs))
    return all(len(each) <= 1 for each in sources.values())


def _is_squared(trace: Trace, i: int) -> bool:
    """Whether a ReLU is only there to be squared, as by `relu(x) ** 2` in a forward pass."""
    consumers = [trace.ops[j] for j in trace.consumers[i]]
    squares = (c.name in SQUARES or (c.name == "mul" and c.inputs == (i, i)) for c in consumers)
    return trace.ops[i].name == "relu" and bool(consumers) and all(squares)


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
        others = [n for d, n in enumerate(gate.shape) if d != axis]
        if all(n == 1 for n in others) or _after_softmax(trace, small):
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
        before = _positions_before(op, trace)
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
    after = trace.downstream(
        i, lambda j: trace.is_residual(j) or not trace.ops[j].path.startswith(block)
    )
    inside = [trace.ops[j] for j in after if trace.ops[j].path.startswith(block + ".")]
    return "Middle" if any(op.is_conv and op.positions > 1 for op in inside) else "End"
