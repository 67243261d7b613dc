"""Predictions do not depend on the settings of the attack, nor on how models are executed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from netkin import runner as runner_module
from netkin.data import views
from netkin.data.views import View
from netkin.passes import Item
from netkin.passes.predict import predict
from netkin.passes.transfer import transfer
from netkin.results import CLEAN
from netkin.store import inventory
from netkin.store.files import file_sha256, write_tensors
from netkin.store.layout import shard_file
from netkin.zoo.build import Classifier
from netkin.zoo.execution import DEFAULT_PRECISION, Execution, Prepared, prepare
from tests.passes.random_images import RandomImages, evaluation, with_random_weights

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 32, 4


@pytest.fixture(scope="module")
def model() -> Classifier:
    return with_random_weights("test_efficientnet")


def seen(
    folder: Path, model: Classifier, execution: Execution, precision: str = DEFAULT_PRECISION
) -> tuple[Tensor, list[int], Tensor]:
    """Clean logits, predictions on a source's images, and these: other noise than the clean."""
    pixels = views.load(RandomImages(48, SIZE), range(48), View(SIZE)).contiguous()
    with torch.no_grad():
        labels = model(pixels[:24].float() / 255).argmax(dim=1).tolist()
    folder.mkdir(exist_ok=True)
    images = RandomImages(24, SIZE, labels)
    results, runner, target, (source, *_) = evaluation(folder, model, images, BATCH)
    results = results.under(target_precision=precision)
    runner = replace(runner, execution=execution)
    if not results.has(target):
        predict(results, runner, Item("t", target, (CLEAN,)), lambda _n: None)
    shards = results.adversarial_folder(source).claim()
    for i, positions in enumerate(results.evaluation.shards):
        index = torch.tensor(positions)
        write_tensors(shard_file(shards, i), {"images": pixels[24 + index], "index": index})
    transfer(results, runner, Item("t", target, (source,)), lambda _n: None)
    rows = results.outcome_store.read(target.name, [source.name])
    return results.logits(target), rows["prediction"].to_list(), pixels


def test_nothing_fused_is_the_model_to_the_bit(tmp_path: Path, model: Classifier) -> None:
    plain = Execution(fuse=False, memory_format="contiguous")
    logits, predictions, pixels = seen(tmp_path, model, plain)
    with torch.no_grad():
        batches = [model(part.float() / 255) for part in pixels.split(BATCH)]
    wanted = torch.cat(batches)
    assert torch.equal(logits, wanted[:24])
    assert predictions == wanted[24:].argmax(dim=1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "execution",
    [
        Execution(),
        Execution("bf16-mixed"),
        Execution(compile=True),
    ],
    ids=["defaults", "bf16", "compiled"],
)
def test_models_are_asked_in_float32_however_they_are_attacked(
    tmp_path: Path, model: Classifier, execution: Execution
) -> None:
    logits, predictions, pixels = seen(tmp_path / "a", model, execution)
    with torch.no_grad():
        wanted = model(pixels.float() / 255)
    assert (logits - wanted[:24]).abs().max() < 1e-5 * wanted.abs().max()
    assert predictions == wanted[24:].argmax(dim=1).tolist()
    again = seen(tmp_path / "b", model, Execution())[0]
    assert torch.equal(logits, again)


def test_targets_in_another_precision_are_stored_side_by_side(
    tmp_path: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only predictions on adversarial images are in it; those in float32 keep their bytes."""
    used: list[str] = []

    def noted(model: Classifier, execution: Execution, images: Tensor) -> Prepared:
        used.append(execution.precision)
        return prepare(model, execution, images)

    monkeypatch.setattr(runner_module, "prepare", noted)
    logits, exact, _ = seen(tmp_path, model, Execution())
    assert used == ["32-true"] * 2
    (attack,) = tmp_path.glob("store/random/*/clean-*")
    before = {f: file_sha256(f) for f in tmp_path.rglob("store/random/**/*") if f.is_file()}
    identity = json.loads((attack / "outcomes" / "identity.json").read_text())
    assert identity["transfer"] == {"interpolation": "bilinear"}
    same, rounded, pixels = seen(tmp_path, model, Execution(), "bf16-mixed")
    assert used == ["32-true"] * 2 + ["bf16-mixed"]
    assert torch.equal(same, logits) and len(rounded) == len(exact) == 24
    half = prepare(model, Execution("bf16-mixed"), pixels[:2].float() / 255)
    with torch.no_grad():
        parts = [half(part.float() / 255) for part in pixels[24:].split(BATCH)]
    assert rounded == torch.cat(parts).argmax(dim=1).tolist()
    assert {f: file_sha256(f) for f in before} == before
    identity = json.loads((attack / "outcomes-bf16-mixed" / "identity.json").read_text())
    assert identity["transfer"] == {"interpolation": "bilinear", "precision": "bf16-mixed"}
    assert seen(tmp_path, model, Execution())[1] == exact

    store = tmp_path / "store"
    found = [part.path.parent.name for part in inventory.parts(store) if part.kind == "outcomes"]
    assert sorted(found) == ["outcomes", "outcomes-bf16-mixed"]
    assert not inventory.damage(store, lambda _n: None)
