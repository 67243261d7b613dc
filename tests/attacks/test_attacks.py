"""PGD: its parity with foolbox, ball, grid and random start; and what all attacks state."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from netkin.attacks import PGD, Attack, AutoAttack, Clean, PatchFool, SignNoise, as_attack
from netkin.attacks.autoattack import ATTACKS
from netkin.attacks.base import frozen, generator, uniform
from netkin.attacks.grid import levels, to_grid
from netkin.attacks.units import fraction
from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.errors import UserError
from netkin.zoo.build import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = [f"image {i}" for i in range(16)]


@pytest.fixture(params=["test_resnet", "test_vit"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"img_size": 32, "patch_size": 8} if "vit" in request.param else {}
    return timm.create_model(request.param, num_classes=10, **kwargs).eval()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Sixteen real digits, uint8 [16, 3, 32, 32], and labels [16]."""
    digits = Digits()
    subset = draw(digits, "all")
    pixels = views.load(digits, subset.positions[:16], views.View(32))
    return pixels, torch.tensor(subset.labels[:16])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # foolbox imports SciPy by old names
def test_equals_foolbox_image_for_image(model: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    import foolbox

    pixels, labels = images[0].float() / 255, images[1]
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=4 / 255, steps=20, random_start=False)
    expected = theirs.run(
        foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), pixels, labels, epsilon=32 / 255
    )
    attack = PGD("32/255", "4/255", steps=20, random_start=False)
    with frozen(model):
        ours = attack.perturb(model, pixels, labels, KEYS)
    assert (ours != pixels).any(dim=(1, 2, 3)).all()
    assert (ours - expected).abs().max().item() == 0


def test_random_start_belongs_to_seed_and_key() -> None:
    noise = uniform((3, 4, 4), 0.1, seed=0, keys=["a", "b"])
    assert noise.shape == (2, 3, 4, 4) and noise.dtype == torch.float32
    assert torch.equal(noise[1:], uniform((3, 4, 4), 0.1, seed=0, keys=["b"]))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, uniform((3, 4, 4), 0.1, seed=1, keys=["a", "b"]))
    assert noise.abs().max() <= 0.1
    large = uniform((3, 64, 64), 0.5, seed=3, keys=["x"])  # it fills the ball
    assert abs(large.mean().item()) < 0.01
    assert large.std().item() == pytest.approx(1 / np.sqrt(12), rel=0.02)
    # The very bits, so that results can be compared across machines and versions.
    assert generator(0, "digits/0001").random(2).tolist() == [
        0.1459986700897613,
        0.8625281473013805,
    ]


def test_a_frozen_model_has_its_mixture_of_modes_afterwards() -> None:
    model: Any = timm.create_model("test_resnet", num_classes=10).train()
    model.bn1.eval()  # as a fine-tuner would leave it
    model.fc.weight.requires_grad_(False)

    def modes() -> list[bool]:
        taken = [parameter.requires_grad for parameter in model.parameters()]
        return [module.training for module in model.modules()] + taken

    before = modes()
    with pytest.raises(RuntimeError, match="after"), frozen(model):
        assert not any(modes())
        raise RuntimeError("after")
    assert modes() == before


@given(
    arrays(np.uint8, (2, 3, 4, 4)),
    arrays(np.float32, (2, 3, 4, 4), elements=st.floats(-1, 1, width=32)),
    st.floats(1 / 255, 1),
)
def test_grid_keeps_the_ball_and_rounds(clean: np.ndarray, noise: np.ndarray, eps: float) -> None:
    start = torch.from_numpy(clean)
    pixels = start.float() / 255
    adversarial = (pixels + torch.from_numpy(noise) * eps).clamp(0, 1)
    stored = to_grid(adversarial, start, eps)
    assert stored.dtype == torch.uint8
    difference = stored.int() - start.int()
    assert difference.abs().max() <= eps * 255 + 1e-4
    # Rounded, never truncated; where the ball's edge lies between levels, up to one level inside.
    on_grid = abs(eps * 255 - round(eps * 255)) < 1e-6
    assert (stored.float() / 255 - adversarial).abs().max() <= (0.501 if on_grid else 1.001) / 255
    assert torch.equal(to_grid(stored / 255, start.flip(0), None), stored)


@pytest.mark.parametrize(("eps", "expected"), [("8/255", 8), ("0.1", 25), (1.0, 255), ("2/510", 1)])
def test_levels(eps: str | float, expected: int) -> None:
    assert levels(fraction(eps, "eps")) == expected
    with pytest.raises(UserError, match=r"below 1/255.*dtype=float32"):
        levels(0.5 / 255)


@given(st.integers(1, 255), st.integers(1, 255))
def test_fractions_are_exact(a: int, b: int) -> None:
    a, b = min(a, b), max(a, b)
    assert fraction(f"{a}/{b}", "eps") == fraction(f" {a} / {b} ", "eps") == a / b
    assert fraction("2.5/255", "eps") == 2.5 / 255 and fraction("1e-2", "eps") == 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"eps": v}, "^eps=")
            for v in ("-8/255", 0, "1.5", "a lot", "8/0", "", "nan", "inf", None)
        ),
        ({"eps": 8}, "^eps=.*did you mean 8/255"),
        *(({"steps": v}, "^steps must be a whole number") for v in (0, 2.5, True)),
        *(({"momentum": v}, "^momentum must be a number of 0 or more") for v in (-1, "much", True)),
        ({"random_start": 1}, "^random_start must be true or false"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PGD(**arguments)


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
    def perturb(self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Any) -> Tensor:
        return (pixels + 0.1).clamp(0, 1)


class Picky(Brighten):
    eps = 0.1
    looks_inside = True

    def unfit(self, model: nn.Module) -> str | None:
        return None if isinstance(model, nn.Linear) else "is not linear"


def test_what_a_users_class_states_is_kept_and_the_rest_has_defaults() -> None:
    plain, picky, linear = as_attack(Brighten(), "mine"), as_attack(Picky()), nn.Linear(1, 1)
    assert isinstance(plain, Attack) and plain.name == "mine" and as_attack(picky) is picky
    assert (plain.eps, plain.looks_inside, plain.selective) == (None, False, False)
    assert (picky.eps, picky.looks_inside, picky.selective) == (0.1, True, True)
    assert plain.passes(linear, 10) is None and plain.shortened(2) is plain
    assert plain.unfit(nn.Identity()) is picky.unfit(linear) is None
    assert picky.unfit(nn.Identity()) == "is not linear"
    pixels = torch.zeros(1, 3, 2, 2)
    assert torch.equal(plain.perturb(linear, pixels, torch.zeros(1), ["a"]), pixels + 0.1)
    with pytest.raises(UserError, match=r"^Linear is no attack: it must have a method perturb"):
        as_attack(linear)
