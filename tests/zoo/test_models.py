"""The lists of models in conf/model, and gluon_xception65, which the zoo adds to timm's."""

import csv
import importlib
import json
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
from torch import Tensor

from netkin.zoo import xception
from netkin.zoo.build import Task, build, preprocessing
from netkin.zoo.member import Member, parse_members

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
def test_parameters_of_the_69() -> None:
    """Classes and parameters of each. All 69 counts are also those of timm 0.6.7, which the paper
    used."""
    expected = json.loads((DATA / "params69.json").read_text())
    counts = {}
    for name, member in ALL.items():
        with torch.device("meta"):
            net = timm.create_model(member.timm, **member.kwargs)
        assert net.num_classes == 1000
        counts[name] = sum(p.numel() for p in net.parameters())
    assert counts == expected


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
