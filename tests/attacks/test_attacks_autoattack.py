"""AutoAttack behind netkin's interface: byte for byte the authors' on their random numbers."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks import PGD, AutoAttack, base
from netkin.attacks import autoattack as module
from netkin.attacks.autoattack import SquareAttack
from netkin.attacks.base import frozen
from netkin.errors import UserError

Problem = tuple[nn.Module, Tensor, Tensor, list[str]]


pytestmark = pytest.mark.usefixtures("one_thread")


def problem(classes: int = 10, images: int = 24, size: int = 8) -> Problem:
    """A small smooth network, and random images with the labels that it gives them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten()),
        nn.Linear(8 * (size - 2) ** 2, classes),
    ).requires_grad_(False)
    pixels = torch.rand(images, 3, size, size)
    return model, pixels, model(pixels).argmax(dim=1), [f"image {i}" for i in range(images)]


class AuthorsDraws(AutoAttack):
    """AutoAttack with the random numbers of pyautoattack: torch's, seeded again by each attack.

    They depend on an image's place in its batch, so this serves for a check only.
    """

    def _start(self, x: Tensor, keys: list[str], name: str) -> None:
        if name in ("apgd-ce", "apgd-dlr", "apgd-t 1"):
            torch.manual_seed(self.seed)

    def _square_attack(self, model: nn.Module, keys: list[str]) -> SquareAttack:
        torch.manual_seed(self.seed)
        return SquareAttack(model, n_queries=self.queries, eps=self.eps, resc_schedule=False)


def authors(model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, queries: int) -> Tensor:
    """The standard version by the authors' own loop, all images in one batch: [n, 3, H, W]."""
    from pyautoattack import AutoAttack as Theirs

    attack = Theirs(model, eps=eps, seed=0, device=pixels.device)
    pixels = pixels.contiguous()  # their code takes views that other layouts do not allow
    attack.square.n_queries = queries
    with torch.random.fork_rng(devices=[]):
        return attack.run_standard_evaluation(pixels, labels, batch_size=len(pixels))[0]


def mim_by_definition(
    model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, steps: int, mu: float
) -> Tensor:
    """MI-FGSM after its paper (Dong et al. 2018, Algorithm 1), image by image: [n, 3, H, W]."""
    results = []
    for image, label in zip(pixels.split(1), labels.split(1), strict=True):
        x, g = image, torch.zeros_like(image)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(cross_entropy(model(x), label), x)
            g = mu * g + gradient / gradient.norm(p=1)
            x = x.detach() + eps / steps * g.sign()
            x = image + (x - image).clamp(-eps, eps)
            x = x.clamp(0, 1)
        results.append(x)
    return torch.cat(results)


EPS = 0.02
"""At which some of the images resist, and each of the four attacks has some to work on."""


@pytest.fixture(scope="module")
def reference() -> Tensor:
    """What the authors' package makes of the problem."""
    model, pixels, labels, _ = problem()
    return authors(model, pixels, labels, EPS, queries=200)


@pytest.mark.slow
def test_equals_the_authors_package_byte_for_byte(reference: Tensor) -> None:
    """On the random numbers that it draws; the images that nothing fools are clean in both."""
    model, pixels, labels, keys = problem()
    ours = AuthorsDraws(EPS, queries=200, unfooled="clean").perturb(model, pixels, labels, keys)
    assert torch.equal(ours, reference)
    fooled = model(reference).argmax(dim=1) != labels
    assert 3 <= fooled.sum() <= 21
    assert torch.equal(ours[~fooled], pixels[~fooled])


@pytest.mark.slow
def test_as_many_resist_on_its_own_random_numbers(reference: Tensor) -> None:
    model, pixels, labels, keys = problem()
    ours = AutoAttack(EPS, queries=200).perturb(model, pixels, labels, keys)
    assert not torch.equal(ours, reference)
    robust = [(model(x).argmax(dim=1) == labels).sum().item() for x in (ours, reference)]
    assert abs(robust[0] - robust[1]) <= 1


@pytest.mark.parametrize("name", module.ATTACKS)
def test_an_image_does_not_depend_on_its_company(name: str) -> None:
    """Nor, for Square, on which other images still resist while it is at work. And in a large ball,
    in which it stays, each attack alone fools most."""
    model, pixels, labels, keys = problem()
    attack = AutoAttack(0.1, [name], steps=20, queries=200, targets=3, unfooled="clean")
    found = attack.perturb(model, pixels, labels, keys)
    assert (model(found).argmax(dim=1) != labels).float().mean() > 0.5
    assert (found - pixels).abs().max() <= 0.1 + 1e-6
    attack = AutoAttack(EPS, [name], steps=5, queries=60, targets=2)
    together = attack.perturb(model, pixels, labels, keys)
    for chosen in ([7], [20, 3, 11]):
        some = attack.perturb(model, pixels[chosen], labels[chosen], [keys[i] for i in chosen])
        torch.testing.assert_close(some, together[chosen], atol=1e-5, rtol=0)


def test_the_strongest_try_is_kept() -> None:
    """For an image that nothing fools: no attack alone has found a higher loss in the ball."""
    model, pixels, labels, keys = problem()
    few: dict[str, Any] = {"steps": 10, "queries": 50, "targets": 2}
    strongest = AutoAttack(EPS, **few).perturb(model, pixels, labels, keys)
    clean = AutoAttack(EPS, unfooled="clean", **few).perturb(model, pixels, labels, keys)
    resists = model(strongest).argmax(dim=1) == labels
    assert 0 < resists.sum() < len(pixels)
    assert torch.equal(clean[resists], pixels[resists])
    assert torch.equal(clean[~resists], strongest[~resists])
    loss = nn.CrossEntropyLoss(reduction="none")
    for name in module.STANDARD:
        alone = AutoAttack(EPS, [name], **few).perturb(model, pixels, labels, keys)
        better = loss(model(alone), labels) - loss(model(strongest), labels)
        assert better[resists].max() <= 1e-6
    assert (loss(model(strongest), labels) > loss(model(pixels), labels)).all()


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes(classes: int, caplog: pytest.LogCaptureFixture) -> None:
    """With too few logits there is no DLR loss, which is logged once, and fewer target classes."""
    model, pixels, labels, keys = problem(classes)
    base.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for name in ("apgd-t", "apgd-t", "fab-t"):
            attack = AutoAttack(0.1, [name], steps=5, targets=9)
            found = attack.perturb(model, pixels, labels, keys)
            assert (model(found).argmax(dim=1) != labels).float().mean() > 0.5
    said = f"the targeted DLR loss needs 4 classes, here are {classes}"
    assert len(caplog.messages) == (classes < 4)
    assert all(message.startswith(said) for message in caplog.messages)


def test_two_classes_have_no_dlr_loss_and_wrong_images_are_left_alone() -> None:
    with pytest.raises(UserError, match="apgd-dlr, whose loss needs 3 classes"):
        AutoAttack(0.1, ["apgd-dlr"]).perturb(*problem(2))
    model, pixels, labels, keys = problem()
    wrong = (labels + 1) % 10
    assert torch.equal(AutoAttack(0.1).perturb(model, pixels, wrong, keys), pixels)


def test_mim_equals_its_published_algorithm() -> None:
    model, pixels, labels, keys = problem()
    attack = PGD(0.05, None, steps=10, momentum=1.0, random_start=False)
    with frozen(model):
        ours = attack.perturb(model, pixels, labels, keys)
        theirs = mim_by_definition(model, pixels, labels, 0.05, 10, 1.0)
    # A sum of gradients of zero up to rounding may take either sign.
    assert ((ours - theirs).abs() > 1e-6).float().mean() < 0.001


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attacks": ["apgd"]}, "^attacks must be AutoAttack's, .*did you mean apgd-"),
        ({"attacks": []}, "^attacks must be a list"),
        ({"attacks": "square"}, "^attacks must be a list"),
        ({"targets": True}, "^targets must be a whole number"),
        ({"unfooled": "best"}, "^unfooled must be strongest or clean"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AutoAttack(**arguments)
