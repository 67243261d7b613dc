"""Members that are not timm's: one's own classes, torchvision's and transformers' models."""

import itertools
import json
import pickle
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from netkin.attacks import PGD
from netkin.components import components
from netkin.data.views import View
from netkin.errors import UserError
from netkin.passes.features import features, gradients
from netkin.store.files import read_tensors
from netkin.zoo import from_transformers, sources
from netkin.zoo.build import (
    Task,
    architecture_identity,
    build,
    check_member,
    identity,
    knows_more,
    preprocessing,
    weights_sha256,
)
from netkin.zoo.execution import MEMORY_FORMATS, Execution, Prepared
from netkin.zoo.from_transformers import crop_pct
from netkin.zoo.member import Member
from netkin.zoo.parse import parse_members
from netkin.zoo.preprocessing import unknown_preprocessing
from tests.conftest import run_command, run_here
from tests.zoo.hub_cache import COMMIT, logits_of, offline
from tests.zoo.own_nets import OUTPUTS, Net, load, ready

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


@pytest.mark.parametrize("output", [name for name in OUTPUTS if name not in ("wrong", "features")])
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
    with pytest.raises(UserError, match="of which only one can be its logits"):
        build(one({"name": "n", "_target_": NET, "kwargs": {"output": "features"}}), FOLDER)


def test_a_network_that_cannot_be_copied_is_an_error_before_any_work() -> None:
    with pytest.raises(UserError, match=r"n \(.*Locked\) cannot be copied \(cannot pickle"):
        check_member(one({"name": "n", "_target_": "tests.zoo.own_nets.Locked"}), FOLDER)


def test_a_network_without_gradients_says_so_where_it_is_attacked() -> None:
    without = build(one({"name": "n", "_target_": "tests.zoo.own_nets.OnNumpy"}), FOLDER)
    pixels, labels = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    prepared = Prepared(without, Execution(), pixels, 2)
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
    prepared = Prepared(classifier, Execution(), colours.detach())
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
        (
            {"_target_": NET, "in_chans": 1, "mean": [0.1, 0.2, 0.3], "std": 1},
            r"mean is .* expected 1 n",
        ),
    ],
)
def test_mistakes_in_building(entry: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(one({"name": "mine", **entry}), FOLDER)
    assert "\n" not in str(error.value)


def test_identity_of_ones_own_network() -> None:
    member = one({"name": "mine", "_target_": NET, "checkpoint": "mine.pt"})
    made = identity(member, FOLDER, "0" * 64)
    assert made["_target_"] == NET and "fit" not in made
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
    first, again = (weights_sha256(build(member, FOLDER).net) for _ in range(2))
    assert first == again != weights_sha256(build(replace(member, kwargs={"seed": 4}), FOLDER).net)
    pixels = torch.rand(2, 3, 32, 32)
    expected = logits_of(ready(), (pixels - 0.5) / 0.5)
    assert torch.equal(logits_of(build(member, FOLDER), pixels), expected)
    assert unknown_preprocessing(member, FOLDER)
    assert not unknown_preprocessing(replace(member, mean=(0.0,), std=(1.0,)), FOLDER)
    assert unknown_preprocessing(replace(member, pretrained=False), FOLDER) is False


def test_what_makes_timms_networks_faster_never_changes_others() -> None:
    """Net relies on an activation in place and on a view of contiguous features; Half mixes types;
    Proud reads its normalisation's weight, and has a convolution of five dimensions."""
    for name in ("ready", "Half", "Proud"):
        member = one({"name": "mine", "_target_": f"tests.zoo.own_nets.{name}"})
        classifier, pixels = build(member, FOLDER).eval(), torch.rand(4, 3, 32, 32)
        for precision, fuse, memory_format in itertools.product(
            ("32-true", "bf16-mixed"), (True, False), MEMORY_FORMATS
        ):
            prepared = Prepared(classifier, Execution(precision, fuse, memory_format), pixels)
            rtol, atol = (1e-4, 1e-5) if precision == "32-true" else (0.05, 0.02)
            torch.testing.assert_close(prepared(pixels), classifier(pixels), rtol=rtol, atol=atol)
            x = pixels.clone().requires_grad_()
            assert torch.autograd.grad(prepared(x).sum(), x)[0].any()


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


def test_torchvisions_weights_and_their_transforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    for name in ("resnet18", "mobilenet_v3_small.IMAGENET1K_V1"):
        member = one(f"torchvision:{name}")
        monkeypatch.setattr(sources, "download_cached_file", lambda *_, **__: 1 / 0)
        with pytest.raises(UserError, match=r"the weights of 1 of 1 members cannot be had: m \("):
            list(sources.fetch({"m": member.source}))
        torch.manual_seed(0)
        net = spread(torchvision.models.get_model(name.partition(".")[0]))
        url = sources.config(member.source)["url"]
        file = tmp_path / "torch" / "hub" / "checkpoints" / Path(url).name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)
        ((_, weights, _),) = sources.fetch({"m": member.source})
        assert weights == file
        image = _photograph()
        chosen = torchvision.models.get_model_weights(name.partition(".")[0]).DEFAULT  # type: ignore[attr-defined]
        expected = logits_of(net, chosen.transforms(antialias=True)(image)[None])
        _check_view(member, IMAGENET, image, build(member, IMAGENET, file), expected)
        assert member.family == ("resnet" if name == "resnet18" else "mobilenetv3")
        assert architecture_identity(member) == {"torchvision": name, "kwargs": {}}


def _photograph() -> Image.Image:
    torch.manual_seed(0)
    coarse = (torch.rand(8, 11, 3) * 255).byte().numpy()
    return Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)


def _check_view(
    member: Member, task: Task, image: Image.Image, classifier: nn.Module, expected: Tensor
) -> None:
    """Logits of an image through the member's own view are the library's."""
    view = preprocessing(member, task).view
    pixels = torch.from_numpy(np.asarray(view.transform()(image)))[None] / 255
    got = logits_of(classifier, pixels)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()
    assert torch.corrcoef(torch.cat([got, expected]))[0, 1] > 0.999


def test_torchvisions_networks_with_a_checkpoint_or_none(tmp_path: Path) -> None:
    net = torchvision.models.resnet18(num_classes=10)
    torch.save({"net": net.state_dict(), "acc": 84.0, "epoch": 9}, tmp_path / "ckpt.pth")
    entry = {"name": "r", "torchvision": "resnet18", "checkpoint": str(tmp_path / "ckpt.pth")}
    pixels = torch.rand(2, 3, 32, 32)
    classifier = build(one(entry), FOLDER, tmp_path / "ckpt.pth")
    assert torch.equal(logits_of(classifier, pixels), logits_of(net, (pixels - 0.5) / 0.5))
    assert unknown_preprocessing(one(entry), FOLDER)
    named = one({**entry, "torchvision": "resnet18.IMAGENET1K_V1"})  # lends its preprocessing
    assert preprocessing(named, FOLDER).mean == (0.485, 0.456, 0.406)
    assert not unknown_preprocessing(named, FOLDER)
    vit = one({"name": "v", "torchvision": "vit_b_16"})
    with torch.device("meta"):
        assert build(vit, FOLDER).net.image_size == 32  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"value 1000 but got 3"):
        file = tmp_path / "ckpt.pth"
        build(one({"torchvision": "resnet18", "kwargs": {"num_classes": 3}}), IMAGENET, file)


@pytest.mark.filterwarnings("ignore:The default weight init:FutureWarning")
def test_a_checkpoint_of_googlenet_has_the_normalisation_of_its_published_weights() -> None:
    """torchvision's builder sets transform_input with weights, and only then."""
    for name, task, expected in (
        ("googlenet", IMAGENET, True),
        ("inception_v3.IMAGENET1K_V1", FOLDER, True),
        ("googlenet", FOLDER, False),
    ):
        entry = {"name": "g", "torchvision": name, "checkpoint": "g.pth", "input_size": 299}
        with torch.device("meta"):
            assert build(one(entry), task).net.transform_input is expected, name
            entry["kwargs"] = {"transform_input": not expected}
            assert build(one(entry), task).net.transform_input is not expected, name


def test_a_resize_is_what_timm_makes_of_its_crop_pct() -> None:
    for crop in range(32, 520, 8):
        for resize in range(crop, crop + 120, 7):
            assert int(crop / crop_pct(crop, resize)) == resize


def test_which_of_torchvisions_networks_know_more() -> None:
    wnids = ("n01440764", "n01443537")
    part = Task("part", 2, weights="pretrained", classes=wnids)
    assert knows_more(one("torchvision:resnet18"), part)
    own = {"name": "m", "_target_": NET, "kwargs": {"classes": 1000}, "input_size": 32}
    assert knows_more(one(own), part) and not knows_more(one({**own, "kwargs": {}}), part)


def tiny(folder: Path, **changes: Any) -> nn.Module:
    """A random ViT and its image processor, saved as transformers saves them."""
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = library.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=48,
        patch_size=8,
        num_labels=10,
        initializer_range=0.5,
    )
    net = library.ViTForImageClassification(config)
    with from_transformers.silent(from_transformers.transformers()):
        net.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 48, "width": 48},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 2,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | changes))
    sources.published.cache_clear()
    return net


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_transformers_models_and_their_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    repository = tmp_path / "hub" / "models--org--name"
    folder = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    net, image = tiny(folder), _photograph()
    processor = from_transformers.transformers().AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = net.eval()(**processor(image, return_tensors="pt")).logits
    for name in ("org/name", str(folder)):
        member = one(f"transformers:{name}")
        assert (member.family, member.name) == ("vit", f"transformers:{name}")
        assert member.uses_published(FOLDER)  # on datasets whose members are trained, too
        ((_, weights, _),) = sources.fetch({"v": member.source})
        assert weights == folder / "model.safetensors"
        assert preprocessing(member, FOLDER).view == View(48, 1.0, "squash", "bilinear")
        classifier = build(member, FOLDER, weights)
        _check_view(member, FOLDER, image, classifier, expected)
        assert not unknown_preprocessing(member, FOLDER)
        assert identity(member, FOLDER, "0")["transformers"] == name
    pixels = torch.rand(2, 3, 48, 48)
    fast = Prepared(classifier.eval(), Execution(), pixels)
    torch.testing.assert_close(fast(pixels), classifier(pixels), rtol=1e-4, atol=1e-4)
    assert components(member, FOLDER)["Base architecture"] == "Transformer"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize(
    ("changes", "view"),
    [
        (
            {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 48},
                "crop_pct": 0.875,
            },
            View(48, 0.875, "center", "bilinear"),
        ),
        (
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 56},
                "crop_size": {"height": 48, "width": 48},
                "do_center_crop": True,
                "resample": 3,
            },
            View(48, 48 / 56, "center", "bicubic"),
        ),
        (
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "rescale_factor": 1 / 127.5,
                "rescale_offset": True,
                "do_normalize": False,
            },
            View(48, 1.0, "squash", "bilinear"),
        ),
    ],
)
def test_other_image_processors(tmp_path: Path, changes: dict, view: View) -> None:
    tiny(tmp_path, **changes)
    own = preprocessing(one(f"transformers:{tmp_path}"), FOLDER)
    assert own.view == view
    if "rescale_offset" in changes:
        # Scaled to [-1, 1], and then divided by its std: it normalises for the classifier again.
        assert own.mean == pytest.approx((0.5,) * 3) and own.std == (0.1, 0.125, 0.15)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_processor_that_timm_has_no_words_for_is_an_error(tmp_path: Path) -> None:
    tiny(tmp_path, size={"height": 48, "width": 64})
    member = one(f"transformers:{tmp_path}")
    with pytest.raises(UserError, match=r"ViTImageProcessor is not .* 48 x 64.*give the member in"):
        preprocessing(member, FOLDER)
    fields = replace(member, input_size=48, crop_pct=1.0)
    assert preprocessing(fields, FOLDER).view.input_size == 48


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_weights_without_a_classifier_are_an_error(tmp_path: Path) -> None:
    net: Any = tiny(tmp_path)
    with from_transformers.silent(from_transformers.transformers()):
        net.vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_labels": 10}))
    sources.published.cache_clear()
    with pytest.raises(UserError, match=r"its weights lack classifier.bias and 1 more"):
        build(one(f"transformers:{tmp_path}"), FOLDER, tmp_path / "model.safetensors")


def test_mistakes_in_transformers_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"transformers:org/none: its config.json cannot be read"):
        one("transformers:org/none")
    with pytest.raises(UserError, match=r"there is no such folder"):
        one("transformers:./none")
    with pytest.raises(UserError, match=r"there is no config.json and no preprocessor_config"):
        one(f"transformers:{tmp_path}")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'netkin\[transformers\]'"):
        one(f"transformers:{tmp_path}")


def run(folder: Path, members: list[str], *overrides: str, command=run_here):
    return command(
        f"model.members=[{','.join(members)}]",
        "attack=pgd",
        "attack.steps=2",
        "recipe.epochs=1",
        "subset=quick",
        f"hardware.members_at_once={2 if command is run_command else 1}",
        "logger=none",
        "hydra.run.dir=run",
        *overrides,
        cwd=folder,
    )


@pytest.mark.slow
def test_ones_own_network_trained_given_and_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of a package on Python's path: one trained here, and the same function as
    a gray network's checkpoint and from a function that loads it. Digits are gray."""
    package = tmp_path / "somewhere" / "my_pkg"
    package.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("own_nets.py"), package / "__init__.py")
    monkeypatch.syspath_prepend(package.parent)
    trained = "{name: trained, _target_: my_pkg.Net, mean: 0.3, std: 0.4}"
    other = trained.replace("name: trained", "name: other")
    done = run(tmp_path, [trained, other], "recipe.epochs=3")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "store/weights/digits/trained.safetensors"
    notes = json.loads(file.with_suffix(".json").read_text())
    assert notes["made_of"]["preprocessing"]["std"] == [0.4, 0.4, 0.4]
    assert notes["member"]["target"] == "my_pkg.Net" and "timm" not in notes["made_of"]

    state = load_file(file)
    torch.save({"model_state_dict": state}, package.parent / "brought.pt")
    state["conv.weight"] = state["conv.weight"].sum(1, keepdim=True)
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "gray.ckpt")
    members = [
        "digits/trained",
        "{name: gray, _target_: my_pkg.Net, checkpoint: gray.ckpt, in_chans: 1, family: net, "
        "kwargs: {channels: 1, output: dict}, mean: 0.3, std: 0.4}",
        "{name: brought, _target_: my_pkg.load, pretrained: true, mean: 0.3, std: 0.4, "
        f"kwargs: {{file: {package.parent / 'brought.pt'}}}}}",
    ]
    done = run(tmp_path, members)
    assert done.returncode == 0, done.stderr
    models = pl.read_csv(tmp_path / "run" / "models.csv")
    assert models["model"].to_list() == ["trained", "gray", "brought"]
    assert models["clean_accuracy"].n_unique() == 1 and models["clean_accuracy"][0] > 0.3
    (clean,) = (tmp_path / "store" / "digits").glob("quick-*/clean")
    logits = [
        read_tensors(clean / name / "logits.safetensors")["logits"] for name in models["model"]
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits[0], logits[2])
    made = json.loads((clean / "brought" / "identity.json").read_text())["model"]
    assert made["weights_sha256"] == weights_sha256(load(str(package.parent / "brought.pt")))


@pytest.mark.slow
def test_a_module_in_the_current_folder(tmp_path: Path) -> None:
    """It is found without PYTHONPATH, by the worker processes, too; and a member of one's own that
    cannot be right is one line before anything is trained or evaluated."""
    shutil.copy(Path(__file__).with_name("own_nets.py"), tmp_path / "mine.py")
    net = "{name: net, _target_: mine.Net, mean: 0.3, std: 0.4}"
    gray = "{name: gray, _target_: mine.Net, in_chans: 1, kwargs: {channels: 1}, mean: 0, std: 1}"
    done = run(tmp_path, [net, gray], "experiment=craft", command=run_command)
    assert done.returncode == 0, done.stderr
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "other.pt")
    for member, message in (
        ("{name: a, _target_: mine.Net, checkpoint: other.pt}", "a: weights other.pt do not fit"),
        ("{name: a, _target_: mine.Nett}", "has no class or function 'Nett'; did you mean Net"),
        ("{name: a, timm: test_vit, checkpoint: other.pt}", "a: weights other.pt do not fit"),
    ):
        done = run(tmp_path, [net, member], "hydra.run.dir=wrong", "subset.per_class=9")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr
        assert not re.search(r"^(train|clean) ", done.stdout, re.M)
