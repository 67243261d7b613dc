"""Members of torchvision and of transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from netkin.components import components
from netkin.data.views import View
from netkin.errors import UserError
from netkin.zoo import from_transformers, sources
from netkin.zoo.build import (
    Task,
    architecture_identity,
    build,
    identity,
    knows_more,
    preprocessing,
)
from netkin.zoo.execution import Execution, prepare
from netkin.zoo.from_transformers import crop_pct
from netkin.zoo.member import Member
from netkin.zoo.preprocessing import unknown_preprocessing
from tests.zoo.hub_cache import COMMIT, logits_of, offline
from tests.zoo.test_foreign import FOLDER, IMAGENET, NET, one, spread


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
        assert architecture_identity(member) == {"torchvision": name}


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
    sources.config.cache_clear()
    return net


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", ["folder", "hub"])
def test_transformers_models_and_their_processors(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    folder = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    net = tiny(folder)
    name = "org/name" if kind == "hub" else str(folder)
    member = one(f"transformers:{name}")
    assert (member.family, member.name) == ("vit", f"transformers:{name}")
    assert member.uses_published(FOLDER)  # on datasets whose members are trained, too
    ((_, weights, _),) = sources.fetch({"v": member.source})
    assert weights == folder / "model.safetensors"
    view = preprocessing(member, FOLDER).view
    assert view == View(48, 1.0, "squash", "bilinear")
    image = _photograph()
    processor = from_transformers.transformers().AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = net.eval()(**processor(image, return_tensors="pt")).logits
    classifier = build(member, FOLDER, weights)
    _check_view(member, FOLDER, image, classifier, expected)
    pixels = torch.rand(2, 3, 48, 48)
    fast = prepare(classifier.eval(), Execution(), pixels)
    torch.testing.assert_close(fast(pixels), classifier(pixels), rtol=1e-4, atol=1e-4)
    assert components(member, FOLDER)["Base architecture"] == "Transformer"
    assert not unknown_preprocessing(member, FOLDER)
    assert identity(member, FOLDER, "0")["transformers"] == name


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
    sources.config.cache_clear()
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
