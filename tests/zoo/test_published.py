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
from timm.models import VisionTransformer, load_state_dict_from_hf

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
    ((_, file, _),) = sources.fetch({member.name: member.timm})
    classifier = build(member, IMAGENET, file).eval()
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
    ((_, weights, sha256),) = sources.fetch({"r": name})
    assert weights == path and sha256 == path.resolve().name
    theirs = load_state_dict_from_hf(f"timm/{name}", asked or "pytorch_model.bin")
    assert all(torch.equal(theirs[key], value) for key, value in state.items())
    net = build(Member("r", name), IMAGENET, weights).net
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


def test_the_original_archive_at_a_url_is_read_by_the_models_own_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hub's file is not in the cache, but the authors' .npz is in torch's."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    offline(tmp_path, monkeypatch)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / Path(sources.config(name)["url"]).name
    np.savez(file, cls=np.zeros(3))
    ((_, weights, _),) = sources.fetch({"v": name})
    assert weights == file and file.suffix == ".npz"
    loaded: list[str] = []
    monkeypatch.setattr(VisionTransformer, "load_pretrained", lambda _, path: loaded.append(path))
    build(Member("v", name, {"depth": 2}), IMAGENET, file)
    assert loaded == [str(file)]
