"""Networks that are nobody's but a user's, for tests: processes import them by name."""

from collections.abc import Callable
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits, logits + 1),
    "list": lambda logits: [logits],
    "dict": lambda logits: {"features": logits + 1, "logits": logits},
    "only": lambda logits: {"prediction": logits, "epoch": 3},
    "object": lambda logits: SimpleNamespace(logits=logits, loss=None),
    "features": lambda logits: (logits.repeat(1, 3), logits),
    "wrong": lambda logits: {"a": logits, "b": logits},
}


class Net(nn.Module):
    """A small network with a `view`, which channels-last features do not take."""

    def __init__(self, classes: int = 10, channels: int = 3, output: str = "tensor"):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.SiLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(6 * 16, classes)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.conv(x))
        self.act(x)  # works in place: what it returns is not used
        x = self.pool(x)
        return OUTPUTS[self.output](self.fc(x.view(len(x), -1)))


class Half(nn.Module):
    """A network that mixes its weights' type with that of what it is given."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.fc.bias, x.mean((2, 3)).float(), self.fc.weight.T)


class Proud(nn.Module):
    """A network that reads its normalisation's weight, with a convolution of five dimensions."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv3d(1, 1, 3)
        self.fc = nn.Linear(2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) * self.norm.weight.view(-1, 1, 1)
        return self.fc(self.deep(x[:, None]).mean((1, 3, 4)))


class Locked(nn.Module):
    """A network with an attribute that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)
        self.lock = Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class OnNumpy(nn.Module):
    """A network whose forward pass leaves torch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        means = torch.from_numpy(x.detach().numpy().mean((1, 2, 3)))
        return self.scale * means[:, None]


class NoGradient(nn.Module):
    """A network that runs for predictions, but not for attacks."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("the derivative of its kernel")
        return self.fc(x.mean((2, 3)))


class Rooted(nn.Module):
    """A network whose gradient is NaN, the derivative of the root of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) + torch.sqrt(0 * x.mean((1, 2, 3)))[:, None]


def ready(seed: int = 3) -> nn.Module:
    """A network with weights of its own."""
    torch.manual_seed(seed)
    net = Net()
    nn.init.normal_(net.norm.running_mean)  # type: ignore[arg-type]
    return net


def load(file: str) -> nn.Module:
    """A network that was trained elsewhere."""
    net = Net()
    net.load_state_dict(torch.load(file, weights_only=True)["model_state_dict"])
    return net


def broken() -> nn.Module:
    raise RuntimeError("no such file: weights.pt\nand more")


def no_network() -> int:
    return 3


SOMETHING = 3
