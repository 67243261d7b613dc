"""A forward pass recorded operation by operation, as a rule without computing it.

On torch's meta device a pass computes shapes only: it takes no memory and, with building the
network and reading its components, a quarter of a second (18 s on one core for the paper's 69
models). A component is recognised by its operations, not by its name in the code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from netkin.components.layout import channel_axis
from netkin.components.trace import Op, Trace

PARTING = frozenset(("split", "split_with_sizes", "chunk", "unbind"))
"""Operations with several results, whose shapes may differ."""


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
        result = func(*args, **(kwargs or {}))
        arguments = [*args, *(kwargs or {}).values()]
        tensors = list(_tensors(arguments))
        results = list(_tensors([result]))
        self.alive += results
        live = [t for t in tensors if id(t) in self.producers]
        learned = [t for t in tensors if id(t) in self.learned and id(t) not in self.producers]
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
        inputs = tuple(self.producers[id(t)] for t in live)
        named = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        named |= {
            argument.name: value
            for argument, value in zip(func._schema.arguments, args, strict=False)
        }
        named |= kwargs
        weight = tuple(max(learned, key=Tensor.numel).shape) if learned else ()
        if name == "convolution":
            filters = named["weight"]  # may be fixed, as a blur's, or depend on the image
            known = id(filters) in self.learned or id(filters) in self.producers
            weight = tuple(filters.shape) if known else ()
        product = name in ("addmm", "mm", "bmm", "baddbmm")
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
            self.producers[id(tensor)] = len(self.ops) - 1
            if name in PARTING and tuple(tensor.shape) != self.ops[-1].shape:
                shape = tuple(tensor.shape)
                self.ops.append(replace(op, shape=shape))
                self.producers[id(tensor)] = len(self.ops) - 1


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
