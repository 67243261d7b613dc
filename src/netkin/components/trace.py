"""A forward pass recorded operation by operation, as a graph from the image to the logits.

On torch's meta device a pass computes shapes only: it takes no memory and, with building the
network and reading its components, a quarter of a second (18 s on one core for the paper's 69
models). A component is recognised by its operations, not by its name in the code.

Networks keep features as [B, C, H, W], [B, N, C], windows or heads, and go from one to the other
by views and transposes. Whether a linear layer mixes channels or places, and at how many places,
can be told only by the axis of its channels, which is followed through each operation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "expand", "contiguous")
_TURNS = ("transpose", "permute", "t", "movedim", "alias", "detach", "clone", "_to_copy", "copy_")
_PARTS = ("slice", "select", "index", "split", "split_with_sizes", "chunk", "unbind")
_JOINS = ("unsqueeze", "squeeze", "stack", "cat", "constant_pad_nd", "roll", "as_strided")
PLUMBING = frozenset((*_VIEWS, *_TURNS, *_PARTS, *_JOINS))
"""Operations that move values and compute none."""
PRODUCTS = ("addmm", "mm", "bmm", "baddbmm")
PARTING = frozenset(("split", "split_with_sizes", "chunk", "unbind"))
"""Operations with several results, whose shapes may differ."""


@dataclass(frozen=True)
class Op:
    """One operation on the image, or on a result computed from it.

    Attributes:
        name: of the ATen operation, such as "convolution"; in place or not is the same.
        path: of the innermost module that it happened in, such as "layer1.0.conv1".
        inputs: the operations whose results it takes, by their place in the trace.
        input_shapes: of these, in the same order.
        shape: of its (first) result.
        channels: which axis of the result holds channels, or None where that is not known.
        kernel, stride, groups: of convolution and pooling, (0, 0) and 0 for others.
        weight: the shape of its learned weight, or () without one.
        dims: the axes that a reduction or softmax runs over.
        mixes_positions: a matrix product with a learned weight that runs over positions.
    """

    name: str
    path: str
    inputs: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    channels: int | None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 0
    weight: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    mixes_positions: bool = False

    @property
    def positions(self) -> int:
        """Places of the result, each with all its channels: pixels, tokens; 0 where not known."""
        if self.channels is None:
            return 0
        size = self.shape[self.channels]
        return int(torch.Size(self.shape).numel() // size) if size else 0

    @property
    def width(self) -> int:
        """Channels of the result, 0 where not known."""
        return 0 if self.channels is None else self.shape[self.channels]

    @property
    def is_conv(self) -> bool:
        """A convolution of any kind, learned or fixed."""
        return self.name == "convolution"

    @property
    def is_dense(self) -> bool:
        """A learned linear map across channels: a convolution of one group, or a linear layer."""
        if self.is_conv:
            return self.groups == 1
        return self.name in PRODUCTS and bool(self.weight)

    @property
    def is_depthwise(self) -> bool:
        """A convolution of each channel by itself."""
        return self.is_conv and len(self.weight) == 4 and self.weight[1] == 1 < self.groups

    @property
    def is_grouped(self) -> bool:
        """A convolution in groups of more than one channel each."""
        return self.is_conv and len(self.weight) == 4 and self.groups > 1 < self.weight[1]

    @property
    def is_product(self) -> bool:
        """A matrix product of two results that both depend on the image, as in attention."""
        return self.name in PRODUCTS and not self.weight

    @property
    def is_pool(self) -> bool:
        """A pooling window that slides over the image."""
        return "pool" in self.name and bool(self.kernel)


@dataclass(frozen=True)
class Trace:
    """All operations from an image to its logits, in order.

    Attributes:
        ops: op 0 is the image.
        classes: module path -> name of its class, for the modules that ran.
        output: the op that computed the logits.
    """

    ops: tuple[Op, ...]
    classes: dict[str, str]
    output: int

    @cached_property
    def consumers(self) -> list[list[int]]:
        """The operations that take each one's result."""
        consumers: list[list[int]] = [[] for _ in self.ops]
        for i, op in enumerate(self.ops):
            for source in op.inputs:
                consumers[source].append(i)
        return consumers

    def upstream(self, start: int, stop: Callable[[int], bool]) -> Iterator[int]:
        """What `start` was computed from, latest first; what `stop` names is not followed."""
        return self._walk(start, stop, lambda i: self.ops[i].inputs, max)

    def downstream(self, start: int, stop: Callable[[int], bool]) -> Iterator[int]:
        """What was computed from `start`, earliest first; what `stop` names is not followed."""
        return self._walk(start, stop, lambda i: self.consumers[i], min)

    def _walk(
        self, start: int, stop: Callable[[int], bool], neighbours: Callable, first: Callable
    ) -> Iterator[int]:
        ahead = set(neighbours(start))
        while ahead:
            ahead.remove(i := first(ahead))
            yield i
            if not stop(i):
                ahead.update(neighbours(i))

    def source(self, i: int) -> int:
        """The operation that computed what `i` takes, through those that only move values."""
        i = self.ops[i].inputs[0]
        while self.ops[i].name in PLUMBING and self.ops[i].inputs:
            i = self.ops[i].inputs[0]
        return i

    def is_residual(self, i: int) -> bool:
        """A sum of two feature maps of one shape: where a block's branch joins its shortcut."""
        op = self.ops[i]
        return (
            op.name == "add"
            and len(op.inputs) >= 2
            and len(set(op.input_shapes)) == 1
            and op.shape == op.input_shapes[0]
            and op.positions > 1
        )


def trace(net: nn.Module, size: tuple[int, int, int]) -> Trace:
    """Trace a network on one image of size (channels, height, width), on the network's device.

    The network is left in the mode it was in. Raises what its forward pass raises.
    """
    parameter = next(net.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    image = torch.zeros(1, *size, device=device)
    recorder = _Recorder(net, image)
    training = net.training
    net.eval()
    try:
        # A fused attention would hide its products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _paths(net, recorder), recorder:
            output = net(image)
    finally:
        net.train(training)
    while not isinstance(output, Tensor):
        output = output[0]
    return _unwrapped(Trace(tuple(recorder.ops), recorder.classes, recorder.producers[id(output)]))


def _unwrapped(trace: Trace) -> Trace:
    """Without the names of wrappers in which all of it happens."""
    tops = {op.path.partition(".")[0] for op in trace.ops if op.weight}
    if len(tops) != 1 or tops == {""}:
        return trace
    (top,) = tops

    def inner(path: str) -> str:
        return "" if path == top else path.removeprefix(f"{top}.")

    ops = tuple(replace(op, path=inner(op.path)) for op in trace.ops)
    classes = {inner(path): name for path, name in trace.classes.items()}
    return _unwrapped(Trace(ops, classes, trace.output))


@contextmanager
def _paths(net: nn.Module, recorder: "_Recorder") -> Iterator[None]:
    """Keep the recorder's stack of running modules, for the block's time."""
    handles = []
    for path, module in net.named_modules():

        def enter(module: nn.Module, _inputs: Any, path: str = path) -> None:
            recorder.stack.append(path)
            recorder.classes[path] = type(module).__name__

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            recorder.stack.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    def __init__(self, net: nn.Module, image: Tensor):
        super().__init__()
        self.stack: list[str] = [""]
        self.classes: dict[str, str] = {}
        self.ops = [Op("image", "", (), (), tuple(image.shape), 1)]
        self.producers: dict[int, int] = {id(image): 0}
        self.learned = {id(p) for p in net.parameters()}
        self.alive: list[Tensor] = [image]  # a freed tensor's id could be reused

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors, results = list(_tensors([*args, *kwargs.values()])), list(_tensors([result]))
        self.alive += results
        live = [t for t in tensors if id(t) in self.producers]
        learned = [t for t in tensors if id(t) in self.learned and id(t) not in self.producers]
        if live and results:
            self._record(func, _arguments(func, args, kwargs), live, learned, results)
        elif learned:
            self.learned |= {id(t) for t in results}
        return result

    def _record(
        self,
        func: Any,
        named: dict[str, Any],
        live: list[Tensor],
        learned: list[Tensor],
        results: list[Tensor],
    ) -> None:
        name = func._schema.name.removeprefix("aten::").rstrip("_").removesuffix("_out")
        weight = tuple(max(learned, key=Tensor.numel).shape) if learned else ()
        if name == "convolution":
            filters = named["weight"]  # may be fixed, as a blur's, or depend on the image
            known = id(filters) in self.learned or id(filters) in self.producers
            weight = tuple(filters.shape) if known else ()
        product = name in PRODUCTS
        kernel = _numbers(named.get("kernel_size"))
        if name == "convolution":
            kernel = tuple(named["weight"].shape[2:])
        # The factor that depends on the image; addmm's first argument is the bias.
        factors = [t for t in live if t.ndim >= 2] if product else live
        main = max(factors or live, key=Tensor.numel)
        axis = self.ops[self.producers[id(main)]].channels
        over_positions = bool(
            product and len(live) == 1 and axis is not None and axis != main.ndim - 1
        )
        op = Op(
            name=name,
            path=self.stack[-1],
            inputs=tuple(self.producers[id(t)] for t in live),
            input_shapes=tuple(tuple(t.shape) for t in live),
            shape=tuple(results[0].shape),
            channels=_channel_axis(name, named, axis, main.shape, results[0].shape, over_positions),
            kernel=kernel,
            stride=_numbers(named.get("stride")) or kernel,
            groups=named.get("groups", 0) if name == "convolution" else 0,
            weight=weight,
            dims=_numbers(named.get("dim")),
            mixes_positions=over_positions,
        )
        self.ops.append(op)
        for tensor in results:
            self.producers[id(tensor)] = len(self.ops) - 1
            if name in PARTING and tuple(tensor.shape) != self.ops[-1].shape:
                self.ops.append(replace(op, shape=tuple(tensor.shape)))
                self.producers[id(tensor)] = len(self.ops) - 1


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an ATen operation by the names of its schema, defaults among them."""
    schema = func._schema.arguments
    named = {a.name: a.default_value for a in schema if a.has_default_value()}
    return named | {a.name: value for a, value in zip(schema, args, strict=False)} | kwargs


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _numbers(value: Any) -> tuple[int, ...]:
    values: Any = (value,) if isinstance(value, int) and not isinstance(value, bool) else value
    listed = isinstance(values, list | tuple) and all(isinstance(v, int) for v in values)
    return tuple(values) if listed else ()


Shape = Sequence[int]


def _channel_axis(
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
    if name in PRODUCTS:
        return axis if over_positions else len(after) - 1
    if axis is None:
        return None
    if name == "permute":
        return [d % len(before) for d in arguments["dims"]].index(axis)
    if name in ("transpose", "t"):
        pair = {arguments.get("dim0", 0) % len(before), arguments.get("dim1", 1) % len(before)}
        return next(iter(pair - {axis}), axis) if axis in pair else axis
    if name in ("view", "_unsafe_view", "reshape", "unflatten"):
        return _viewed(axis, before, after)
    if name in ("mean", "sum", "amax", "amin", "select", "unbind", "unsqueeze", "squeeze", "stack"):
        return _resized(name, arguments, axis, before, after)
    if name == "im2col":
        return 1
    return axis if len(before) == len(after) else None


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
