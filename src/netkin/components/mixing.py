"""How a network mixes places: by attention, convolution, or a layer over tokens."""

from dataclasses import dataclass
from math import prod

from netkin.components.activations import is_activated
from netkin.components.searched import is_searched, windows_differ
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
        if product or _weighs_places(trace, i):
            products.append(Attention(_in_bottleneck(trace, i), _kind(trace, i), i))
    return products


def _weighs_places(trace: Trace, i: int) -> bool:
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
    places = [n for d, n in enumerate(large) if d != axis]
    return places == [n for d, n in enumerate(small) if d != axis] and prod(places) > 4


def _in_bottleneck(trace: Trace, product: int) -> bool:
    """Whether queries, keys and values are all computed from the output of an activation."""

    def stop(i: int) -> bool:
        return trace.ops[i].is_dense or trace.ops[i].is_depthwise

    maps = [i for i in trace.upstream(product, stop) if _is_map(trace, trace.ops[i])]
    return bool(maps) and all(is_activated(trace, i) for i in maps)


def _is_map(trace: Trace, op: Op) -> bool:
    """A layer across channels: not a product with a table of relative positions, for instance."""
    if op.is_conv:
        return len(op.shape) == 4 and bool(op.weight)
    return op.is_dense and "Linear" in trace.classes.get(op.path, "")


def _kind(trace: Trace, product: int) -> str:
    def stop(i: int) -> bool:
        op = trace.ops[i]
        return op.is_dense or op.is_product

    softmax = any("softmax" in trace.ops[i].name for i in trace.downstream(product, stop))
    if not softmax:
        return ""
    queries, keys = trace.ops[product].shape[-2:]
    return "Halo" if queries < keys else "BoT"


def attention_2d(trace: Trace) -> str:
    """Self-attention over feature maps inside the blocks of a CNN, such as "Yes (Halo, BoT)"."""
    inside = [a for a in attentions(trace) if a.in_bottleneck]
    if not inside or not _is_convolutional(trace):
        return "No"
    modules: dict[str, set[str]] = {}  # the products of one module are one attention
    for attention in inside:
        modules.setdefault(trace.ops[attention.at].path, set()).add(attention.kind)
    kinds = {next(iter(kinds - {""}), _without_map(trace, m)) for m, kinds in modules.items()}
    known = [kind for kind in ("Lambda", "Halo", "BoT") if kind in kinds]
    return f"Yes ({', '.join([*known, *sorted(kinds - set(known))])})"


def _without_map(trace: Trace, module: str) -> str:
    """The kind of an attention without a map of queries by keys: Lambda if it takes a softmax of
    its keys, else the name of its class."""
    softmax = any("softmax" in op.name for op in trace.ops if op.path == module)
    return "Lambda" if softmax else trace.classes.get(module, "?")


def _is_convolutional(trace: Trace) -> bool:
    """Attention, if any, replaces convolutions."""
    products = attentions(trace)
    return 2 * sum(a.in_bottleneck for a in products) >= len(products)


def base_architecture(trace: Trace, stem: Stem) -> str:
    """CNN, Transformer, Hybrid, MLP-Mixer, NAS (CNN), NAS (TFM), or RNN.

    A transformer mixes places by attention only; convolutions may produce its tokens and change
    their number. A hybrid also mixes by convolution or pooling between the attentions, or has no
    layer norm, being built of convolutions with batch norm. A CNN whose bottleneck blocks hold
    attention stays a CNN. See `netkin.components.searched` for NAS.
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
        return "NAS (TFM)" if windows_differ(trace) else "Transformer"
    if any(op.name in ("lstm", "mkldnn_rnn_layer", "gru") for op in ops) or "LSTM" in (
        trace.classes.values()
    ):
        return "RNN"
    if any(op.mixes_positions for op in ops):
        return "MLP-Mixer"
    return "NAS (CNN)" if is_searched(trace, stem) else "CNN"


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
    places = [
        op.positions
        for i, op in enumerate(trace.ops)
        if i > stem.end
        and _is_map(trace, op)
        and not op.mixes_positions
        and op.positions > 3
        and not op.path.startswith(PATCHES)
    ]
    return "Yes" if places and max(places) > 1.5 * min(places) else "No"
