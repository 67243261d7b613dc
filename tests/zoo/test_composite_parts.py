"""Modules made of others: each counts as what it computes, whatever it is built of."""

import pytest
import torch
from timm.layers import SelectAdaptivePool2d
from timm.models.metaformer import SquaredReLU, StarReLU
from torch import Tensor, nn
from torch.nn import functional

from netkin.components import read

SIZE = (3, 32, 32)


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class Net(nn.Module):
    """A stem, residual blocks, and a head."""

    def __init__(
        self, stem: nn.Module, act: nn.Module | None = None, pool: nn.Module | None = None
    ):
        super().__init__()
        self.stem = stem
        self.enter = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), act or nn.ReLU())
        self.blocks = nn.Sequential(*(Shortcut() for _ in range(4)))
        self.pool = pool or nn.AdaptiveAvgPool2d(1)
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.enter(self.stem(x)))
        return self.head(self.pool(x).flatten(1))


def plain(stride: int = 2) -> nn.Module:
    return nn.Conv2d(3, 8, 3, stride, 1)


def found(net: nn.Module) -> dict[str, str]:
    net(torch.zeros(2, *SIZE))  # gives lazy layers their sizes
    return read(net, SIZE)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * 1.7


class Wave(nn.Module):
    """Two activations in one, with a name that no list has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.SiLU(), Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * self.two(x)


class Inline(nn.Module):
    """Layers beside the activation: no activation as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(8), nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) + functional.relu(x) ** 2


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        return torch.cat((functional.silu(one) * two, two.sigmoid() * one), dim=1)


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (StarReLU(), "StarReLU"),
        (SquaredReLU(), "SquaredReLU"),
        (nn.Sequential(nn.ReLU(), nn.Dropout()), "ReLU"),
        (Scaled(), "GeLU"),  # a factor makes no other activation
        (Wave(), "Wave"),
        (Inline(), "Mish + SquaredReLU"),
        (Gated(), "SiLU"),
        (nn.Sigmoid(), "-"),
    ],
)
def test_an_activation_of_others_is_one(act: nn.Module, name: str) -> None:
    assert found(Net(plain(), act).eval())["Activation"] == name


class Sum(nn.Module):
    """Parallel convolutions of one input, as RepVGG and MobileOne train them."""

    def __init__(self, inputs: int, width: int, kernels: list[int], stride: int, groups: int = 1):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(inputs, width, k, stride, k // 2, groups=groups) for k in kernels
        )
        self.norm = nn.BatchNorm2d(inputs) if stride == 1 and inputs == width else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        if self.norm is not None:
            parts.append(self.norm(x))
        out = parts[0]
        for part in parts[1:]:
            out = out + part
        return functional.relu(out)


class Parallel(nn.Module):
    """A pool beside two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 4, 3, 1, 1), nn.Conv2d(4, 8, 5, 2, 2)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.pool(x), self.b(self.a(x))), dim=1)


class Dense(nn.Module):
    """A block whose shortcut is concatenated, not added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.b(self.a(x))), dim=1)


class Separable(nn.Module):
    def __init__(self, width: int, stride: int):
        super().__init__()
        self.depth = nn.Conv2d(width, width, 3, stride, 1, groups=width)
        self.point = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.depth(x))


@pytest.mark.parametrize(
    ("stem", "layers", "pooled"),
    [
        (Sum(3, 8, [1, 3], 2), "3s2", "No"),
        (
            nn.Sequential(Sum(3, 8, [5, 1, 3], 2), Sum(8, 8, [1, 3], 2, 8), Sum(8, 8, [1], 1)),
            "5s2/3s2/1",
            "No",
        ),
        (nn.Sequential(plain(), Parallel(), nn.Conv2d(16, 8, 1)), "3s2/3/5s2/1", "Yes"),
        (nn.Sequential(plain(), nn.MaxPool2d(3, 2, 1)), "3s2", "Yes"),
        (nn.Sequential(plain(), Separable(8, 1), Separable(8, 2)), "3s2/3/3s2", "No"),
        (nn.Sequential(plain(), Shortcut(), nn.Conv2d(8, 8, 3)), "3s2", "No"),
        (nn.Sequential(plain(), Dense(), nn.Conv2d(16, 8, 3)), "3s2", "No"),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3, 1, 1)), "12s4", "No"),
        (
            nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3)),
            "2s2/3",
            "No",
        ),
    ],
)
def test_stems_of_several_parts(stem: nn.Module, layers: str, pooled: str) -> None:
    read_off = found(Net(stem).eval())
    assert (read_off["Stem layer"], read_off["Pooling (stem)"]) == (layers, pooled)


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("avg", "GAP"),
        ("max", "Max"),
        ("avgmax", "GAP + Max"),
        ("catavgmax", "GAP + Max"),
        ("fastavgmax", "GAP + Max"),
        ("fastcatavgmax", "GAP + Max"),
    ],
)
def test_parallel_pools_before_the_classifier(kind: str, pooling: str) -> None:
    pool = SelectAdaptivePool2d(pool_type=kind)
    assert found(Net(plain(), pool=pool).eval())["Pooling (final)"] == pooling
