"""Training on real digits: it learns, it is reproducible, and it fails in one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from netkin.attacks import PGD
from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.errors import UserError
from netkin.store import Store, file_sha256
from netkin.training.fit import Fit, fit
from netkin.training.recipe import Recipe
from netkin.training.train import train
from netkin.training.weights import Training, is_trained
from netkin.transfer.setting import AttackSpec, Setting
from netkin.zoo.build import Task, build
from netkin.zoo.member import Member

RECIPE = Recipe(epochs=2, batch_size=64, lr=2e-3, warmup_epochs=1, validate_every=1)
TASK = Task("digits", num_classes=10, input_size=32)
MEMBER = Member("small", "test_byobnet")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def training(store: Path, recipe: Recipe = RECIPE) -> Training:
    images = Digits()
    attack = AttackSpec("pgd", PGD(), {})
    setting = Setting(images, draw(images, "quick", 5), TASK, attack, Store(store))
    return Training(setting, Digits("train", test_size=1000), recipe)


def test_it_learns_is_reproducible_and_is_kept(tmp_path: Path) -> None:
    epochs = []
    results = []
    for run in ("a", "b"):
        job = training(tmp_path / run)
        assert not is_trained(job, MEMBER)
        results.append(train(job, MEMBER, epochs.append))
        assert is_trained(job, MEMBER)
    assert epochs == [1, 1, 1, 1]
    curves = results[0]["curves"]
    assert [row["epoch"] for row in curves] == [1, 2]
    assert curves[1]["train_loss"] < curves[0]["train_loss"]
    assert curves[1]["train_accuracy"] > 0.15  # of ten classes, after 24 steps
    assert results[0]["test_accuracy"] == curves[1]["test_accuracy"]
    files = [tmp_path / run / "weights" / "digits" / "small.safetensors" for run in ("a", "b")]
    assert file_sha256(files[0]) == file_sha256(files[1])
    notes = json.loads(files[0].with_suffix(".json").read_text())
    assert notes["made_of"]["recipe"]["epochs"] == 2
    assert notes["test_accuracy"] == results[0]["test_accuracy"]
    assert files[0].with_suffix(".curves.csv").read_text().startswith("epoch,lr,train_loss")


def test_the_kept_weights_are_the_trained_ones(tmp_path: Path) -> None:
    job = training(tmp_path)
    result = train(job, MEMBER, lambda n: None)
    classifier = job.setting.build(MEMBER).eval()
    setting = job.setting
    seen = [setting.pixels(setting.view(MEMBER), i) for i in range(len(setting.shards))]
    with torch.no_grad():
        predictions = classifier(torch.cat(seen).float() / 255).argmax(1)
    accuracy = (predictions == job.setting.labels).float().mean().item()
    assert accuracy == pytest.approx(result["test_accuracy"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 3}, r"recipe\.epochs = 2, now it is 3"),
        ({"augmentation": {"hflip": 0.5}}, r"recipe\.augmentation\.hflip = nothing, now it is 0.5"),
        ({"seed": 1}, r"recipe\.seed = 0, now it is 1"),
    ],
)
def test_weights_of_another_recipe_are_not_used(tmp_path: Path, change: dict, said: str) -> None:
    train(training(tmp_path), MEMBER, lambda n: None)
    with pytest.raises(UserError, match=said):
        is_trained(training(tmp_path, replace(RECIPE, **change)), MEMBER)
    with pytest.raises(UserError, match=r"kwargs\.num_classes = nothing"):
        is_trained(training(tmp_path), Member("small", "test_byobnet", {"num_classes": 10}))
    assert is_trained(training(tmp_path, replace(RECIPE, validate_every=2)), MEMBER)


def test_weights_without_their_notes_are_trained_again(tmp_path: Path) -> None:
    """The notes are written last: without them the member is not complete."""
    job = training(tmp_path)
    train(job, MEMBER, lambda n: None)
    notes = tmp_path / "weights" / "digits" / "small.json"
    notes.unlink()
    assert not is_trained(job, MEMBER)
    notes.write_text("{")
    with pytest.raises(UserError, match=r"small\.json is damaged"):
        is_trained(job, MEMBER)


def test_schedule_and_weight_decay() -> None:
    classifier = build(MEMBER, TASK)
    steps, recipe = 10, replace(RECIPE, epochs=4, weight_decay=0.1)
    module = Fit(classifier, recipe, 10, steps, lambda n: None)
    optimizer = module.configure_optimizers()
    assert module.schedule is not None
    rates = []
    for step in range(40):
        module.schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(recipe.lr / 100)
    # After 10 steps of linear warm-up, a cosine over all 40: timm counts the warm-up in.
    assert rates[5] == pytest.approx(recipe.lr / 100 + 0.5 * (recipe.lr - recipe.lr / 100))
    cosine = recipe.lr * 0.5 * (1 + np.cos(np.pi * np.arange(10, 40) / 40))
    np.testing.assert_allclose(rates[10:], cosine, rtol=1e-6)
    decays = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name, parameter in classifier.net.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert len(decays) == len(list(classifier.net.parameters()))
    for name, parameter in classifier.net.named_parameters():
        assert decays[name] == (0.1 if parameter.ndim > 1 else 0.0), name


def small_fit(recipe: Recipe) -> list[dict[str, float]]:
    digits = Digits()
    subset = draw(digits, "quick", 1)
    pixels = views.load(digits, subset.positions, views.View(32))
    test = TensorDataset(pixels, torch.tensor(subset.labels))
    images = Digits("train", test_size=1700)
    return fit(build(MEMBER, TASK), recipe, images, test, "cpu", lambda n: None)


def test_divergence_names_epoch_and_step() -> None:
    with pytest.raises(UserError, match=r"training of small diverged: loss nan in epoch \d, step"):
        small_fit(replace(RECIPE, epochs=5, batch_size=32, lr=1e30, warmup_epochs=0, clip_grad=1e9))


def test_a_batch_larger_than_the_images() -> None:
    with pytest.raises(UserError, match=r"batch_size=98 is larger than the training set \(97 im"):
        small_fit(replace(RECIPE, batch_size=98))


def test_other_classes_in_training(tmp_path: Path) -> None:
    class Other(Digits):
        classes = property(lambda self: ["cat", "dog"])  # type: ignore[assignment]

    job = training(tmp_path)
    with pytest.raises(UserError, match=r"training images have classes \['cat', 'dog'\]"):
        Training(job.setting, Other("train"), RECIPE)
