"""netkin.compare: the command's scores, its errors, and what it leaves as it was."""

import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import netkin
from netkin.attacks import PGD, Clean, PatchFool
from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.errors import UserError
from netkin.zoo import build as zoo
from netkin.zoo import instances
from netkin.zoo.member import parse_members
from netkin.zoo.task import Task
from tests.conftest import ROOT

FIT = ({"img_size": 32, "patch_size": 8}, {"img_size": 32}, {})
"""Of conf/dataset/digits.yaml."""
VIT_TI = {"timm": "vit_tiny_patch16_224", "kwargs": {"embed_dim": 64, "depth": 4, "num_heads": 4}}
"""Of conf/model/digits.yaml, less its name and family."""


@pytest.fixture(autouse=True)
def one_thread_only(one_thread: None) -> None:
    """As in the command: a second thread changes the last bits of a float."""


@pytest.fixture(scope="module")
def scans() -> tuple[Tensor, Tensor]:
    """200 digits, [200, 3, 16, 16] in [0, 1], and their labels."""
    images = Digits()
    pixels = [np.asarray(images.load(i).resize((16, 16))) for i in range(200)]
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    return stacked, torch.tensor(images.labels[:200])


@pytest.fixture(scope="module")
def nets(scans: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    """Two networks that know these digits by heart."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 10))
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8 * 7 * 7, 10),
    )
    for net in (mlp, cnn):
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(scans[0]), scans[1]).backward()
            optimizer.step()
    return {"mlp": mlp, "cnn": cnn}


def quick(models: Any, images: Any, labels: Any = None, **arguments: Any) -> "netkin.Result":
    """A comparison of seconds."""
    return netkin.compare(
        models, images, labels, **{"eps": "48/255", "steps": 3, "bootstrap": 20, **arguments}
    )


def test_scores_are_the_commands(small_run: Path, tmp_path: Path) -> None:
    """The command's members and images, as modules and arrays, give its tables byte for byte."""
    manifest = json.loads(next((small_run / "store").glob("digits/*/manifest.json")).read_text())
    images = Digits()
    place = {image: i for i, image in enumerate(images.ids)}
    pixels = np.stack([np.asarray(images.load(place[i])) for i in manifest["ids"]])
    task = Task("digits", 10, input_size=32, fit=FIT)
    known = {"test_byobnet": {"timm": "test_byobnet"}, "vit_ti": VIT_TI}
    models = {}
    for member in parse_members(list(known), known):
        weights = small_run / "store" / "weights" / "digits" / f"{member.name}.safetensors"
        net = zoo.build(member, task, weights).net
        models[member.name] = netkin.Model(net, mean=0.5, std=0.5, family=family_of(small_run, member.name))
    result = netkin.compare(
        models,
        (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32),
        manifest["labels"],
        eps="48/255",
        step_size="6/255",
        steps=8,
        ids=manifest["ids"],
    )
    result.save(tmp_path)
    for table in ("similarity", "pairs", "models", "families"):
        ours, theirs = tmp_path / f"{table}.csv", small_run / "first" / f"{table}.csv"
        assert ours.read_bytes() == theirs.read_bytes(), table
    assert result.names == ("test_byobnet", "vit_ti")
    assert result.scores[0, 1] == result.pairs["score"][0]


def family_of(run: Path, model: str) -> str:
    """A model's family in a run's table."""
    return pl.read_csv(run / "first" / "models.csv").filter(model=model)["family"][0]
