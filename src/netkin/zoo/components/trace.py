"""What a network does to one image, operation by operation, without doing it.

A forward pass on torch's meta device computes shapes only: it takes no memory and, with building
the network and reading its components, a quarter of a second (18 s on one core for the paper's 69
models). Whatever a component is called in the code, here it is what it does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from netkin.zoo.components.layout import channel_axis

_VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "expand", "contiguous")
_TURNS = ("transpose", "permute", "t", "movedim", "alias", "detach", "clone", "_to_copy", "copy_")
_PARTS = ("slice", "select", "index", "split", "split_with_sizes", "chunk", "unbind")
_JOINS = ("unsqueeze", "squeeze", "stack", "cat", "constant_pad_nd", "roll", "as_strided")
PLUMBING = frozenset((*_VIEWS, *_TURNS, *_PARTS, *_JOINS))
"""Operations that move values and compute none."""
PARTING = frozenset(("split", "split_with_sizes", "chunk", "unbind"))


@dataclass(frozen=True)
class Op:
    """One operation on what has come of the image.

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
        index: of a select or a slice: (dim, start, end).
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
    index: tuple[int, int, int] | None = None

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
        return self.name == "convolution"

    @property
    def is_spatial_conv(self) -> bool:
        """A convolution that sees more than one place."""
        return self.is_conv and len(self.kernel) >= 2 and max(self.kernel) > 1

    @property
    def is_dense(self) -> bool:
        """A learned linear map across channels: a convolution of one group, or a linear layer."""
        if self.is_conv:
            return self.groups == 1
        return self.name in ("addmm", "mm", "bmm", "baddbmm") and bool(self.weight)

    @property
    def is_depthwise(self) -> bool:
        return self.is_conv and len(self.weight) == 4 and self.weight[1] == 1 < self.groups

    @property
    def is_grouped(self) -> bool:
        """A convolution in groups of more than one channel each."""
        return self.is_conv and len(self.weight) == 4 and self.groups > 1 < self.weight[1]

    @property
    def is_product(self) -> bool:
        """A matrix product of two things that both came of the image, as in attention."""
        return self.name in ("bmm", "baddbmm", "mm", "addmm") and not self.weight

    @property
    def is_pool(self) -> bool:
        """A pooling window that slides over the image."""
        return "pool" in self.name and bool(self.kernel)


@dataclass(frozen=True)
class Trace:
    """All operations on the way of an image to logits, in order.

    Attributes:
        ops: op 0 is the image.
        classes: module path -> name of its class, for the modules that ran.
        output: the op that made the logits.
    """

    ops: tuple[Op, ...]
    classes: dict[str, str]
    output: int

    @cached_property
    def consumers(self) -> list[list[int]]:
        """The operations that take each one's result."""
        found: list[list[int]] = [[] for _ in self.ops]
        for i, op in enumerate(self.ops):
            for source in op.inputs:
                found[source].append(i)
        return found

    def upstream(self, start: int, stop: Callable[[int], bool]) -> Iterator[int]:
        """What `start` came of, latest first, not beyond the operations that `stop` names."""
        return self._walk(start, stop, lambda i: self.ops[i].inputs, backwards=True)

    def downstream(self, start: int, stop: Callable[[int], bool]) -> Iterator[int]:
        """What came of `start`, earliest first; what `stop` names is given, but not followed."""
        return self._walk(start, stop, lambda i: self.consumers[i], backwards=False)

    def _walk(
        self,
        start: int,
        stop: Callable[[int], bool],
        neighbours: Callable[[int], Sequence[int]],
        backwards: bool,
    ) -> Iterator[int]:
        sign = -1 if backwards else 1
        ahead = [sign * i for i in set(neighbours(start))]
        seen = set(ahead)
        heapify(ahead)
        while ahead:
            i = sign * heappop(ahead)
            yield i
            if not stop(i):
                for j in neighbours(i):
                    if sign * j not in seen:
                        seen.add(sign * j)
                        heappush(ahead, sign * j)

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
    return _unwrapped(Trace(tuple(recorder.ops), recorder.classes, recorder.made[id(output)]))


def _unwrapped(found: Trace) -> Trace:
    """Without the names of modules around the network in which all of it happens."""
    tops = {op.path.partition(".")[0] for op in found.ops if op.weight}
    if len(tops) != 1 or tops == {""}:
        return found
    (top,) = tops

    def inner(path: str) -> str:
        return "" if path == top else path.removeprefix(f"{top}.")

    ops = tuple(replace(op, path=inner(op.path)) for op in found.ops)
    classes = {inner(path): name for path, name in found.classes.items()}
    return _unwrapped(Trace(ops, classes, found.output))


@contextmanager
def _paths(net: nn.Module, recorder: "_Recorder") -> Iterator[None]:
    """Tell the recorder which module runs."""
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
        self.made: dict[int, int] = {id(image): 0}
        self.learned = {id(p) for p in net.parameters()}
        self.kept: list[Tensor] = [image]  # while ids stand for tensors none may be freed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        arguments = [*args, *(kwargs or {}).values()]
        tensors = list(_tensors(arguments))
        results = list(_tensors([result]))
        self.kept += results
        live = [t for t in tensors if id(t) in self.made]
        learned = [t for t in tensors if id(t) in self.learned and id(t) not in self.made]
        if live:
            self._record(func, args, kwargs or {}, live, learned, results)
        elif learned:
            self.learned |= {id(t) for t in results}
        return result

    def _record(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        live: list[Tensor],
        learned: list[Tensor],
        results: list[Tensor],
    ) -> None:
        if not results:
            return
        name = func._schema.name.removeprefix("aten::").rstrip("_").removesuffix("_out")
        inputs = tuple(self.made[id(t)] for t in live)
        named = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        named |= {
            argument.name: value
            for argument, value in zip(func._schema.arguments, args, strict=False)
        }
        named |= kwargs
        weight = tuple(max(learned, key=Tensor.numel).shape) if learned else ()
        if name == "convolution":
            filters = named["weight"]  # may be fixed, as a blur's, or depend on the image
            known = id(filters) in self.learned or id(filters) in self.made
            weight = tuple(filters.shape) if known else ()
        product = name in ("addmm", "mm", "bmm", "baddbmm")
        # The factor that came of the image; addmm's first argument is the bias.
        factors = [t for t in live if t.ndim >= 2] if product else live
        main = max(factors or live, key=Tensor.numel)
        axis = self.ops[self.made[id(main)]].channels
        over_positions = bool(
            product and len(live) == 1 and axis is not None and axis != main.ndim - 1
        )
        op = Op(
            name=name,
            path=self.stack[-1],
            inputs=inputs,
            input_shapes=tuple(tuple(t.shape) for t in live),
            shape=tuple(results[0].shape),
            channels=channel_axis(
                name, named, axis, tuple(main.shape), tuple(results[0].shape), over_positions
            ),
            kernel=_kernel(name, named),
            stride=_numbers(named.get("stride")) or _kernel(name, named),
            groups=named.get("groups", 0) if name == "convolution" else 0,
            weight=weight,
            dims=_numbers(named.get("dim")),
            mixes_positions=over_positions,
            index=_index(name, named),
        )
        self.ops.append(op)
        for tensor in results:
            self.made[id(tensor)] = len(self.ops) - 1
            if name in PARTING and tuple(tensor.shape) != self.ops[-1].shape:
                shape = tuple(tensor.shape)
                self.ops.append(replace(op, shape=shape))
                self.made[id(tensor)] = len(self.ops) - 1


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(v, int) for v in value):
        return tuple(value)
    return ()


def _kernel(name: str, named: dict[str, Any]) -> tuple[int, ...]:
    if name == "convolution":
        return tuple(named["weight"].shape[2:])
    return _numbers(named.get("kernel_size"))


def _index(name: str, named: dict[str, Any]) -> tuple[int, int, int] | None:
    if name == "select":
        return named["dim"], named["index"], named["index"] + 1
    if name == "slice":
        return named.get("dim", 0), named.get("start") or 0, named.get("end") or 2**63 - 1
    return None
