"""A classifier run faster is the same one: in its logits, its gradients, and its own state."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.errors import UserError
from netkin.zoo.build import Classifier
from netkin.zoo.execution import MEMORY_FORMATS, Execution, Prepared, check_execution
from netkin.zoo.fold import (
    STANDARDISING,
    fold_batch_norm,
    patchify_cheaply,
    squeeze_cheaply,
    standardise_once,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def lived_in(net: nn.Module) -> nn.Module:
    """Statistics and affine maps as training would leave them, and eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(-1.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.3, generator=generator)
    return net.eval()


def classifier(name: str, **kwargs: Any) -> Classifier:
    torch.manual_seed(0)
    net = lived_in(timm.create_model(name, num_classes=10, **kwargs))
    return Classifier(net, name, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).eval().requires_grad_(False)


def images(size: int = 32, number: int = 6) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(2))


def gradient(model: nn.Module, pixels: Tensor) -> Tensor:
    x = pixels.clone().requires_grad_()
    labels = torch.arange(len(x)) % 10
    (found,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
    return found


@given(
    layers=st.lists(
        st.tuples(
            st.sampled_from([nn.Conv2d, Conv2dSame]),
            st.sampled_from([1, 2]),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_chain_is_folded_whole_and_stays_the_same_function(layers: list) -> None:
    """Convolutions with or without bias and groups, norms with or without affine and activation."""
    torch.manual_seed(0)
    net = nn.Sequential()
    for number, (kind, groups, bias, act) in enumerate(layers):
        inside = 4 if number else 3
        groups = groups if number else 1
        net.append(kind(inside, 4, 3, padding=1, groups=groups, bias=bias))
        net.append(BatchNormAct2d(4) if act else nn.BatchNorm2d(4, affine=bias))
    net.append(nn.Flatten())
    net = lived_in(net).double()
    x = images(8).double()
    folded, number = fold_batch_norm(net, x[:2], "chain")
    assert number == len(layers)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(x), net(x), rtol=1e-9, atol=1e-9)
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("layer", STANDARDISING, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_are_standardised_once_to_the_bit(layer: type, stride: int) -> None:
    """And can be folded into afterwards, not before."""
    torch.manual_seed(0)
    conv = layer(3, 8, 3, stride)
    net = lived_in(nn.Sequential(conv, nn.BatchNorm2d(8), nn.Flatten()))
    with torch.no_grad():
        getattr(conv, "gain", torch.ones(1)).uniform_(0.5, 2)
    assert fold_batch_norm(net, images(9)[:2], "std") == (net, 0)
    once = copy.deepcopy(net)
    assert standardise_once(once) == 1 and standardise_once(once) == 0
    assert torch.equal(once(images(9)), net(images(9)))
    folded, number = fold_batch_norm(once, images(9)[:2], "std")
    assert number == 1 and torch.allclose(folded(images(9)), net(images(9)), atol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        SEModule(8, rd_channels=4),
        SEModule(8, rd_channels=4, norm_layer=nn.BatchNorm2d, act_layer=nn.SiLU),
        SEModule(8, rd_channels=4, add_maxpool=True),
        EffectiveSEModule(8),
        SqueezeExcite(8, rd_channels=4, act_layer=nn.SiLU),
    ],
    ids=["SE", "SE with norm", "SE with maximum", "effective", "EfficientNet's"],
)
@pytest.mark.parametrize("memory_format", list(MEMORY_FORMATS))
def test_squeeze_and_excitation_has_the_same_gradient_to_the_bit(
    module: nn.Module, memory_format: str
) -> None:
    """Also where its input has other uses, and where activations are in place."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(inplace=True), module, nn.SiLU(inplace=True))
    net = lived_in(net).to(memory_format=MEMORY_FORMATS[memory_format])  # type: ignore[call-overload]
    cheap = copy.deepcopy(net)
    assert squeeze_cheaply(cheap) == (not getattr(module, "add_maxpool", False))
    found = []
    for model in (net, cheap):
        x = images(9).contiguous(memory_format=MEMORY_FORMATS[memory_format]).requires_grad_()
        out = model(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("patch", "size", "more", "fits"),
    [
        ((4, 4), (9, 13), {}, True),
        ((8, 4), (16, 12), {"bias": False}, True),
        ((2, 2), (8, 8), {}, False),
        ((4, 4), (8, 8), {"padding": 1}, False),
        ((5, 5), (8, 8), {"padding": "same", "stride": 1}, False),
        ((4, 4), (12, 12), {"stride": 2}, False),
        ((4, 4), (12, 12), {"dilation": 2}, False),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_patches_have_the_same_products_and_gradient(
    patch: tuple[int, int],
    size: tuple[int, int],
    more: dict,
    fits: bool,
    dtype: torch.dtype | None,
) -> None:
    """Also where rows and columns of the image are in no patch."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, patch, **{"stride": patch, **more})
    cheap = copy.deepcopy(conv)
    assert patchify_cheaply(cheap) == fits
    found = []
    for layer in (conv, cheap):
        x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            out = layer(x)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), x)))
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.allclose(a, b, atol=1e-5 if dtype is None else 0.02)


class ReadsItsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) * self.norm.running_var.mean()).flatten(1)  # type: ignore[union-attr]


def test_a_fold_that_fails_is_undone_and_said(caplog: pytest.LogCaptureFixture) -> None:
    net = lived_in(ReadsItsNorm())
    with caplog.at_level(logging.WARNING):
        assert fold_batch_norm(net, images(8)[:2], "reader") == (net, 0)
    assert "batch normalisation of reader is not folded" in caplog.text


@pytest.mark.parametrize("part", [0, 1])
def test_what_has_a_hook_is_not_folded(part: int) -> None:
    net = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    net[part].register_forward_hook(lambda _module, _args, out: out)  # type: ignore[index]
    assert fold_batch_norm(net, images(8)[:2], "hooked") == (net, 0)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_mixed_precision_takes_and_gives_float32(name: str) -> None:
    kwargs = {"img_size": 32} if name == "test_vit" else {}
    model = classifier(name, **kwargs)
    fast = Prepared(model, Execution("bf16-mixed"), images())
    logits = fast(images())
    assert logits.dtype == torch.float32
    difference = (logits - model(images())).abs().max() / model(images()).abs().max()
    assert 0 < difference < 0.1
    g, h = gradient(model, images()), gradient(fast, images())
    assert h.dtype == torch.float32
    assert torch.cosine_similarity(g.flatten(1), h.flatten(1)).min() > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_half_precision_keeps_gradients_that_it_could_not_hold() -> None:
    """Of images that are classified with certainty, the gradients are far below float16."""
    torch.manual_seed(0)
    head = nn.Linear(8 * 900, 10)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), head).eval()
    model = Classifier(net, "sure", (0.5,) * 3, (0.5,) * 3).eval().requires_grad_(False)
    head.weight.mul_(1e-2)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([22.0] + [0.0] * 9))
    x = images(number=2).requires_grad_()
    labels = torch.zeros(2, dtype=torch.int64)
    fast = Prepared(model, Execution("16-mixed"), images())
    (wanted,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
    (found,) = torch.autograd.grad(cross_entropy(fast(x), labels, reduction="sum"), x)
    assert 0 < wanted.abs().max() < 1e-8
    assert (wanted.sign() == found.sign()).float().mean() > 0.97
    assert (wanted - found).abs().max() < 0.01 * wanted.abs().max()


@pytest.mark.slow
def test_compiled_it_gives_the_same_for_any_number_of_images() -> None:
    net = lived_in(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.Flatten()))
    model = Classifier(net, "small", (0.5,) * 3, (0.5,) * 3).eval().requires_grad_(False)
    fast = Prepared(model, Execution(compile=True), images(), size=6)
    assert fast.size == 6, "it was not compiled"
    for number in (6, 4, 1):
        x = images(number=number)
        logits = fast(x.clone().requires_grad_())  # one compilation: without gradients is another
        assert len(logits) == number and torch.allclose(logits, model(x), atol=1e-4)
        g, h = gradient(model, x), gradient(fast, x)
        assert (g - h).abs().max() < 2e-3 * g.abs().max()


def test_what_cannot_be_compiled_runs_without_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_kwargs: object) -> Callable:
        def run(_x: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand much more")

        return run

    model = classifier("test_byobnet")
    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        fast = Prepared(model, Execution(compile=True), images())
    (record,) = caplog.records
    assert record.getMessage() == (
        "test_byobnet is not compiled, and runs without: no C++ compiler"
    )
    assert fast.size is None and torch.allclose(fast(images()), model(images()), atol=1e-4)


class Twice(nn.Module):
    """What a normalised convolution's output is also used for elsewhere, and used twice."""

    def __init__(self, use: str):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 1)
        self.same = self.norm if use == "shared norm" else nn.BatchNorm2d(3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.norm(y)
        if self.use == "skip":
            z = z + y
        if self.use == "called twice":
            z = self.norm(self.first(z))
        if self.use == "norm twice":
            z = self.norm(z)
        z = self.other(z)
        return self.same(z.relu() if self.use == "function between" else z).flatten(1)


TOKENS = [nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3)]
FLAT = [nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8)]


@pytest.mark.parametrize(
    ("net", "number"),
    [
        (Twice("plain"), 2),
        (Twice("skip"), 1),
        (Twice("called twice"), 1),
        (Twice("norm twice"), 1),
        (Twice("shared norm"), 0),
        (Twice("function between"), 1),
        (nn.Sequential(*FLAT), 1),
        (nn.Sequential(*TOKENS), 0),  # whose channels are not where the norm's are
    ],
)
def test_only_what_is_used_once_and_nowhere_else_is_folded(net: nn.Module, number: int) -> None:
    net = lived_in(net)
    before = copy.deepcopy(net.state_dict())
    folded, found = fold_batch_norm(net, images(8)[:2], "net")
    assert found == number and (folded is net) == (number == 0)
    assert torch.allclose(folded(images(8)), net(images(8)), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("memory_format", list(MEMORY_FORMATS))
def test_convolutional_networks_keep_logits_and_gradients(memory_format: str) -> None:
    model = classifier("test_efficientnet")
    fast = Prepared(model, Execution(memory_format=memory_format), images())
    assert fast.folded == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert (fast(images()) - model(images())).abs().max() < 1e-4 * model(images()).abs().max()
    g, h = gradient(model, images()), gradient(fast, images())
    assert (g - h).abs().max() < 2e-3 * g.abs().max()
    plain = Prepared(model, Execution(fuse=False, memory_format="contiguous"), images())
    assert torch.equal(plain(images()), model(images()))


def test_convolutions_of_five_dimensions_run_under_the_default_memory_format() -> None:
    """A lambda layer has one, whose weights have no channels-last format."""
    x, model = images(64, 2), classifier("lambda_resnet50ts")
    assert (Prepared(model, Execution(), x)(x) - model(x)).abs().max() < 1e-4 * model(x).abs().max()


@pytest.mark.parametrize("precision", ["tf32", "16-mixed"])
def test_precisions_that_a_cpu_lacks(precision: str) -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        check_execution(Execution(precision), gpu=False)
    check_execution(Execution(precision), gpu=True)
