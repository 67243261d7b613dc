"""Attacks of other packages: parity, their random numbers, and mistakes. (torchattacks is in
tests/real/packages.txt: its own dependencies pin packages that others need newer.)"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from netkin.attacks import PGD, Foolbox, Foreign, Torchattacks, as_attack
from netkin.attacks.base import frozen
from netkin.errors import UserError
from tests.conftest import run_here

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # foolbox imports SciPy by old names
]
KEYS = [f"image {i}" for i in range(4)]
MODULE = """
import functools
import torch


class Shift:
    def __init__(self, model, eps, by=0.5):
        self.model, self.eps, self.by = model, eps, by

    def __call__(self, images, labels):
        assert not self.model.training
        moved = images + self.by * self.eps * torch.randn_like(images).sign()
        return moved.clamp(0, 1)


partly = functools.partial(Shift, by=1)


def bad(model):
    return lambda images, labels: images[:1]
"""


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(4, 3, 32, 32), torch.arange(4)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_paper.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "a_paper"


def made(attack: Any, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with frozen(model):
        return attack.perturb(model, *batch, KEYS)


START_OFF: dict[str, Any] = {"steps": 5, "random_start": False}


def test_pgd_of_foolbox_is_ours(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    ours = PGD("16/255", "4/255", **START_OFF)
    theirs = Foolbox("LinfPGD", "16/255", {"abs_stepsize": "4/255", **START_OFF})
    assert torch.equal(made(ours, model, batch), made(theirs, model, batch))


def test_pgd_of_torchattacks_is_ours(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("torchattacks")
    ours = PGD("16/255", "4/255", **START_OFF)
    theirs = Torchattacks("PGD", "16/255", {"alpha": "4/255", **START_OFF})
    assert torch.equal(made(ours, model, batch), made(theirs, model, batch))


TRANSFER = ("DIFGSM", "TIFGSM", "VMIFGSM", "SINIFGSM", "Jitter", "FGSM", "NIFGSM", "EOTPGD")


@pytest.mark.parametrize("name", TRANSFER)
def test_classes_of_torchattacks(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """On a channels-last model, with the same random numbers each time, inside the ball."""
    pytest.importorskip("torchattacks")
    model = model.to(memory_format=torch.channels_last)
    attack = Torchattacks(name, 0.1, {} if name == "FGSM" else {"steps": 2})
    numbers = np.random.get_state(legacy=False)["state"]["key"].copy()
    before = torch.get_rng_state(), numbers, random.getstate()
    changed = made(attack, model, batch)
    assert torch.equal(changed, made(attack, model, batch))
    assert 0 < (changed - batch[0]).abs().max() <= 0.1 + 1e-6
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    assert (before[1] == np.random.get_state(legacy=False)["state"]["key"]).all()


def test_random_numbers_are_the_batchs(
    module: str, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    first, again, other = (Foreign(f"{module}.Shift", 0.1, seed=seed) for seed in (0, 0, 1))
    with frozen(model):
        there = first.perturb(model, *batch, KEYS[::-1])
    once = made(first, model, batch)
    assert torch.equal(once, made(again, model, batch))
    assert not torch.equal(once, there) and not torch.equal(once, made(other, model, batch))


def test_what_leaves_the_ball_is_said(
    module: str,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for by in (1, 1.5, 2):
        made(Foreign(f"{module}.Shift", 0.1, {"by": by}), model, batch)
    assert caplog.text.count("moves pixels by") == 1 and "0.1" in caplog.text


def test_identity_tells_code_and_version(module: str) -> None:
    named = as_attack(Foreign(f"{module}.Shift"), "shift", {"_target_": "netkin.attacks.Foreign"})
    assert len(named.identity["_source_sha256"]) == 64
    partial = as_attack(
        Foreign(f"{module}.partly"), "partly", {"_target_": "netkin.attacks.Foreign"}
    )
    assert partial.identity["_source_sha256"] == named.identity["_source_sha256"]
    theirs = as_attack(Foolbox("LinfPGD"), "pgd", {"_target_": "netkin.attacks.Foolbox"})
    assert theirs.identity["_made_by"] == "foolbox.attacks.LinfPGD"
    assert theirs.identity["_version"].startswith("foolbox 3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Foolbox("LinfPDG"), "foolbox.attacks has no attack 'LinfPDG'; did you mean LinfP"),
        (lambda: Foolbox("LinfPGD", 0.1, {"step": 3}), "does not take 'step'; did you mean steps"),
        (lambda: Foolbox("LinfPGD", 0.1, {"eps": 3}), "give it as eps"),
        (lambda: Foreign("no_such_module.Attack"), "no_such_module.Attack: .*PYTHONPATH"),
        (lambda: Foreign("Attack"), "Attack: .*PYTHONPATH"),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_the_commands(folder: Path, module: str) -> None:
    """Images of a paper's class are stored, scored and told from those of others."""
    small = ["store.dir=store", "model.members=[test_byobnet,vit_ti]", "subset=quick"]
    small += [
        "recipe=digits_adamw",
        "recipe.epochs=4",
        "attack=foreign",
        f"attack.make={module}.Shift",
    ]
    done = run_here(*small, "hydra.run.dir=shift", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "shift" / "report.html").is_file()
    done = run_here(*small, "attack.make=a_paper.bad", "hydra.run.dir=bad", cwd=folder)
    assert done.returncode == 1 and "bad" in done.stderr and "Traceback" not in done.stderr
