"""Training: it learns, is stored and continues, and its settings have their effect."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import TensorDataset

import experiments.cli.config as configs
from netkin.attacks import PGD, as_attack
from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.model import Model, open_model
from netkin.results import Results
from netkin.store.files import file_sha256
from netkin.store.layout import Store
from netkin.training import checkpoint
from netkin.training.checkpoint import Checkpoint
from netkin.training.fit import Fit, Job, fit
from netkin.training.recipe import Recipe, check, make_optimizer, make_schedule
from netkin.training.train import make_job, pixels_and_labels, train
from netkin.training.weights import Hardware, Training, identity, is_trained
from netkin.zoo.build import Task, build
from netkin.zoo.member import Member

RECIPE = Recipe(epochs=2, batch_size=64, lr=2e-3, warmup_epochs=1, validate_every=1)
TASK = Task("digits", num_classes=10, input_size=32)
MEMBER = Member("small", "test_byobnet")


pytestmark = pytest.mark.usefixtures("one_thread")


def training(store: Path, recipe: Recipe = RECIPE) -> Training:
    images = Digits()
    attack = as_attack(PGD(), "pgd")
    evaluation = Evaluation(images, draw(images, "quick", 5), TASK, attack)
    results = Results(Store(store), evaluation)
    return Training(results, Digits("train", test_size=1000), recipe)


def opened(job: Training, member: Member) -> Model:
    return open_model(member, job.task, job.results.store.weights)


def test_the_hardware_of_a_training(tmp_path: Path) -> None:
    """Weights depend on the precision; their identity names it unless it is the default."""
    default = training(tmp_path)
    half = replace(default, hardware=Hardware("cpu", precision="bf16-mixed"))
    assert identity(half, MEMBER) == identity(default, MEMBER) | {"precision": "bf16-mixed"}
    assert "precision" not in identity(replace(default, hardware=Hardware("cpu")), MEMBER)
    assert make_job(half, MEMBER, None).hardware.precision == "bf16-mixed"


@pytest.mark.slow
def test_it_learns_is_reproducible_and_is_stored(tmp_path: Path) -> None:
    epochs = []
    results = []
    for run in ("a", "b"):
        job = training(tmp_path / run)
        assert not is_trained(job, MEMBER)
        results.append(train(job, MEMBER, epochs.append))
        assert is_trained(job, MEMBER)
    assert epochs == [1, 1, 1, 1]
    curves = results[0].curves
    assert [row["epoch"] for row in curves] == [1, 2]
    assert curves[1]["train_loss"] < curves[0]["train_loss"]
    assert curves[1]["train_accuracy"] > 0.15  # of ten classes, after 24 steps
    assert {"train_loss", "lr", "grad_norm", "images_per_second", "seconds"} <= curves[0].keys()
    assert results[0].test_accuracy == curves[1]["test_accuracy"]
    files = [tmp_path / run / "weights" / "digits" / "small.safetensors" for run in ("a", "b")]
    assert file_sha256(files[0]) == file_sha256(files[1])
    notes = json.loads(files[0].with_suffix(".json").read_text())
    assert notes["made_of"]["recipe"]["epochs"] == 2
    assert notes["test_accuracy"] == results[0].test_accuracy
    assert files[0].with_suffix(".curves.csv").read_text().startswith("epoch,lr,train_loss")
    for change, message in (
        ({"epochs": 3}, r"recipe\.epochs = 2, now it is 3"),
        ({"augmentation": {"hflip": 0.5}}, r"recipe\.augmentation\.hflip = nothing, now it is 0.5"),
        ({"seed": 1}, r"recipe\.seed = 0, now it is 1"),
    ):
        with pytest.raises(UserError, match=message):
            is_trained(training(tmp_path / "a", replace(RECIPE, **change)), MEMBER)
    with pytest.raises(UserError, match=r"kwargs\.num_classes = nothing"):
        is_trained(training(tmp_path / "a"), replace(MEMBER, kwargs={"num_classes": 10}))
    assert is_trained(training(tmp_path / "a", replace(RECIPE, validate_every=2)), MEMBER)
    # The notes are written last: without them the member is not complete.
    files[0].with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match=r"small\.json is damaged"):
        is_trained(training(tmp_path / "a"), MEMBER)
    files[0].with_suffix(".json").unlink()
    assert not is_trained(training(tmp_path / "a"), MEMBER)


def job_of(recipe: Recipe, folder: Path, images: int = 97, **further: Any) -> Job:
    """A training on some of the digits, tested on one image a class."""
    digits = Digits()
    subset = draw(digits, "quick", 1)
    pixels = views.load(digits, subset.positions, views.View(32))
    test = TensorDataset(pixels, torch.tensor(subset.labels))
    train_images = Digits("train", test_size=1797 - images)
    return Job({"name": "small"}, recipe, train_images, test, folder, Hardware("cpu"), **further)


def rates(recipe: Recipe, updates: int = 10) -> list[float]:
    """The learning rate at each update."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr())
    schedule = make_schedule(optimizer, recipe, updates)
    lrs = []
    for update in range(recipe.epochs * updates):
        if recipe.step_on_epochs and update % updates == 0:
            schedule.step(update // updates)
        elif not recipe.step_on_epochs:
            schedule.step_update(update)
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def test_a_schedule_warms_up_from_a_hundredth_of_its_peak() -> None:
    recipe = replace(RECIPE, epochs=4)
    lrs = rates(recipe)
    start = recipe.lr / 100
    np.testing.assert_allclose(lrs[:10:5], [start, start + 0.5 * (recipe.lr - start)])
    # After 10 steps of linear warm-up, a cosine over all 40: timm counts the warm-up in.
    cosine = recipe.lr * 0.5 * (1 + np.cos(np.pi * np.arange(10, 40) / 40))
    np.testing.assert_allclose(lrs[10:], cosine, rtol=1e-6)


def composed(name: str) -> Recipe:
    config = configs.composed("train", [f"recipe={name}"])
    return Recipe(**{**OmegaConf.to_container(config.recipe), "seed": 0})  # type: ignore


def test_schedule_of_deit() -> None:
    """With DeiT's 1,024 images a step: 1e-6 up to 1e-3 in 5 epochs, a cosine down to 1e-5."""
    recipe = replace(composed("deit"), batch_size=1024)
    assert recipe.peak_lr() == pytest.approx(1e-3)
    lrs = rates(recipe, updates=2)[::2]
    for epoch in range(5):
        assert lrs[epoch] == pytest.approx(1e-6 + epoch * (1e-3 - 1e-6) / 5)
    for epoch in (5, 100, 299):
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * epoch / 300))
        assert lrs[epoch] == pytest.approx(cosine)


def test_schedule_of_resnet50() -> None:
    lrs = rates(composed("resnet50"), updates=1)
    assert lrs[0] == lrs[29] == 0.1
    assert lrs[30] == lrs[59] == pytest.approx(0.01)
    assert lrs[60] == lrs[89] == pytest.approx(0.001)


@pytest.mark.parametrize("name", ["test_byobnet", "test_vit"])
def test_weight_decay_spares_norms_biases_and_tokens(name: str) -> None:
    net = build(Member("small", name), TASK).net
    optimizer = make_optimizer(net, replace(RECIPE, weight_decay=0.1), 1e-3)
    decays = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name, parameter in net.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert len(decays) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        token = name in ("cls_token", "pos_embed", "reg_token", "dist_token")
        assert decays[name] == (0.1 if parameter.ndim > 1 and not token else 0.0), name


def small_fit(recipe: Recipe, folder: Path) -> Checkpoint:
    return fit(build(MEMBER, TASK), job_of(recipe, folder))


def test_divergence_names_epoch_step_and_checkpoint(tmp_path: Path) -> None:
    wild = replace(RECIPE, epochs=5, batch_size=32, lr=1e30, warmup_epochs=0, clip_grad=1e9)
    with pytest.raises(UserError, match=r"training of small diverged: loss nan in epoch \d, step"):
        small_fit(wild, tmp_path)
    # One good epoch, then a weight that is NaN: the good one is kept, and can be read.
    job = job_of(replace(RECIPE, batch_size=32), tmp_path / "late")
    classifier = build(MEMBER, TASK)

    def break_it(row: Mapping[str, float]) -> None:
        with torch.no_grad():
            next(classifier.parameters()).fill_(float("nan"))

    with pytest.raises(UserError, match=r"in epoch 2, step 1; epoch 1 is kept in .*last\.safet"):
        fit(classifier, job, break_it)
    assert checkpoint.load(job.last).epoch == 1


def test_a_batch_larger_than_the_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size=98 is larger than the training set \(97 im"):
        small_fit(replace(RECIPE, batch_size=98), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 33, "mixup": 0.8}, "batch_size=33 must be even"),
        ({"keep": "ema"}, "needs ema_decay"),
        ({"keep": "first"}, "must be last, best or ema"),
        ({"lr": 0}, "^lr must be above 0"),
        ({"erasing": 2}, r"^erasing must be in \[0, 1\]"),
        ({"ema_decay": 1.5}, r"^ema_decay must be in \(0, 1\)"),
        ({"seed": -1}, "^seed must be a whole number"),
        ({"adversarial": {"epsilon": 0.1}}, "^adversarial takes eps, step_size.*got epsilon"),
        ({"adversarial": {"steps": 0}}, "^steps must be a whole number of 1 or more"),
        ({"adversarial": {"steps": 2}, "mixup": 0.8}, "takes no mixup or cutmix"),
    ],
)
def test_recipes_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    "change", [{"sched": "cosin"}, {"opt": "adamww"}, {"opt_args": {"foo": 1}}], ids=str
)
def test_what_timm_does_not_make_of_a_recipe(change: dict[str, Any]) -> None:
    check(RECIPE)
    with pytest.raises(UserError, match=f"^{next(iter(change)).partition('_')[0]}="):
        check(replace(RECIPE, **change))


def test_an_identity_names_what_differs_from_the_defaults() -> None:
    assert "mixup" not in RECIPE.identity()
    assert replace(RECIPE, mixup=0.8).identity()["mixup"] == 0.8
    assert replace(RECIPE, validate_every=3).identity() == RECIPE.identity()
    best = replace(RECIPE, keep="best")  # which epochs are looked at chooses the weights
    assert best.identity() != replace(best, validate_every=3).identity()


def test_muon_leaves_large_matrices_to_adamw() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Linear(300, 40))
    optimizer = make_optimizer(net, replace(RECIPE, opt="muon"), 0.02)
    make_schedule(optimizer, RECIPE, 10)
    net(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    muon = {name: optimizer.state[weights]["use_muon"] for name, weights in net.named_parameters()}
    assert muon == {"0.weight": False, "0.bias": False, "1.weight": True, "1.bias": False}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


FULL = replace(
    RECIPE,
    epochs=3,
    batch_size=24,
    augmentation={"auto_augment": "rand-m9-mstd0.5-inc1", "hflip": 0.5},
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    label_smoothing=0.1,
    model_args={"drop_path_rate": 0.2},
    ema_decay=0.9,
    accumulate=2,
    repeats=3,
)


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, epochs=3, batch_size=32, opt="muon", opt_args={"nesterov": True}),
        FULL,
        replace(FULL, opt="momentum", lr=0.01, sched="step", step_on_epochs=True, keep="ema"),
        replace(RECIPE, epochs=3, adversarial={"eps": "48/255", "step_size": "24/255", "steps": 2}),
    ],
    ids=["digits", "deit", "momentum", "adversarial"],
)
def test_a_stopped_training_continues_to_the_same_bytes(tmp_path: Path, recipe: Recipe) -> None:
    """The same bytes: weights, moving average, optimiser and curves."""
    ends = []
    for stops in ((), (1, 2)):
        job = job_of(recipe, tmp_path / str(len(ends)), images=200)
        for stop in (*stops, None):

            def tell(row: Mapping[str, float], stop: int | None = stop) -> None:
                if row["epoch"] == stop:
                    raise Stopped

            classifier = build(Member("small", "test_vit", recipe.model_args), TASK)
            if stop is None:
                ends.append(fit(classifier, job, tell))
            else:
                with pytest.raises(Stopped):
                    fit(classifier, job, tell)
                assert checkpoint.load(job.last).epoch == stop
    single = ends[0]
    assert len(single.curves) == 3
    for end in ends[1:]:
        assert end.model.keys() == single.model.keys() and end.ema.keys() == single.ema.keys()
        for key, value in single.model.items():
            assert torch.equal(end.model[key], value), key
        for key, value in single.ema.items():
            assert torch.equal(end.ema[key], value), key
        for index, state in single.optimizer["state"].items():
            for key, value in state.items():
                other = end.optimizer["state"][index][key]
                assert torch.equal(other, value) if torch.is_tensor(value) else other == value
        for row, other in zip(single.curves, end.curves, strict=True):
            timed = {"seconds", "images_per_second"}
            assert {k: v for k, v in row.items() if k not in timed} == {
                k: v for k, v in other.items() if k not in timed
            }


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_images_a_step(tmp_path: Path) -> None:
    """DDP over two CPU processes, with augmentation; without mixing, which pairs within a process,
    and with layer norm, since batch norm looks at each process's images alone."""
    member = Member("small", "test_vit", {"num_heads": 4})
    ends = []
    for devices in (1, 2):
        recipe = replace(RECIPE, batch_size=32 // devices, augmentation={"hflip": 0.5})
        job = job_of(recipe, tmp_path / str(devices), images=128)
        job = replace(job, hardware=Hardware("cpu", devices))
        ends.append(fit(build(member, TASK), job))
    one, two = ends
    for key, value in one.model.items():
        torch.testing.assert_close(two.model[key], value, atol=2e-4, rtol=1e-3, msg=key)
    for row, other in zip(one.curves, two.curves, strict=True):
        assert other["train_loss"] == pytest.approx(row["train_loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "best", "ema"])
def test_the_weights_that_the_recipe_keeps_are_the_member(tmp_path: Path, keep: str) -> None:
    """Their accuracy is the one that is noted, and nothing else is left."""
    job = training(tmp_path, replace(RECIPE, ema_decay=0.5, keep=keep))
    result = train(job, MEMBER, lambda n: None)
    assert not job.results.store.training("digits", "small").exists()
    rows = result.curves
    expected = {
        "last": rows[-1]["test_accuracy"],
        "best": max(row["test_accuracy"] for row in rows),
        "ema": rows[-1].get("test_accuracy_ema"),
    }[keep]
    assert result.test_accuracy == expected
    test = pixels_and_labels(job, MEMBER)
    classifier = opened(job, MEMBER).build().eval()
    with torch.no_grad():
        predicted = classifier(test.tensors[0].float() / 255).argmax(1)
    accuracy = (predicted == test.tensors[1]).float().mean().item()
    assert accuracy == pytest.approx(expected, abs=1.5 / len(test))


def test_adversarial_training_trains_on_what_the_attack_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model sees each batch within eps of the image, at a higher loss, in train mode."""
    attack = {"eps": "16/255", "step_size": "6/255", "steps": 4}
    net = build(MEMBER, TASK)
    job = job_of(replace(RECIPE, epochs=1, adversarial=attack), tmp_path)
    module = Fit(net, job)
    monkeypatch.setattr(Fit, "epoch", 0)
    monkeypatch.setattr(Fit, "trainer", SimpleNamespace(global_rank=0))
    digits = Digits()
    subset = draw(digits, "quick", 2)
    clean = views.load(digits, subset.positions, views.View(32)).float() / 255
    labels = torch.tensor(subset.labels)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    changed = module._attacked(clean, labels, 0)
    assert net.training and not changed.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert 0 < (changed - clean).abs().max() <= 16 / 255 + 1e-6
    loss = torch.nn.functional.cross_entropy
    net.eval()
    assert loss(net(changed), labels) > loss(net(clean), labels)
    assert torch.equal(changed, module._attacked(clean, labels, 0))
    assert not torch.equal(changed, module._attacked(clean, labels, 1))


def test_a_checkpoint_of_another_training(tmp_path: Path) -> None:
    job = job_of(replace(RECIPE, epochs=1), tmp_path)
    fit(build(MEMBER, TASK), job)
    with pytest.raises(UserError, match=r"trained with name = small, now it is other: continue"):
        fit(build(MEMBER, TASK), replace(job, identity={"name": "other"}))
    job.last.write_bytes(job.last.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not a training checkpoint, or is damaged"):
        fit(build(MEMBER, TASK), job)


def test_other_classes_in_training(tmp_path: Path) -> None:
    class Other(Digits):
        classes = ("cat", "dog")

    job = training(tmp_path)
    with pytest.raises(UserError, match=r"training images have classes \['cat', 'dog'\]"):
        Training(job.results, Other("train"), RECIPE)
