"""Components that are counted anywhere in a network: norms, activations, kinds of convolution."""

import re
from collections.abc import Callable

from netkin.zoo.components.trace import Op, Trace

NORMS = {
    "native_layer_norm": "LN",
    "native_batch_norm": "BN",
    "cudnn_batch_norm": "BN",
    "native_group_norm": "GN",
    "_fused_rms_norm": "RMSNorm",
    "rms_norm": "RMSNorm",
}
NORM_CLASSES = (  # computed step by step from elementary operations
    (r"evonorm", "EvoNorm"),
    (r"rms_?norm|simple_?norm", "RMSNorm"),
    (r"filterresponsenorm", "FRN"),
    (r"frozenbatchnorm|inplaceabn", "BN"),
    (r"instancenorm", "IN"),
    (r"^dyt$|dynamictanh", "DyT"),
)
AVERAGES = ("mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d")
NORM_ORDER = ("LN", "BN", "GN", "IN", "RMSNorm", "EvoNorm", "FRN", "DyT")

ACTIVATIONS = {
    "gelu": "GeLU",
    "relu": "ReLU",
    "silu": "SiLU",
    "hardtanh": "ReLU6",
    "leaky_relu": "Leaky ReLU",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "elu": "ELU",
    "prelu": "PReLU",
    "_prelu_kernel": "PReLU",
    "softplus": "Softplus",
}
ACTIVATION_CLASSES = {  # computed step by step, or around another activation
    "QuickGELU": "QuickGeLU",
    "StarReLU": "StarReLU",
    "ReLUSquared": "ReLU²",
    "ReluSquared": "ReLU²",
    "Swish": "SiLU",
    "HardMish": "HardMish",
    "PReLU": "PReLU",
}
ACTIVATION_ORDER = ("GeLU", "ReLU", "Leaky ReLU", "SiLU", "HardSwish", "ReLU6")


def is_norm(op: Op) -> bool:
    """Whether an operation is a normalisation that ATen knows as one."""
    return op.name in NORMS


def is_activation(op: Op) -> bool:
    """Whether an operation is an activation that ATen knows as one."""
    return op.name in ACTIVATIONS


def normalization(trace: Trace) -> str:
    """Such as "LN + BN"; "Affine transform" for learned scales and shifts in place of a norm, and
    "Norm-free" without either."""
    norms = {NORMS[op.name] for op in trace.ops if is_norm(op)}
    for name in trace.classes.values():
        norms |= {norm for pattern, norm in NORM_CLASSES if re.search(pattern, name, re.I)}
    if norms:
        return _joined(norms, NORM_ORDER)
    return "Affine transform" if any(map(_is_affine, trace.ops)) else "Norm-free"


def _is_affine(op: Op) -> bool:
    """A learned scale and shift in one: beta + alpha * x, as in ResMLP."""
    return op.name == "addcmul" and bool(op.weight) and op.positions > 1


def activation(trace: Trace) -> str:
    """Such as "ReLU + SiLU", those inside channel attention among them; gates are not. "-" where
    there is none, as when it is part of the norm."""
    names = {_activation(op, trace.classes.get(op.path, "")) for op in trace.ops} - {""}
    return _joined(names, ACTIVATION_ORDER) if names else "-"


def _activation(op: Op, module: str) -> str:
    if op.name in ACTIVATIONS or op.name in ("sigmoid", "hardsigmoid", "pow"):
        return ACTIVATION_CLASSES.get(module, ACTIVATIONS.get(op.name, ""))
    return ""


def any_op(trace: Trace, test: Callable[[Op], bool]) -> str:
    """Yes or No."""
    return "Yes" if any(map(test, trace.ops)) else "No"


def final_pooling(trace: Trace) -> str:
    """How places become one before the classifier: GAP, CLS token, Attention, Max, Sum, Flatten
    (a linear layer or convolution over all of them), or None."""
    for i in (trace.output, *trace.upstream(trace.output, lambda _: False)):
        pooling = _pooling(trace, i)
        if pooling == "CLS token" and _attends_before(trace, i):
            return "Attention"
        if pooling:
            return pooling
    return "None"


def _pooling(trace: Trace, i: int) -> str:
    op = trace.ops[i]
    if (
        op.is_product
        and len(op.inputs) > 1
        and op.shape[-2] == 1
        and "softmax" in _factor(trace, i)
    ):
        return "Attention"
    if op.name == "slice" and op.positions == 2 and _places(op, trace) > 3:
        return "CLS token"  # two of them: one for distillation
    if op.positions != 1:
        return ""
    if op.is_conv:
        return "Flatten" if _covers_all(op) else ""
    places = _places(op, trace)
    if op.name in AVERAGES:
        if places > 3:
            return "GAP"
        # Of a map of one place: the pool is there, but only its axes tell it from averaged heads.
        if _over_space(op):
            return "Flatten" if _flattened_before(trace, i) else "GAP"
    if places < 4:  # fewer are heads, whose logits are averaged
        return ""
    if op.name in ("amax", "max_pool2d_with_indices", "_adaptive_max_pool2d"):
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


def _flattened_before(trace: Trace, i: int) -> bool:
    above = trace.upstream(i, trace.is_residual)
    return any(trace.ops[j].is_conv and _covers_all(trace.ops[j]) for j in above)


def _factor(trace: Trace, product: int) -> str:
    """The operation that computed a product's first factor."""
    return trace.ops[trace.source(product)].name


def _attends_before(trace: Trace, i: int) -> bool:
    """Whether attention precedes a token's last block: it pools, and the token only reads."""

    def stop(j: int) -> bool:
        op = trace.ops[j]
        return op.name == "add" and len(op.inputs) == 2 and len(set(op.input_shapes)) == 1

    return any(trace.ops[j].is_product for j in trace.upstream(i, stop))


def _places(op: Op, trace: Trace) -> int:
    return max((trace.ops[i].positions for i in op.inputs), default=0)


def _joined(names: set[str], order: tuple[str, ...]) -> str:
    known = [name for name in order if name in names]
    return " + ".join([*known, *sorted(names - set(order))])
