"""PGD: parity with foolbox, its ball and grid, its random start, and the model it leaves behind."""

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from netkin.attacks import PGD
from netkin.attacks.base import frozen, generator, uniform
from netkin.attacks.grid import levels, to_grid
from netkin.attacks.units import fraction
from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.errors import UserError

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


def test_model_is_left_as_it_was(images: tuple[Tensor, Tensor]) -> None:
    model: Any = timm.create_model("test_resnet", num_classes=10).train()
    model.bn1.eval()  # a mixture of modes, as a fine-tuner would leave it
    model.fc.weight.requires_grad_(False)
    before = copy.deepcopy(model)
    pixels, labels = images[0].float() / 255, images[1]
    with pytest.raises(RuntimeError, match="after"), frozen(model):
        assert not any(module.training for module in model.modules())
        PGD("8/255", "2/255", steps=2).perturb(model, pixels, labels, KEYS)
        raise RuntimeError("after")
    for ours, theirs in zip(model.modules(), before.modules(), strict=True):
        assert ours.training == theirs.training
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert ours.grad is None
        assert ours.requires_grad == theirs.requires_grad
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(model.buffers(), before.buffers(), strict=True):
        assert torch.equal(ours, theirs)


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


def test_grid_is_lossless_on_the_grid() -> None:
    clean = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    levels_ = torch.arange(256).repeat(3).view(1, 3, 16, 16)
    assert torch.equal(to_grid(levels_ / 255, clean, 1.0), levels_.to(torch.uint8))
    assert torch.equal(to_grid(levels_ / 255, clean, None), levels_.to(torch.uint8))


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
