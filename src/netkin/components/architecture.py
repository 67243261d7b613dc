"""How a network mixes places (by attention, convolution, or a layer over tokens), and whether it
was found by search, which is inferred from its shape.

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
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from netkin.components.parts import gates, is_activated
from netkin.components.stem import Stem
from netkin.components.trace import Op, Trace

PATCHES = ("patch_embed",)


@dataclass(frozen=True)
class Attention:
    """One product of queries, keys or values.

    Attributes:
        in_bottleneck: it stands in for the convolution of a bottleneck block, between layers with
            their activations, rather than in a branch of its own as a transformer's does.
        kind: Halo (each block of queries sees a larger neighbourhood), BoT (all see all), or
            Lambda (no map of queries by keys is computed).
        at: the operation.
    """

    in_bottleneck: bool
    kind: str
    at: int


def attentions(trace: Trace) -> list[Attention]:
    """The self-attention of a network, without that of a pooling head."""
    last = max((i for i in range(len(trace.ops)) if trace.is_residual(i)), default=-1)
    products = []
    for i, op in enumerate(trace.ops[:last]):
        product = op.is_product and min(op.shape[-2:]) > 1 and len(op.inputs) > 1
        if product or _weighs_positions(trace, i):
            products.append(Attention(_in_bottleneck(trace, i), _kind(trace, i), i))
    return products


def _weighs_positions(trace: Trace, i: int) -> bool:
    """A sum of features over places, weighted by a map that depends on the image: attention without
    any matrix product, as in MobileViTv2 and SwiftFormer."""
    op = trace.ops[i]
    source = trace.ops[op.inputs[0]] if op.name == "sum" and op.inputs else None
    if source is None or source.name != "mul" or len(source.inputs) != 2 or op.positions < 1:
        return False
    axis, large = source.channels, source.shape
    small = min(source.input_shapes, key=prod)
    if axis is None or len(small) != len(large) or small[axis] != 1 or large[axis] == 1:
        return False
    others = [n for d, n in enumerate(large) if d != axis]
    return others == [n for d, n in enumerate(small) if d != axis] and prod(others) > 4


def _in_bottleneck(trace: Trace, product: int) -> bool:
    """Whether queries, keys and values are all computed from the output of an activation."""
    ops = trace.ops
    above = trace.upstream(product, lambda i: ops[i].is_dense or ops[i].is_depthwise)
    maps = [i for i in above if _is_map(trace, ops[i])]
    return bool(maps) and all(is_activated(trace, i) for i in maps)


def _is_map(trace: Trace, op: Op) -> bool:
    """A layer across channels: not a product with a table of relative positions, for instance."""
    if op.is_conv:
        return len(op.shape) == 4 and bool(op.weight)
    return op.is_dense and "Linear" in trace.classes.get(op.path, "")


def _kind(trace: Trace, product: int) -> str:
    ops = trace.ops
    below = trace.downstream(product, lambda i: ops[i].is_dense or ops[i].is_product)
    if not any("softmax" in ops[i].name for i in below):
        return ""
    queries, keys = ops[product].shape[-2:]
    return "Halo" if queries < keys else "BoT"


def attention_2d(trace: Trace) -> str:
    """Self-attention over feature maps inside the blocks of a CNN, such as "Yes (Halo, BoT)"."""
    inside = [a for a in attentions(trace) if a.in_bottleneck]
    if not inside or not _is_convolutional(trace):
        return "No"
    modules: dict[str, set[str]] = {}  # the products of one module are one attention
    for attention in inside:
        modules.setdefault(trace.ops[attention.at].path, set()).add(attention.kind)
    kinds = set()
    for module, found in modules.items():
        # Without a map of queries by keys: Lambda if it takes a softmax of its keys.
        softmax = any("softmax" in op.name for op in trace.ops if op.path == module)
        without = "Lambda" if softmax else trace.classes.get(module, "?")
        kinds.add(next(iter(found - {""}), without))
    known = [kind for kind in ("Lambda", "Halo", "BoT") if kind in kinds]
    return f"Yes ({', '.join([*known, *sorted(kinds - set(known))])})"


def _is_convolutional(trace: Trace) -> bool:
    """Attention, if any, replaces convolutions."""
    products = attentions(trace)
    return 2 * sum(a.in_bottleneck for a in products) >= len(products)


def base_architecture(trace: Trace, stem: Stem) -> str:
    """CNN, Transformer, Hybrid, MLP-Mixer, NAS (CNN), NAS (TFM), or RNN.

    A transformer mixes places by attention only; convolutions may produce its tokens and change
    their number. A hybrid also mixes by convolution or pooling between the attentions, or has no
    layer norm, being built of convolutions with batch norm. A CNN whose bottleneck blocks hold
    attention stays a CNN. See above for NAS.
    """
    ops, products = trace.ops, attentions(trace)
    if products and not _is_convolutional(trace):
        # Layers after the last attention prepare features for other networks, as SAM's neck does.
        local = [i for i in range(stem.end + 1, products[-1].at) if _mixes_locally(trace, i)]
        names = {op.name for op in ops}
        classes = " ".join(trace.classes.values()).lower()
        layer_norm = "native_layer_norm" in names or "rms" in classes + " ".join(names)
        if local or not layer_norm:
            return "Hybrid"
        return "NAS (TFM)" if _windows_differ(trace) else "Transformer"
    recurrent = any(op.name in ("lstm", "mkldnn_rnn_layer", "gru") for op in ops)
    if recurrent or "LSTM" in trace.classes.values():
        return "RNN"
    if any(op.mixes_positions for op in ops):
        return "MLP-Mixer"
    searched = _inverted(trace, stem) or _design_space(trace) or _cells(trace)
    return "NAS (CNN)" if searched else "CNN"


def _mixes_locally(trace: Trace, i: int) -> bool:
    """A convolution or pooling that looks at neighbours and keeps the number of places."""
    op = trace.ops[i]
    if not op.kernel or max(op.kernel) == 1 or max(op.stride) > 1 or len(op.shape) != 4:
        return False
    if op.is_conv and not op.weight:
        return False
    # A convolution right before a pool, in one module with it, changes the number of tokens.
    parent = op.path.rpartition(".")[0]
    return not any(
        other.is_pool and max(other.stride) > 1 and parent and other.path.startswith(parent + ".")
        for other in trace.ops[i : i + 12]
    )


def hierarchy(trace: Trace, stem: Stem) -> str:
    """Yes if the blocks work at several resolutions; the layer that cuts patches does not count."""
    positions = [
        op.positions
        for i, op in enumerate(trace.ops)
        if i > stem.end
        and _is_map(trace, op)
        and not op.mixes_positions
        and op.positions > 3
        and not op.path.startswith(PATCHES)
    ]
    return "Yes" if positions and max(positions) > 1.5 * min(positions) else "No"


def _layers_before(trace: Trace, i: int) -> list[int]:
    """The layers over many places whose results an operation takes, through norms and the like."""
    above = trace.upstream(i, lambda j: _is_layer(trace.ops[j]))
    return [j for j in above if _is_layer(trace.ops[j])]


def _after(trace: Trace, i: int) -> list[int]:
    """What follows an operation, up to the next layers and the end of its branch."""
    return [*trace.downstream(i, lambda j: _is_layer(trace.ops[j]) or trace.is_residual(j))]


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
        after = {j for i in depthwise for j in _after(trace, i) if _is_layer(ops[j])}
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
        before = _layers_before(trace, i)
        after = [j for j in _after(trace, i) if _is_layer(ops[j])]
        if len(before) != 1 or not after or not _is_pointwise(ops[before[0]]):
            continue
        if not all(_is_pointwise(ops[j]) for j in after) or ops[before[0]].width != op.width:
            continue
        if not all(any(map(trace.is_residual, _after(trace, j))) for j in after):
            continue
        if max(ops[j].weight[0] for j in after) > op.width:
            return False
        widths.add(op.weight[1])
        groups.add(op.groups)
    return len(widths) == 1 and len(groups) > 1


def _cells(trace: Trace) -> bool:
    ops = trace.ops
    joins = sum(op.name == "cat" and len(op.inputs) >= 4 and op.positions > 1 for op in ops)
    kernels = {op.kernel for op in ops if op.is_depthwise and len(set(op.kernel)) == 1}
    return joins > 3 and len(kernels) > 2


def _windows_differ(trace: Trace) -> bool:
    """Whether attention with a learned bias of place has windows of several sizes, one of them
    larger than that of the stage before (smaller ones are forced when a feature map is small)."""
    sizes = []
    for op in trace.ops:
        # The bias is added to the map of queries by keys, [windows, heads, n, n].
        biased = op.name == "add" and len(op.shape) == 4 and bool(op.weight) and op.weight[0] == 1
        if biased and op.shape[-1] == op.shape[-2] and (not sizes or sizes[-1] != op.shape[-1]):
            sizes.append(op.shape[-1])
    return any(later > earlier for earlier, later in pairwise(sizes))
