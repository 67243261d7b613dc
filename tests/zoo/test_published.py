"""Published weights are read as timm reads them, from a cache without a network."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from timm.models import load_state_dict_from_hf

from netkin.errors import UserError
from netkin.zoo import sources
from netkin.zoo.build import Task, build, preprocessing
from netkin.zoo.member import Member, parse_members
from tests.conftest import ROOT
from tests.zoo.hub_cache import logits_of, offline, random_weights, write_hub, write_published

IMAGENET = Task("imagenet", num_classes=1000, weights="pretrained")


def listed() -> dict[str, Member]:
    """Every model of the three lists, once a timm name."""
    members = {}
    for name in ("imagenet69", "resnet50_regimes", "vit_s_regimes"):
        config: Any = OmegaConf.to_container(
            OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml")
        )
        for member in parse_members(config["members"], config["known"]):
            members.setdefault(member.timm, member)
    return members


ALL = listed()


def check_equals_timm(member: Member, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits through the published path are those of timm's own pretrained=True, to the bit."""
    offline(folder, monkeypatch)
    write_published(folder, member.timm, random_weights(member.timm, **member.kwargs))
    ((_, file),) = sources.fetch({member.name: member.timm})
    classifier = build(member, IMAGENET, file.path).eval()
    side = preprocessing(member, IMAGENET).view.input_size
    pixels = torch.rand(1, 3, side, side)
    theirs = timm.create_model(member.timm, pretrained=True, **member.kwargs)
    expected = logits_of(theirs, (pixels - classifier.mean) / classifier.std)
    shutil.rmtree(folder)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(logits_of(classifier, pixels), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_listed_model_equals_timms(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_equals_timm(ALL[name], tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        ("open_clip_pytorch_model.bin", "open_clip_model.safetensors"),
        ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.bin"),
        ("mine.bin", "mine.safetensors"),
        ("mine.pth", "mine.pth"),
        (None, "pytorch_model.bin"),
    ],
)
def test_file_names_of_the_hub_are_timms(
    asked: str | None, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "test_resnet.r160_in1k"
    offline(tmp_path, monkeypatch)
    monkeypatch.setitem(sources.config(name), "hf_hub_filename", asked)
    state = random_weights(name)
    path = write_hub(tmp_path, f"timm/{name}", file, state)
    ((_, weights),) = sources.fetch({"r": name})
    assert weights.path == path and weights.sha256 == path.resolve().name
    theirs = load_state_dict_from_hf(f"timm/{name}", asked or "pytorch_model.bin")
    assert all(torch.equal(theirs[key], value) for key, value in state.items())
    net = build(Member("r", name), IMAGENET, weights.path).net
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


class Hook:
    def __reduce__(self) -> Any:
        return (print, ("this code runs",))


def test_published_weights_with_pickled_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name = "test_resnet.r160_in1k"
    offline(tmp_path, monkeypatch)
    content: Any = {**random_weights(name), "hook": Hook()}
    file = write_hub(tmp_path, f"timm/{name}", "pytorch_model.bin", content)
    with pytest.raises(UserError, match="they hold pickled objects, which are not loaded") as error:
        build(Member("r", name), IMAGENET, file)
    assert "weights_only" not in str(error.value)
    assert "this code runs" not in capsys.readouterr().out


def test_looking_for_weights_changes_nothing_of_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    logger = logging.getLogger("huggingface_hub")
    for level in (logging.WARNING, logging.NOTSET):
        monkeypatch.setattr(logger, "level", level)
        with pytest.raises(UserError, match="cannot be had: r"):
            list(sources.fetch({"r": "test_resnet.r160_in1k"}))
        assert logger.level == level


def arrays_of(state: dict[str, torch.Tensor], heads: int) -> dict[str, np.ndarray]:
    """A ViT's weights under the names and in the shapes of its authors' (JAX) archives."""

    def kernel(key: str) -> np.ndarray:
        return state[key].numpy().T

    arrays: dict[str, Any] = {
        "cls": state["cls_token"].numpy(),
        "embedding/kernel": state["patch_embed.proj.weight"].numpy().transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"].numpy(),
        "Transformer/posembed_input/pos_embedding": state["pos_embed"].numpy(),
        "Transformer/encoder_norm/scale": state["norm.weight"].numpy(),
        "Transformer/encoder_norm/bias": state["norm.bias"].numpy(),
        "head/kernel": kernel("head.weight"),
        "head/bias": state["head.bias"].numpy(),
    }
    blocks = {int(key.split(".")[1]) for key in state if key.startswith("blocks.")}
    for i in blocks:
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = theirs + "MultiHeadDotProductAttention_1/"
        width = state[ours + "norm1.weight"].numel()
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            weight = state[ours + "attn.qkv.weight"][rows].numpy().T
            arrays[f"{attention}{name}/kernel"] = weight.reshape(width, heads, -1)
            bias = state[ours + "attn.qkv.bias"][rows].numpy()
            arrays[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        out = kernel(ours + "attn.proj.weight").reshape(heads, -1, width)
        arrays[attention + "out/kernel"] = out
        arrays[attention + "out/bias"] = state[ours + "attn.proj.bias"].numpy()
        for j, layer in enumerate(("fc1", "fc2")):
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/kernel"] = kernel(f"{ours}mlp.{layer}.weight")
            arrays[f"{theirs}MlpBlock_3/Dense_{j}/bias"] = state[f"{ours}mlp.{layer}.bias"].numpy()
        for j, norm in ((0, "norm1"), (2, "norm2")):
            arrays[f"{theirs}LayerNorm_{j}/scale"] = state[f"{ours}{norm}.weight"].numpy()
            arrays[f"{theirs}LayerNorm_{j}/bias"] = state[f"{ours}{norm}.bias"].numpy()
    return arrays


def test_the_original_archive_at_a_url_is_read_by_the_models_own_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hub's file is not in the cache, but the authors' .npz is in torch's."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    offline(tmp_path, monkeypatch)
    kwargs = {"depth": 2}
    state = random_weights(name, **kwargs)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / Path(sources.config(name)["url"]).name
    np.savez(file, **arrays_of(state, heads=3))  # type: ignore[arg-type]
    ((_, weights),) = sources.fetch({"v": name})
    assert weights.path == file and file.suffix == ".npz"
    net = build(Member("v", name, kwargs), IMAGENET, file).net
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
