"""How a classifier is run: the same function, computed faster.

Crafting is steps x (forward + gradient to the input). `fuse`, `memory_format` and `compile` change
rounding only; the precision is part of a result's identity.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netkin.errors import UserError, first_line
from netkin.zoo.build import Classifier

log = logging.getLogger(__name__)

PRECISIONS = {
    "32-true": None,
    "tf32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Lightning's names, and the type that matrix products and convolutions are computed in."""
DEFAULT_PRECISION = "32-true"
TARGET_PRECISIONS = ("32-true", "tf32", "bf16-mixed")
"""Those of PRECISIONS for targets: not float16, whose range some networks exceed."""
LARGEST = 1024.0
"""Of a gradient to the logits, where it is computed in float16."""
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Execution:
    """How a classifier is run.

    Attributes:
        precision: one of PRECISIONS. Mixed ones compute products and convolutions in 16 bits, with
            inputs and outputs in float32; "tf32" rounds a GPU's float32 products to 10 bits of
            mantissa, which "32-true" forbids.
        fuse: batch normalisation folded into convolutions, weights standardised once, and
            squeeze-and-excitation and patches with a cheaper gradient (`netkin.zoo.fold`).
        memory_format: one of MEMORY_FORMATS. On a CPU channels_last was the faster, or as fast, for
            all of 12 small and 5 full-size architectures (experiments/results/speed.md).
        compile: by torch.compile, for batches of one size (others are padded to it).
    """

    precision: str = DEFAULT_PRECISION
    fuse: bool = True
    memory_format: str = "channels_last"
    compile: bool = False


def laid_out(net: nn.Module, memory_format: str) -> torch.memory_format:
    """Lay out a network's weights in one of MEMORY_FORMATS, which is returned, for its images.

    A network that is neither timm's nor torchvision's may rely on its format: it is contiguous.
    """
    known = type(net).__module__.startswith(("timm.", "netkin.", "torchvision."))
    layout = MEMORY_FORMATS[memory_format if known else "contiguous"]
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=layout)
    return layout


class Prepared(Classifier):
    """A classifier run as an Execution describes, with inputs and outputs in float32.

    Its `net` is the network that runs: attacks may hook into it.
    """

    def __init__(
        self, classifier: Classifier, execution: Execution, images: Tensor, size: int | None = None
    ):
        """
        Args:
            classifier: in eval mode; it stays as it is.
            execution: how to run it.
            images: some [B, 3, H, W] in [0, 1], on its device, to run once.
            size: images in a batch, if it is compiled; B unless given.
        """
        nn.Module.__init__(self)
        self.name, self.columns = classifier.name, classifier.columns
        self.register_buffer("mean", classifier.mean, persistent=False)
        self.register_buffer("std", classifier.std, persistent=False)
        self.execution, self.folded = execution, 0
        self.dtype = PRECISIONS[execution.precision]
        net: Any = copy.deepcopy(classifier.net).eval()
        if execution.fuse:
            from netkin.zoo.fold import (
                fold_batch_norm,
                patchify_cheaply,
                squeeze_cheaply,
                standardise_once,
            )

            standardise_once(net)
            net, self.folded = fold_batch_norm(net, self.normalise(images[:2]), self.name)
            squeeze_cheaply(net)
        self.format = laid_out(net, execution.memory_format)
        if execution.fuse and self.format is torch.channels_last and images.device.type == "cpu":
            patchify_cheaply(net)
        if self.dtype is not None and images.device.type == "cpu":
            _without_fused_attention(net)
            _strided_depthwise_in_float32(net)
        self.net = net.eval().requires_grad_(False)
        self._run: Any = net.__call__  # no second submodule
        self.size: int | None = None
        if execution.compile:
            self._compile(images, size or len(images))

    def forward(self, pixels: Tensor) -> Tensor:
        """See `Classifier`. Raises UserError where pixels want a gradient and logits have none."""
        x, n = self.normalise(pixels), len(pixels)
        given = x
        if self.size is not None and n < self.size:
            x = torch.cat([x, x[:1].detach().expand(self.size - n, *x.shape[1:])])
        x = x.contiguous(memory_format=self.format)  # decoded images come channels-last
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            logits = self._run(x)
        if torch.is_grad_enabled() and x.requires_grad and not logits.requires_grad:
            raise UserError(
                f"{self.name}: its logits have no gradient to the images, which attacks need; its "
                "forward pass must not leave torch, detach, or turn gradients off"
            )
        logits = logits[:n].float()
        if self.dtype is torch.float16 and logits.requires_grad:
            _keep_in_range(given, logits)
        return logits if self.columns is None else logits[:, self.columns]

    def _compile(self, images: Tensor, size: int) -> None:
        """Compile, and run both directions; without it where that fails, with one line."""
        # Dynamo looks for gradients where there are none.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        self._run = torch.compile(self.net, dynamic=False).__call__
        self.size = size
        try:
            with torch.enable_grad():
                x = images[:size].detach().clone().requires_grad_()
                torch.autograd.grad(self(x).sum(), x)
        except Exception as error:  # dynamo, inductor and the C++ compiler each have their own
            reason = first_line(error)[:200]
            log.warning("%s is not compiled, and runs without: %s", self.name, reason)
            self._run, self.size = self.net.__call__, None


@contextmanager
def exact_float32(precision: str) -> Iterator[None]:
    """A GPU rounds float32 products to TF32 for the block's time, or not, as `precision` has it."""
    allowed = precision == "tf32"
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def precisions(gpu: bool) -> list[str]:
    """Those of PRECISIONS that a device computes in at a gain, or exactly."""
    return [name for name in PRECISIONS if gpu or name not in ("tf32", "16-mixed")]


def check_execution(execution: Execution, gpu: bool) -> None:
    """Raises UserError for a precision that the device does not have."""
    if execution.precision not in precisions(gpu):
        raise UserError(
            f"precision {execution.precision} needs a GPU (a CPU has no units for it); use 32-true "
            "here, or bf16-mixed, which is faster"
        )


def _strided_depthwise_in_float32(net: nn.Module) -> None:
    """A CPU takes 7 times as long for the gradient of a depthwise convolution of stride 2 in
    bfloat16 as in float32 (96 channels of 128 x 128, torch 2.14)."""
    from timm.layers import Conv2dSame  # timm takes seconds to import

    for module in net.modules():
        if type(module) in (nn.Conv2d, Conv2dSame):
            conv: Any = module
            if 1 < conv.groups == conv.in_channels and max(conv.stride) > 1:
                conv.forward = partial(_in_float32, conv.forward)


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer that stays in float32 among others in 16 bits."""
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float()).to(x.dtype)


def _without_fused_attention(net: nn.Module) -> None:
    """torch's fused attention of 16-bit floats is slower on a CPU than matrix products and a
    softmax: with its gradient by 1.2 (577 tokens) to 14 times (17 tokens), torch 2.14."""
    for module in net.modules():
        if getattr(module, "fused_attn", None) is True:
            module.fused_attn = False  # type: ignore[assignment]


def _keep_in_range(x: Tensor, logits: Tensor) -> None:
    """Keeps gradients of 16-bit floats in range, image by image: of largest size LARGEST at the
    logits, and back in their own size at the input. Attacks need not know."""
    scale = torch.ones(())

    def enlarge(gradient: Tensor) -> Tensor:
        nonlocal scale
        scale = LARGEST / gradient.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
        return gradient * scale

    logits.register_hook(enlarge)
    x.register_hook(lambda gradient: gradient / scale.view(-1, 1, 1, 1))
