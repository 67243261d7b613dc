"""Shards are written beside the work that makes the next one, and nothing is left of a failure."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from netkin.attacks import PGD, as_attack
from netkin.data import views
from netkin.data.views import View
from netkin.errors import StoreError
from netkin.passes import Item, craft
from netkin.passes.predict import predict
from netkin.results import CLEAN
from netkin.runner import Runner
from netkin.store.files import write_tensors
from netkin.store.lease import holders
from tests.passes.random_images import RandomImages, evaluation, with_random_weights

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = 6
"""Three shards of two."""


def test_a_write_that_fails_ends_crafting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards before it are stored, all leases are released, and crafting goes on from there."""
    model = with_random_weights("test_efficientnet")
    pixels = views.load(RandomImages(IMAGES, 32), range(IMAGES), View(32)).contiguous()
    with torch.no_grad():
        labels = model(pixels.float() / 255).argmax(dim=1).tolist()
    results, _, target, _ = evaluation(tmp_path, model, RandomImages(IMAGES, 32, labels), 1)
    attack = as_attack(PGD("8/255", "2/255", 2), "pgd", {"steps": 2})
    results, runner = results.under(attack=attack, shard_size=2), Runner("cpu", 1)
    predict(results, runner, Item("t", target, (CLEAN,)), lambda _n: None)
    item, written = Item("t", target, tuple(results.missing_shards(target))), list[Path]()
    assert len(item.todo) == 3

    def full(file: Path, tensors: dict) -> None:
        if len(written) == 1:
            raise StoreError("full")
        written.append(file)
        write_tensors(file, tensors)

    monkeypatch.setattr(craft, "write_tensors", full)
    with pytest.raises(StoreError, match="full"):
        craft.craft(results, runner, item, lambda _n: None)
    assert results.missing_shards(target) == [1, 2] and not holders(results.store.root)
    monkeypatch.undo()
    counted: list[int] = []
    found = craft.craft(results, runner, replace(item, todo=(0, 1, 2)), counted.append)
    assert found.shards == 2 and sum(counted) == int(results.correct(target).sum())
    assert not results.missing_shards(target) and not holders(results.store.root)
