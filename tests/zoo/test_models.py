"""The lists of models in conf/model, and published weights, which are read as timm reads them."""

import csv
import importlib
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from timm.models import load_state_dict_from_hf
from torch import Tensor
from torch.nn.functional import cross_entropy

from netkin.attacks.base import frozen
from netkin.errors import UserError
from netkin.zoo import sources, xception
from netkin.zoo.build import Classifier, Task, build, preprocessing
from netkin.zoo.execution import Execution, Prepared
from netkin.zoo.member import Member
from netkin.zoo.parse import parse_members
from tests.conftest import ROOT
from tests.zoo.hub_cache import (
    CheapInit,
    logits_of,
    offline,
    random_weights,
    write_hub,
    write_published,
)

DATA = Path(__file__).parent
REFERENCE = ROOT.parent / "shared" / "reference" / "zoo69.csv"
IMAGENET = Task("imagenet", num_classes=1000, weights="pretrained")

NOT_IN_REFERENCE = {
    # The reference has no entry: timm has dropped the model.
    "gluon_xception65": "gluon_xception65",
    # The reference took the only in1k tag of this name, but timm has given the name to a later TNT
    # with more parameters. The checkpoint of timm 0.6.7, tnt_s_patch16_224.pth.tar, is the legacy
    # model's: its state dict loads there alone, with bit-identical logits.
    "tnt_s_patch16_224": "tnt_s_legacy_patch16_224.in1k",
}


def _list(name: str) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _members(name: str) -> list[Member]:
    config = _list(name)
    return parse_members(config["members"], config["known"])


ALL = {member.name: member for member in _members("imagenet69")}


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, str]]:
    if not REFERENCE.is_file():
        pytest.skip(f"no reference data at {REFERENCE}")
    with REFERENCE.open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_the_list_is_the_papers(reference: dict[str, dict[str, str]]) -> None:
    """Its names, timm's, and input sizes."""
    assert list(ALL) == list(_list("imagenet69")["known"]) == list(reference)
    for name, row in reference.items():
        assert ALL[name].timm == NOT_IN_REFERENCE.get(name, row["timm"])
        view = preprocessing(ALL[name], IMAGENET).view
        assert view.input_size == int(row["input_size"])


@pytest.mark.parametrize(("regimes", "count"), [("resnet50_regimes", 18), ("vit_s_regimes", 4)])
def test_regimes(regimes: str, count: int) -> None:
    """Every member exists with its tag (parse_members checks), for ImageNet at 224 x 224."""
    members = _members(regimes)
    assert [member.name for member in members] == list(_list(regimes)["known"])
    assert len(members) == count
    for member in members:
        assert member.timm in timm.list_pretrained(member.timm)
        assert preprocessing(member, IMAGENET).view.input_size == 224


def test_imagenet_takes_the_papers_list() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("model/imagenet")
    taken, listed = OmegaConf.to_container(config.model), _list("imagenet69")
    assert isinstance(taken, dict) and taken["members"] == listed["members"]
    # Two names more are known, of what train.py trains.
    extra = {"vit_ti", "vit_s"}
    assert {k: v for k, v in taken["known"].items() if k not in extra} == listed["known"]


def _formula(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Weights that depend on their key and shape alone, and keep logits near 1 to 10."""
    state = {}
    for key, shape in shapes.items():
        uniform = np.random.RandomState(zlib.crc32(key.encode())).random_sample(tuple(shape))
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape, dtype=np.int64)
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            value = np.float32(0.5 + uniform)
        elif len(shape) > 1:
            value = np.float32((2 * uniform - 1) * np.sqrt(3 / np.prod(shape[1:])))
        else:
            value = np.float32(uniform - 0.5)
        state[key] = torch.from_numpy(np.asarray(value))
    return state


@pytest.mark.slow
def test_gluon_xception65_is_the_original(tmp_path: Path) -> None:
    """Its logits are those of timm 0.6.7 for the same checkpoint, given as a local file.

    The expected logits were made once, on a CPU, with timm 0.6.7 and the torch of the file:
    `net = timm.create_model("gluon_xception65").eval()`, `net.load_state_dict(_formula({k: v.shape
    for k, v in net.state_dict().items()}))`, then its logits of the image below. There, and at
    299 x 299, the difference was exactly 0 when this test was written.
    """
    expected = json.loads((DATA / "gluon_xception65.json").read_text())
    image = 2 * np.random.RandomState(96).random_sample((1, 3, 96, 96)) - 1
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in timm.create_model("gluon_xception65").state_dict().items()}
    file = tmp_path / "gluon_xception.pth"
    torch.save(_formula(shapes), file)
    net = build(ALL["gluon_xception65"], IMAGENET, weights=file).net.eval()
    with torch.no_grad():
        logits = net(torch.from_numpy(image.astype(np.float32)))[0]
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-4)

    cfg = timm.get_pretrained_cfg("gluon_xception65")
    assert cfg is not None and isinstance(cfg.url, str)
    assert cfg.url.endswith("/v0.1-weights/gluon_xception-7015a15c.pth")
    prep = preprocessing(ALL["gluon_xception65"], IMAGENET)
    assert (prep.view.crop_pct, prep.mean) == (0.903, (0.485, 0.456, 0.406))
    importlib.reload(xception)  # timm warns of a name that is registered twice


PARAMS = json.loads((DATA / "params69.json").read_text())
"""Of the 69; all of these counts are also those of timm 0.6.7, which the paper used."""
LISTED: dict[str, Member] = {}
"""Every model of the three lists, once a timm name."""
for name in ("imagenet69", "resnet50_regimes", "vit_s_regimes"):
    for member in _members(name):
        LISTED.setdefault(member.timm, member)


def check_equals_timm(member: Member, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits through the published path are those of timm's own pretrained=True, to the bit: of a
    small image where a network takes any size."""
    offline(folder, monkeypatch)
    write_published(folder, member.timm, random_weights(member.timm, **member.kwargs))
    ((_, file, _),) = sources.fetch({member.name: member.timm})
    cfg: Any = timm.get_pretrained_cfg(member.timm)
    side = preprocessing(member, IMAGENET).view.input_size
    if not cfg.fixed_input_size and not cfg.min_input_size:
        side = 112 if "convmixer" in member.timm else 96  # its patches have 7 or 14 pixels
    pixels = torch.rand(1, 3, side, side)
    with CheapInit():  # of what the file replaces
        classifier = build(member, IMAGENET, file).eval()
        theirs = timm.create_model(member.timm, pretrained=True, **member.kwargs)
    expected = logits_of(theirs, (pixels - classifier.mean) / classifier.std)
    shutil.rmtree(folder)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(logits_of(classifier, pixels), expected)
    if member.name in ALL:
        assert sum(p.numel() for p in theirs.parameters()) == PARAMS[member.name]
        check_step(classifier, pixels, expected)


def check_step(classifier: Classifier, pixels: Tensor, expected: Tensor) -> None:
    """Run as by default (folded, channels last), it has the same logits, but for rounding, which
    random weights amplify (to 0.6% of visformer_small's), and an attack a gradient."""
    source = Prepared(classifier, Execution(), pixels)
    with frozen(source) as network:
        x = pixels.clone().requires_grad_()
        logits = network(x)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, expected.argmin(dim=1)), x)
    assert (logits - expected).abs().max() < 1e-2 * expected.abs().max()
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.9


ARCHITECTURES: dict[str, str] = {}
"""The first timm name of each architecture."""
for name in LISTED:
    ARCHITECTURES.setdefault(name.partition(".")[0], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES.values())
def test_every_architecture_equals_timms_and_takes_a_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_equals_timm(LISTED[name], tmp_path, monkeypatch)


def test_other_weights_of_an_architecture_are_timms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the one that timm loads, and images are prepared as by timm."""
    offline(tmp_path, monkeypatch)
    others = LISTED.keys() - ARCHITECTURES.values()
    assert len(others) > 10
    for number, name in enumerate(others):
        file = write_published(tmp_path, name, {"number": torch.tensor(number)})
        ((_, found, _),) = sources.fetch({name: name})
        cfg: Any = timm.get_pretrained_cfg(name)
        assert found == file
        assert load_state_dict_from_hf(cfg.hf_hub_id)["number"] == number
        prep = preprocessing(LISTED[name], IMAGENET)
        assert (prep.mean, prep.std) == (cfg.mean, cfg.std)
        assert prep.view.interpolation == cfg.interpolation


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
