"""Members that are not timm's: one's own classes, and what all have in common."""

import json
import logging
import pickle
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netkin.attacks import PGD
from netkin.components import components
from netkin.errors import UserError
from netkin.passes.features import features, gradients
from netkin.zoo.build import (
    Task,
    build,
    check_member,
    identity,
    own_weights_sha256,
)
from netkin.zoo.execution import Execution, prepare
from netkin.zoo.member import Member, parse_members
from netkin.zoo.preprocessing import unknown_preprocessing
from tests.zoo.hub_cache import logits_of
from tests.zoo.own_nets import OUTPUTS, Half, Net, ready

FOLDER = Task("mine", num_classes=10, input_size=32)
IMAGENET = Task("imagenet", num_classes=1000, weights="pretrained")
NET = "tests.zoo.own_nets.Net"


def one(entry: Any) -> Member:
    return parse_members([entry], at_least=1)[0]


def spread(net: nn.Module) -> nn.Module:
    """Batch statistics that are not those of a new network."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return net


@pytest.fixture
def own(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(1)
    net = spread(Net())
    torch.save(net.state_dict(), tmp_path / "mine.pt")
    return net, tmp_path / "mine.pt"


@pytest.mark.parametrize("output", [name for name in OUTPUTS if name != "wrong"])
def test_logits_in_whatever_a_network_returns(output: str, own: tuple[nn.Module, Path]) -> None:
    net, file = own
    member = one(
        {
            "name": "mine",
            "_target_": NET,
            "kwargs": {"output": output},
            "checkpoint": str(file),
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "family": "mine",
        }
    )
    pixels = torch.rand(3, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    expected = logits_of(net, (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    for copy in (member, pickle.loads(pickle.dumps(member))):
        assert torch.equal(logits_of(build(copy, FOLDER, file), pixels), expected)


def test_an_output_without_logits_is_an_error() -> None:
    with pytest.raises(UserError, match=r"n \(.*Net\) returns a dict with keys \['a', 'b'\], exp"):
        build(one({"name": "n", "_target_": NET, "kwargs": {"output": "wrong"}}), FOLDER)


def test_a_network_that_cannot_be_copied_is_an_error_before_any_work() -> None:
    with pytest.raises(UserError, match=r"n \(.*Locked\) cannot be copied \(cannot pickle"):
        check_member(one({"name": "n", "_target_": "tests.zoo.own_nets.Locked"}), FOLDER)


def test_a_network_without_gradients_says_so_where_it_is_attacked() -> None:
    without = build(one({"name": "n", "_target_": "tests.zoo.own_nets.OnNumpy"}), FOLDER)
    pixels, labels = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    prepared = prepare(without, Execution(), pixels, 2)
    assert prepared(pixels).shape == (2, 10)
    with pytest.raises(UserError, match=r"^n: its logits have no gradient to the images"):
        PGD(0.1).perturb(prepared, pixels, labels, ["a", "b"])


def test_gray_images_are_the_average_of_the_channels() -> None:
    member = one(
        {
            "name": "gray",
            "_target_": NET,
            "kwargs": {"channels": 1},
            "in_chans": 1,
            "mean": 0.25,
            "std": 0.5,
        }
    )
    classifier = build(member, FOLDER, seed=2).eval()
    gray = torch.rand(2, 1, 32, 32)
    expected = logits_of(classifier.net, (gray - 0.25) / 0.5)
    torch.testing.assert_close(logits_of(classifier, gray.expand(-1, 3, -1, -1)), expected)
    colours = torch.rand(2, 3, 32, 32, requires_grad=True)
    expected = classifier.net((colours.mean(1, keepdim=True) - 0.25) / 0.5)
    assert torch.equal(classifier(colours), expected)
    prepared = prepare(classifier, Execution(), colours.detach())
    torch.testing.assert_close(prepared(colours), expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(prepared(colours).sum(), colours)
    assert gradient.any() and torch.equal(gradient[:, 0], gradient[:, 2])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"_target_": NET, "kwargs": {"depth": 3}}, r"cannot be built \(TypeError: .*'depth'"),
        ({"_target_": NET, "kwargs": {"channels": 1}}, r"for 32 x 32 images .*in_chans: 1"),
        ({"_target_": NET, "kwargs": {"classes": 7}}, r"mine has 7 classes, mine has 10"),
        ({"_target_": "tests.zoo.own_nets.broken"}, r"RuntimeError: no such file: weights.pt\);"),
        ({"_target_": "tests.zoo.own_nets.no_network"}, r"got an object of type int"),
        ({"_target_": NET, "in_chans": 1, "mean": [1, 2, 3], "std": 1}, r"mean is .* expected 1 n"),
    ],
)
def test_mistakes_in_building(entry: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(one({"name": "mine", **entry}), FOLDER)
    assert "\n" not in str(error.value)


def test_identity_of_ones_own_network(own: tuple[nn.Module, Path]) -> None:
    member = one({"name": "mine", "_target_": NET, "checkpoint": str(own[1])})
    made = identity(member, FOLDER, "0" * 64)
    assert made["_target_"] == NET and len(made["source_sha256"]) == 64 and "fit" not in made
    json.dumps(made)
    for other in (
        replace(member, kwargs={"classes": 10}),
        replace(member, mean=(0.4,), std=(0.5,)),
        replace(member, crop_pct=0.9),
        replace(member, weights_key="ema"),
        replace(member, target="tests.zoo.own_nets.Half"),
    ):
        assert identity(other, FOLDER, "0" * 64) != made


def test_identity_and_notes_of_members() -> None:
    member = one("test_vit")
    assert identity(member, FOLDER, "0" * 64) == {
        "timm": "test_vit",
        "kwargs": {},
        "fit": [{}],
        "weights_sha256": "0" * 64,
        "preprocessing": {
            "view": {
                "input_size": 32,
                "crop_pct": 1.0,
                "crop_mode": "center",
                "interpolation": "bicubic",
            },
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        },
    }
    for entry in ("test_vit", {"name": "g", "_target_": NET, "in_chans": 1, "mean": 1, "std": 2}):
        assert one(json.loads(json.dumps(asdict(one(entry))))) == one(entry)


def test_a_function_that_brings_its_weights() -> None:
    member = one({"name": "mine", "_target_": "tests.zoo.own_nets.ready", "pretrained": True})
    assert member.uses_published(FOLDER) and not one("test_vit").uses_published(FOLDER)
    first, again = own_weights_sha256(member, FOLDER), own_weights_sha256(member, FOLDER)
    assert first == again != own_weights_sha256(replace(member, kwargs={"seed": 4}), FOLDER)
    pixels = torch.rand(2, 3, 32, 32)
    expected = logits_of(ready(), (pixels - 0.5) / 0.5)
    assert torch.equal(logits_of(build(member, FOLDER), pixels), expected)
    assert unknown_preprocessing(member, FOLDER)
    assert not unknown_preprocessing(replace(member, mean=(0.0,), std=(1.0,)), FOLDER)
    assert unknown_preprocessing(replace(member, pretrained=False), FOLDER) is False


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO, logger="netkin")
    yield caplog


def test_what_makes_timms_networks_faster_never_changes_others(
    warnings_of: pytest.LogCaptureFixture,
) -> None:
    """Net relies on an activation in place and on a view of contiguous features."""
    member = one({"name": "mine", "_target_": "tests.zoo.own_nets.ready", "pretrained": True})
    classifier, pixels = build(member, FOLDER).eval(), torch.rand(4, 3, 32, 32)
    for execution in (
        Execution(),
        Execution(fuse=False),
        Execution(memory_format="contiguous"),
        Execution(fuse=False, memory_format="contiguous"),
    ):
        prepared = prepare(classifier, execution, pixels)
        torch.testing.assert_close(prepared(pixels), classifier(pixels), rtol=1e-4, atol=1e-5)
        x = pixels.clone().requires_grad_()
        assert torch.autograd.grad(prepared(x).sum(), x)[0].any()
    assert "mine does not run fused, channels_last: view size is not compatible" in warnings_of.text
    assert "mine does not run fused, contiguous: a logit would change by" in warnings_of.text


def test_weights_that_cannot_be_in_16_bits_stay(warnings_of: pytest.LogCaptureFixture) -> None:
    classifier = build(one({"name": "h", "_target_": "tests.zoo.own_nets.Half"}), FOLDER).eval()
    pixels = torch.rand(4, 3, 32, 32)
    prepared = prepare(classifier, Execution(precision="bf16-mixed"), pixels)
    torch.testing.assert_close(prepared(pixels), classifier(pixels), rtol=0.05, atol=0.02)
    assert isinstance(classifier.net, Half)


def test_components_of_other_networks_are_read() -> None:
    gray = one({"name": "g", "_target_": NET, "kwargs": {"channels": 1}, "in_chans": 1})
    found = components(gray, FOLDER)
    assert (found["Base architecture"], found["Stem layer"]) == ("CNN", "3s2")
    assert found["Activation"] == "SiLU"
    returns = one({"name": "d", "_target_": NET, "kwargs": {"output": "dict"}})
    assert components(returns, FOLDER)["Normalization"] == "BN"
    ours = components(one("torchvision:resnet18"), FOLDER)
    timms = components(one("resnet18"), FOLDER)
    assert ours == timms


def test_a_network_that_cannot_be_traced_says_so() -> None:
    member = one({"name": "n", "_target_": "tests.zoo.own_nets.OnNumpy"})
    with pytest.raises(
        UserError, match=r"n: the components of .*OnNumpy cannot be read from its f"
    ):
        components(member, FOLDER)


@pytest.mark.parametrize("channels", [1, 3])
def test_other_measures_take_these_networks(channels: int) -> None:
    own = {"name": "m", "_target_": NET, "in_chans": channels}
    member = one({**own, "kwargs": {"channels": channels, "output": "tuple"}})
    classifier = build(member, FOLDER).eval()
    batch = {
        "pixels": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8),
        "labels": torch.tensor([1, 2]),
    }
    assert features(classifier, batch).shape == (2, 96)
    assert gradients(classifier, batch).flatten(1).norm(dim=1).tolist() == pytest.approx(
        [1, 1], 0.01
    )
    without = build(one({"name": "n", "_target_": "tests.zoo.own_nets.OnNumpy"}), FOLDER)
    with pytest.raises(UserError, match="OnNumpy has no linear layer, whose input its features"):
        features(without, batch)
