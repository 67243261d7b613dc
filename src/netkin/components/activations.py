"""Activations: functions of each value by itself, one operation or a module of several.

A module that computes such a function from others (StarReLU: s * relu(x)² + b) is one activation,
named for its class. A module that only scales or shifts another one (timm's GammaAct) is that one.
Which modules are activations is told by what they compute, not by a list: every operation in it is
elementwise and depends on one input, and one of them is not linear.
"""

from collections import defaultdict

from netkin.components.parts import norm_class
from netkin.components.trace import Op, Trace, joined

ACTIVATIONS = {
    "gelu": "GeLU",
    "relu": "ReLU",
    "silu": "SiLU",
    "hardtanh": "ReLU6",
    "leaky_relu": "Leaky ReLU",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "elu": "ELU",
    "celu": "CELU",
    "selu": "SELU",
    "prelu": "PReLU",
    "_prelu_kernel": "PReLU",
    "softplus": "Softplus",
}
SQUARES = ("pow", "square")
BOUNDS = ("clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where", "abs")
CURVES = ("sigmoid", "hardsigmoid", "tanh", "exp", "log", "log1p", "erf", "sin", "cos", "sqrt")
BENT = frozenset((*ACTIVATIONS, *SQUARES, *BOUNDS, *CURVES))
"""Elementwise operations that are not linear. A sigmoid by itself is a gate, no activation."""
ELEMENTWISE = BENT | {"mul", "add", "sub", "rsub", "div", "neg", "addcmul", "clone", "_to_copy"}
ACTIVE_NORMS = ("EvoNorm", "FRN")
CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")
CLASSES = {  # in the words of the published table, and of its kind
    "QuickGELU": "QuickGeLU",
    "QuickGELUActivation": "QuickGeLU",
    "GELUTanh": "GeLU",
    "NewGELUActivation": "GeLU",
    "ReLUSquared": "SquaredReLU",
    "ReluSquared": "SquaredReLU",
    "ReLUSquaredActivation": "SquaredReLU",
    "Swish": "SiLU",
    "SwishMe": "SiLU",
    "HardSwish": "HardSwish",
    "HardSwishMe": "HardSwish",
    "HardSigmoid": "",
    "HardMishMe": "HardMish",
    "MishMe": "Mish",
    "PReLU": "PReLU",
}
ORDER = ("GeLU", "ReLU", "Leaky ReLU", "SiLU", "HardSwish", "ReLU6")


def is_activation(op: Op) -> bool:
    """Whether an operation is an activation that ATen knows as one."""
    return op.name in ACTIVATIONS


def is_activated(trace: Trace, i: int) -> bool:
    """Whether an operation takes the result of an activation, which may be part of a norm."""
    source = trace.source(i)
    if is_activation(trace.ops[source]):
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
            elif is_activation(op):
                names.add("SquaredReLU" if _is_squared(trace, i) else ACTIVATIONS[op.name])
    names.discard("")
    return joined(names, ORDER) if names else "-"


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
    if module in CLASSES:
        return CLASSES[module]
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

    def squares(op: Op) -> bool:
        return op.name in SQUARES or (op.name == "mul" and op.inputs == (i, i))

    consumers = trace.consumers[i]
    return (
        trace.ops[i].name == "relu"
        and bool(consumers)
        and all(squares(trace.ops[j]) for j in consumers)
    )
