"""Train a member and keep its weights."""

import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.utils.data import TensorDataset

from netkin.jobs import Advance
from netkin.store import write, write_json, write_tensors
from netkin.training.fit import fit
from netkin.training.weights import Training, made_of
from netkin.zoo.build import build
from netkin.zoo.member import Member


def train(training: Training, member: Member, advance: Advance) -> dict[str, Any]:
    """Train a member and keep its weights; returns curves, test accuracy and seconds.

    Beside the weights lie `<member>.json` (what they are made of, and the accuracy) and
    `<member>.curves.csv`. The JSON is written last: with it, the member is complete.
    """
    start = time.perf_counter()
    setting = training.setting
    file = setting.weights(member)
    assert file is not None
    classifier = build(member, setting.task, seed=training.recipe.seed)
    view = setting.view(member)
    seen = torch.cat([setting.pixels(view, shard) for shard in range(len(setting.shards))])
    test = TensorDataset(seen, setting.labels)
    curves = fit(classifier, training.recipe, training.images, test, setting.accelerator, advance)
    seconds = time.perf_counter() - start
    accuracies = [row["test_accuracy"] for row in curves if "test_accuracy" in row]
    accuracy = accuracies[-1] if accuracies else None
    write_tensors(file, classifier.net.state_dict())
    _write_curves(file, curves)
    write_json(
        file.with_suffix(".json"),
        {"made_of": made_of(training, member), "test_accuracy": accuracy, "seconds": seconds},
    )
    return {"curves": curves, "test_accuracy": accuracy, "seconds": seconds}


def _write_curves(file: Path, curves: list[dict[str, float]]) -> None:
    table = pl.DataFrame(curves, infer_schema_length=None)
    write(file.with_suffix(".curves.csv"), table.write_csv)
