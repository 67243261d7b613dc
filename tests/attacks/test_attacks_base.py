"""What an attack states about itself: its passes, and the defaults for a class that has none."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from netkin.attacks import PGD, Attack, AutoAttack, Clean, PatchFool, SignNoise, as_attack
from netkin.attacks.autoattack import ATTACKS
from netkin.attacks.base import frozen
from netkin.errors import UserError
from netkin.zoo.build import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES, CLASSES = 3, 5


class Counter(torch.autograd.Function):
    """Counts the images of forward passes, and of backward passes that arrive at the pixels."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, counts: dict[str, int]) -> Tensor:
        ctx.counts = counts
        counts["forward"] += len(pixels)
        return pixels.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.counts["backward"] += len(gradients[0])
        return gradients[0], None


class Certain(nn.Module):
    """Nothing fools it into another class than 2, and every logit has a gradient."""

    def forward(self, pixels: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, pixels[0].numel() * CLASSES).view(-1, CLASSES)
        margin = torch.zeros(CLASSES)
        margin[2] = 1e4
        return pixels.flatten(1) @ weights + margin


def counted(attack: Attack, model: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, float]:
    """Passes an image, forward and backward, in one call."""
    counts = {"forward": 0, "backward": 0}
    handle = model.register_forward_pre_hook(lambda _, x: (Counter.apply(x[0], counts),))
    with frozen(model):
        attack.perturb(model, pixels, labels, [str(i) for i in range(len(pixels))])
    handle.remove()
    return {name: count / len(pixels) for name, count in counts.items()}


FOUR: dict[str, Any] = {"steps": 4, "targets": 2, "queries": 7, "eps": 0.1}


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=6),
        PGD(steps=1, random_start=False),
        PGD(steps=4, momentum=1.0),
        SignNoise(),
        Clean(),
        *(AutoAttack(attacks=[name], **FOUR) for name in ATTACKS),
        AutoAttack(**FOUR),
        AutoAttack(**{**FOUR, "targets": 9}),  # of five classes
    ],
    ids=lambda attack: f"{type(attack).__name__}-{getattr(attack, 'attacks', '')}",
)
def test_the_stated_passes_are_those_of_an_image_that_nothing_fools(attack: Attack) -> None:
    torch.manual_seed(0)
    pixels, labels = torch.rand(IMAGES, 3, 8, 8), torch.full((IMAGES,), 2)
    model = Certain()
    passes = attack.passes(model, CLASSES)
    assert passes is not None
    assert counted(attack, model, pixels, labels) == {
        "forward": passes.forward,
        "backward": passes.backward,
    }


@pytest.mark.parametrize("steps", [0, 3])
def test_passes_of_patchfool_count_a_layers_part_of_the_model(steps: int) -> None:
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8}
    net = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=4, num_heads=2, **size)
    model = Classifier(net, "vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()
    attack = PatchFool(steps=steps, attention_layers=[0, 3])
    passes = attack.passes(model, CLASSES)
    pixels, labels = torch.rand(IMAGES, 3, 32, 32), torch.zeros(IMAGES, dtype=torch.int64)
    counts = counted(attack, model, pixels, labels)
    assert (passes.forward, passes.backward) == (1 + steps, steps * (1 + 1 / 4 + 4 / 4))
    assert counts == {"forward": passes.forward, "backward": steps * 3}


def test_a_shortened_attack_differs_in_its_steps_alone() -> None:
    for attack in (PGD(steps=50, momentum=0.5, seed=3), PatchFool(steps=50, lr=0.1)):
        short = attack.shortened(2)
        assert {**vars(short), "steps": 50} == vars(attack) and short.steps == 2
        assert attack.shortened(60).steps == 50
    for whole in (AutoAttack(), SignNoise(), Clean()):
        assert whole.shortened(2) is whole


class Brighten:
    """A class of a user's, with `perturb` alone."""

    def perturb(self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Any) -> Tensor:
        return (pixels + 0.1).clamp(0, 1)


class Picky(Brighten):
    """One that states everything."""

    eps = 0.1
    looks_inside = True

    def unfit(self, model: nn.Module) -> str | None:
        return None if isinstance(model, nn.Linear) else "is not linear"


def test_a_class_with_perturb_alone_is_an_attack() -> None:
    attack = as_attack(Brighten(), "mine")
    assert isinstance(attack, Attack)
    assert (attack.eps, attack.looks_inside, attack.selective) == (None, False, False)
    assert attack.passes(nn.Identity(), 10) is None and attack.shortened(2) is attack
    assert attack.unfit(nn.Identity()) is None
    pixels = torch.zeros(1, 3, 2, 2)
    assert torch.equal(attack.perturb(nn.Identity(), pixels, torch.zeros(1), ["a"]), pixels + 0.1)


def test_what_a_users_class_states_is_kept() -> None:
    attack = as_attack(Picky())
    assert (attack.eps, attack.looks_inside, attack.selective) == (0.1, True, True)
    assert attack.unfit(nn.Identity()) == "is not linear" and attack.unfit(nn.Linear(1, 1)) is None
    assert as_attack(attack) is attack
    with pytest.raises(UserError, match=r"^Linear is no attack: it must have a method perturb"):
        as_attack(nn.Linear(1, 1))
