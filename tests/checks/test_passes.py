"""Predictions do not depend on the settings of the attack, nor on how models are executed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.checks.passes import RandomImages, evaluation
from experiments.checks.speed import with_random_weights
from netkin.data import views
from netkin.data.views import View
from netkin.store.files import read_tensors, write_tensors
from netkin.store.layout import shard_path
from netkin.transfer.clean import clean_pass
from netkin.transfer.stored import Target, logits_path, outcome_store
from netkin.transfer.transfer import transfer
from netkin.transfer.tune import AUTO, Choice
from netkin.zoo.build import Classifier
from netkin.zoo.execution import Execution

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 32, 4


@pytest.fixture(scope="module")
def model() -> Classifier:
    return with_random_weights("test_efficientnet", "cpu")[0]


def seen(folder: Path, model: Classifier, choice: Choice) -> tuple[Tensor, list[int], Tensor]:
    """Clean logits, predictions on a source's images, and these: other noise than the clean."""
    pixels = views.load(RandomImages(48, SIZE), range(48), View(SIZE)).contiguous()
    with torch.no_grad():
        labels = model(pixels[:24].float() / 255).argmax(dim=1).tolist()
    folder.mkdir(exist_ok=True)
    setting, target, sources = evaluation(folder, model, RandomImages(24, SIZE, labels), BATCH)
    setting = replace(setting, choice=choice)
    clean_pass(setting, target, lambda _n: None)
    logits = read_tensors(logits_path(setting, target))["logits"]
    entry = setting.adversarial_entry(sources[0]).claim()
    for i, positions in enumerate(setting.shards):
        index = torch.tensor(positions)
        write_tensors(shard_path(entry, i), {"images": pixels[24 + index], "index": index})
    transfer(setting, Target(target, (sources[0],)), lambda _n: None)
    rows = outcome_store(setting).read(sources[0].name, target.name)
    return logits, rows["prediction"].to_list(), pixels


def test_nothing_fused_is_the_model_to_the_bit(tmp_path: Path, model: Classifier) -> None:
    plain = Execution(fuse=False, memory_format="contiguous")
    logits, predictions, pixels = seen(tmp_path, model, Choice(plain))
    with torch.no_grad():
        batches = [model(part.float() / 255) for part in pixels.split(BATCH)]
    wanted = torch.cat(batches)
    assert torch.equal(logits, wanted[:24])
    assert predictions == wanted[24:].argmax(dim=1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        Choice(),
        Choice(Execution("bf16-mixed")),
        Choice(Execution(compile=True)),
        Choice(time_formats=True, batch_size=AUTO),
    ],
    ids=["defaults", "bf16", "compiled", "auto"],
)
def test_models_are_asked_in_float32_however_they_are_attacked(
    tmp_path: Path, model: Classifier, choice: Choice
) -> None:
    logits, predictions, pixels = seen(tmp_path / "a", model, choice)
    with torch.no_grad():
        wanted = model(pixels.float() / 255)
    assert (logits - wanted[:24]).abs().max() < 1e-5 * wanted.abs().max()
    assert predictions == wanted[24:].argmax(dim=1).tolist()
    again = seen(tmp_path / "b", model, Choice())[0]
    assert torch.equal(logits, again)
