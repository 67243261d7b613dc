"""Components that are counted anywhere in a network: norms, kinds of convolution, final pooling."""

import re
from collections.abc import Callable

from netkin.components.trace import Op, Trace, joined

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
MAXIMA = ("amax", "max", "max_pool2d_with_indices", "adaptive_max_pool2d", "_adaptive_max_pool2d")
AVERAGES = ("mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d")
POOLS = ("CLS token", "GAP", "Max", "Sum")
NORM_ORDER = ("LN", "BN", "GN", "IN", "RMSNorm", "EvoNorm", "FRN", "DyT")


def is_norm(op: Op) -> bool:
    """Whether an operation is a normalisation that ATen knows as one."""
    return op.name in NORMS


def norm_class(name: str) -> str:
    """The norm that a class of this name computes from elementary operations, empty if none."""
    return next((norm for pattern, norm in NORM_CLASSES if re.search(pattern, name, re.I)), "")


def normalization(trace: Trace) -> str:
    """Such as "LN + BN"; "Affine transform" for learned scales and shifts in place of a norm, and
    "Norm-free" without either."""
    norms = {NORMS[op.name] for op in trace.ops if is_norm(op)}
    norms |= {norm for name in trace.classes.values() if (norm := norm_class(name))}
    if norms:
        return joined(norms, NORM_ORDER)
    return "Affine transform" if any(map(_is_affine, trace.ops)) else "Norm-free"


def _is_affine(op: Op) -> bool:
    """A learned scale and shift in one: beta + alpha * x, as in ResMLP."""
    return op.name == "addcmul" and bool(op.weight) and op.positions > 1


def any_op(trace: Trace, test: Callable[[Op], bool]) -> str:
    """Yes or No."""
    return "Yes" if any(map(test, trace.ops)) else "No"


def final_pooling(trace: Trace) -> str:
    """How places become one before the classifier: GAP, CLS token, Attention, Max, Sum, Flatten
    (a linear layer or convolution over all of them), or None. Several of one feature map, which are
    added or concatenated, are all named, such as "GAP + Max"."""
    for i in (trace.output, *trace.upstream(trace.output, lambda _: False)):
        pooling = _pooling(trace, i)
        if pooling == "CLS token" and _attends_before(trace, i):
            return "Attention"
        if pooling in POOLS:
            return joined({pooling, *_parallel_pools(trace, i)}, POOLS)
        if pooling:
            return pooling
    return "None"


def _parallel_pools(trace: Trace, pool: int) -> set[str]:
    """The kinds of pooling that take the same feature map and lead to the output."""
    source = trace.source(pool)

    def stop(i: int) -> bool:
        return i <= source

    beside = [i for i in trace.upstream(trace.output, stop) if i > source]
    kinds = {_pooling(trace, i) for i in beside if trace.source(i) == source}
    return kinds & set(POOLS)


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
    stacked = any(trace.ops[j].name == "stack" for j in op.inputs)
    if stacked and op.name in (*AVERAGES, "sum"):
        return ""  # of the logits of several heads
    if op.name in AVERAGES:
        if places > 3:
            return "GAP"
        # Of a map of one place: the pool is there, but only its axes tell it from averaged heads.
        if _over_space(op):
            return "Flatten" if _flattened_before(trace, i) else "GAP"
    if places < 4:  # fewer are heads, whose logits are averaged
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
