"""What holds for every attack of netkin in conf/attack/, on a trained CNN and a trained ViT."""

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

import netkin.attacks
from netkin.attacks import PGD, Attack, PatchFool, SignNoise
from netkin.attacks.base import frozen
from netkin.attacks.grid import to_grid
from netkin.data import views
from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.runner import resized
from netkin.zoo.build import Classifier, Task, build
from netkin.zoo.parse import parse_members
from tests.conftest import ROOT

OTHERS = ("foolbox", "foreign", "torchattacks")  # tests/attacks/test_attacks_foreign.py
CONFIGS = {
    path.stem: path
    for path in sorted((ROOT / "conf" / "attack").glob("*.yaml"))
    if path.stem not in OTHERS
}
FEWER: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 3},
    "apgd": {"steps": 3},
    "mim": {"steps": 3},
    "autoattack": {"steps": 2, "targets": 2, "queries": 5, "eps": 2 / 255},
    "patchfool": {"steps": 3},
}
"""Shorter than published, and an eps at which some images reach the last attack of AutoAttack."""
UNBOUNDED = ("clean", "patchfool")
DRAWN = ("pgd", "apgd", "autoattack", "noise", "patchfool")


pytestmark = pytest.mark.usefixtures("one_thread")


Batch = tuple[Classifier, Tensor, Tensor, list[str]]


def attack_of(name: str, **changes: Any) -> Any:
    own = OmegaConf.merge(OmegaConf.load(CONFIGS[name]), FEWER.get(name, {}), changes)
    dataset = {"eps": "32/255", "step_size": "4/255"}
    return instantiate(OmegaConf.create({"dataset": dataset, "attack": own}).attack)


@pytest.fixture(scope="module")
def zoo(trained: Path) -> dict[str, Batch]:
    """A CNN and a ViT, each with five digits that it classifies correctly."""
    known = yaml.safe_load((ROOT / "conf" / "model" / "digits.yaml").read_text())["known"]
    task = Task("digits", 10, "train", 32, ({"img_size": 32, "patch_size": 8}, {"img_size": 32}))
    digits = Digits()
    subset = draw(digits, "quick", 10)
    pixels = views.load(digits, subset.positions, views.View(32))
    labels = torch.tensor(subset.labels)
    found = {}
    for member in parse_members(["test_byobnet", "vit_ti"], known):
        weights = trained / "store" / "weights" / "digits" / f"{member.name}.safetensors"
        classifier = build(member, task, weights).eval()
        with torch.no_grad():
            right = (classifier(pixels / 255).argmax(1) == labels).nonzero().flatten()[:5]
        keys = [f"{member.name}\n{subset.ids[i]}" for i in right]
        found[member.name] = (classifier, pixels[right], labels[right], keys)
    return found


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["test_byobnet", "vit_ti"])
def batch(request: pytest.FixtureRequest, zoo: dict[str, Batch], name: str) -> Batch:
    found = zoo[request.param]
    attack = attack_of(name)
    if attack.unfit(found[0]):
        pytest.skip(f"{name} {attack.unfit(found[0])}")
    return found


def made(attack: Attack, batch: Batch, chosen: slice | list[int] = slice(None)) -> Tensor:
    classifier, clean, labels, keys = batch
    some = keys[chosen] if isinstance(chosen, slice) else [keys[i] for i in chosen]
    with frozen(classifier) as model:
        return attack.perturb(model, clean[chosen].float() / 255, labels[chosen], some)


def test_in_the_ball_and_in_range(name: str, batch: Batch) -> None:
    """Of floats, and after rounding to 8 bits; and something has changed, save by `clean`."""
    attack, (_, clean, _, _) = attack_of(name), batch
    adversarial = made(attack, batch)
    assert adversarial.shape == clean.shape and not adversarial.requires_grad
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    eps = attack.eps
    stored = to_grid(adversarial, clean, eps)
    assert stored.dtype == torch.uint8
    changed = (stored != clean).flatten(1).any(dim=1)
    assert changed.all() if name != "clean" else not changed.any()
    assert (eps is None) == (name in UNBOUNDED)
    if eps is not None:
        assert (adversarial - clean / 255).abs().max() <= eps + 1e-6
        assert (stored.int() - clean.int()).abs().max() <= round(eps * 255)


def test_raises_the_loss_more_than_noise(name: str, batch: Batch) -> None:
    classifier, _, labels, _ = batch
    if name in ("clean", "noise"):
        pytest.skip("no gradient")
    attack = attack_of(name)
    control = SignNoise(attack.eps or 32 / 255)
    if isinstance(attack, PatchFool):
        control = attack_of(name, steps=0)  # random content of the same patches
    loss = torch.nn.CrossEntropyLoss()
    with torch.no_grad():
        assert loss(classifier(made(attack, batch)), labels) > loss(
            classifier(made(control, batch)), labels
        )


def test_same_seed_same_bytes(name: str, batch: Batch) -> None:
    """Whatever torch's own generator is at, which is left where it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = made(attack_of(name), batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, made(attack_of(name), batch))
    if name in DRAWN:
        assert not torch.equal(first, made(attack_of(name, seed=1), batch))


def test_an_image_does_not_depend_on_its_batch(name: str, batch: Batch) -> None:
    """In another order, in other company. Signs of gradients near zero may turn by rounding."""
    attack = attack_of(name)
    together = made(attack, batch)
    order = [3, 0, 4, 2, 1]
    apart = torch.cat([made(attack, batch, order[:2]), made(attack, batch, order[2:])])
    assert ((together[order] - apart).abs() > 1e-3).float().mean() < 0.005


def test_leaves_model_and_images_as_they_were(name: str, batch: Batch) -> None:
    classifier, clean, labels, keys = batch
    state = {key: value.clone() for key, value in classifier.state_dict().items()}
    fused = {n: m.fused_attn for n, m in classifier.named_modules() if hasattr(m, "fused_attn")}
    hooks = [len(module._forward_hooks) for module in classifier.modules()]
    classifier.train()
    pixels = clean.float() / 255
    kept = pixels.clone()
    with frozen(classifier) as model:
        attack_of(name).perturb(model, pixels, labels, keys)
    assert all(module.training for module in classifier.modules())
    classifier.eval()
    assert torch.equal(pixels, kept) and not pixels.requires_grad
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(state[key], value) for key, value in classifier.state_dict().items())
    for module_name, module in classifier.named_modules():
        assert getattr(module, "fused_attn", None) == fused.get(module_name)
    assert [len(module._forward_hooks) for module in classifier.modules()] == hooks


def test_fgsm_and_mim_are_cases_of_pgd(zoo: dict[str, Batch]) -> None:
    batch = zoo["test_byobnet"]
    eps = "16/255"
    step = PGD(eps, eps, steps=1, random_start=False)
    assert torch.equal(made(attack_of("fgsm", eps=eps), batch), made(step, batch))
    without = PGD(eps, 1.6 / 255, steps=10, random_start=False)
    mim = attack_of("mim", eps=eps, steps=10)
    assert mim.step_size == pytest.approx(without.step_size)
    assert not torch.equal(made(mim, batch), made(without, batch))
    assert torch.equal(
        made(attack_of("mim", eps=eps, steps=10, step_size=mim.step_size, momentum=0), batch),
        made(PGD(eps, mim.step_size, steps=10, random_start=False), batch),
    )


def test_noise_is_fair_and_of_full_length() -> None:
    pixels = torch.full((2, 3, 64, 64), 0.5)
    moved = SignNoise("8/255").perturb(torch.nn.Identity(), pixels, torch.zeros(2), ["a", "b"])
    assert torch.allclose((moved - pixels).abs(), torch.tensor(8 / 255), atol=1e-7)
    signs = (moved - pixels).sign()
    assert signs.mean().abs() < 0.05 and (signs[0] * signs[1]).mean().abs() < 0.05


def test_the_documented_attack_of_ones_own(
    zoo: dict[str, Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of `netkin.attacks` is ten lines of code, and runs as it stands."""
    assert netkin.attacks.__doc__ is not None
    blocks = re.findall(r"(?:^    .*\n|^\n)+", netkin.attacks.__doc__, re.M)
    (example,) = [block for block in blocks if "class OneStep" in block]
    code = re.sub(r"^    ", "", example, flags=re.M)
    assert len([line for line in code.splitlines() if line]) <= 11
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    attack = instantiate({"_target_": "my_module.OneStep", "eps": 0.1})
    monkeypatch.delitem(sys.modules, "my_module")
    batch = zoo["vit_ti"]
    assert torch.equal(made(attack, batch), made(attack_of("fgsm", eps=0.1), batch))


def test_all_is_done_on_the_device(name: str, batch: Batch) -> None:
    """On torch's meta device, which computes no values, and refuses tensors of another device."""
    attack, (classifier, clean, labels, keys) = attack_of(name), batch
    device = torch.device("meta")
    there = copy.deepcopy(classifier).to(device), clean.to(device), labels.to(device), keys
    try:
        stored = to_grid(made(attack, there), there[1], attack.eps)
    except NotImplementedError:
        pytest.skip(f"{name} decides by values")
    assert (stored.device, stored.dtype) == (device, torch.uint8)
    assert resized(stored, 48, "bilinear").device == device
