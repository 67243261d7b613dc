"""A network is what it computes: equal weights do not make two networks one, nor two days."""

import copy
import functools
import importlib
import linecache
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import SEModule
from torch import Tensor, nn
from torchvision import transforms

import netkin
from netkin.attacks import PGD, as_attack
from netkin.errors import UserError
from tests.conftest import run_here

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """[48, 3, 8, 8] of 8 bits."""
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return pixels / 255


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()


class Changed(nn.Module):
    """A network behind something that no state dict shows."""

    def __init__(self, net: nn.Module, change: Any):
        super().__init__()
        self.net, self._change = net, change

    def forward(self, x: Tensor) -> Tensor:
        change = self._change
        return self.net(change(x) if callable(change) else x * change)


def scaled(x: Tensor, by: float) -> Tensor:
    return x * by


def hooked(net: nn.Module, by: float) -> nn.Module:
    module = Changed(net, 1.0)
    module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * by,))
    return module


def traced(net: nn.Module, by: float) -> nn.Module:
    return torch.fx.symbolic_trace(Changed(net, functools.partial(scaled, by=by)))


KINDS: dict[str, Callable[[nn.Module, float], Any]] = {
    "partial": lambda net, by: Changed(net, functools.partial(scaled, by=by)),
    "lambda": lambda net, by: Changed(net, lambda x: x * by),
    "Compose": lambda net, by: Changed(net, transforms.Compose([lambda x: x * by])),
    "tensor": lambda net, by: Changed(net, torch.tensor(by)),
    "numpy": lambda net, by: Changed(net, np.float32(by)),
    "number": lambda net, by: Changed(net, by),
    "hook": hooked,
    "graph": traced,
    "script": lambda net, by: torch.jit.trace(Changed(net, by), torch.zeros(2, 3, 8, 8)),
}


def compare(models: dict[str, nn.Module], images: Tensor, **arguments: Any) -> "netkin.Result":
    labels = next(iter(models.values()))(images).argmax(1)
    return netkin.compare(models, images, labels, eps=0.5, steps=4, bootstrap=10, **arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_are_not_the_same_network(
    kind: str, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """In one call, and in a store: where the function of a name has changed, that is an error."""
    plain, other = KINDS[kind](net, 1.0), KINDS[kind](net, -1.0)
    expected = float((net(-images).argmax(1) == net(images).argmax(1)).float().mean())
    found = compare({"plain": plain, "other": other}, images, store=tmp_path)
    assert found.models["clean_accuracy"].to_list() == pytest.approx([1.0, expected])
    again = compare({"plain": plain, "other": other}, images, store=tmp_path)
    assert (again.scores == found.scores).all()
    with pytest.raises(UserError, match=r"^other is not what it was.*has changed"):
        compare({"plain": plain, "other": KINDS[kind](net, 0.5)}, images, store=tmp_path)


def test_scores_do_not_depend_on_defaults_outside(net: nn.Module, images: Tensor) -> None:
    models = {"a": net, "b": Changed(net, 0.9)}
    expected = compare(models, images).scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (compare(models, images).scores == expected).all()
    torch.set_default_dtype(torch.float64)
    try:
        wide = {name: model.double() for name, model in models.items()}
        labels = net(images.double()).argmax(1)
        found = netkin.compare(wide, images, labels, eps=0.5, steps=4, bootstrap=10)
        assert (found.scores == expected).all() and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        net.float()


class Noisy(Changed):
    """Its logits are other ones each time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + torch.randn(len(x), 4)


class BatchStatistics(Changed):
    """Batch normalisation that stays on the statistics of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(
            (x - x.mean(0, keepdim=True)) / (x.std(0, correction=0, keepdim=True) + 1e-3)
        )


SUSPECTS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "noise": (lambda net: Noisy(net, None), "from one evaluation to the next"),
    "batch": (lambda net: BatchStatistics(net, None), "the others of the batch"),
    "probabilities": (lambda net: nn.Sequential(net, nn.Softmax(1)), "outputs are probabilities"),
    "rounding": (lambda net: Changed(net, lambda x: (x * 31).round() / 31), "gradient of its loss"),
    "saturation": (lambda net: Changed(net, lambda x: x * 1e4), "its loss saturates"),
}


@pytest.mark.parametrize("kind", SUSPECTS)
def test_networks_that_are_not_what_they_seem(kind: str, net: nn.Module, images: Tensor) -> None:
    make, finding = SUSPECTS[kind]
    answer = compare({"a": net, "b": make(net)}, images).answer
    assert [line for line in answer if line.startswith("Suspect: b: ") and finding in line]
    assert not any("more steps or a larger eps" in line for line in answer)
    assert "Suspect: a" not in " ".join(answer)


EXPECTED = {
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], False),
    "pixels of 0 to 255": ([0, 0, 0], [1 / 255] * 3, False),
    "channels in reverse order": ([0, 0, 0], [1, 1, 1], True),
}


@pytest.mark.parametrize("named", EXPECTED)
def test_the_normalisation_that_a_network_expects_is_named(named: str) -> None:
    """A network that takes other inputs than it gets, beside two that are right, and a weak one;
    and two that both take others."""
    torch.manual_seed(0)
    images, (mean, std, flipped) = torch.rand(120, 3, 4, 4), EXPECTED[named]
    images = (images * 255).round() / 255
    linear = nn.Linear(48, 20)
    net, rows = nn.Sequential(nn.Flatten(), linear), linear.weight.data
    rows -= rows.mean(dim=0)  # no class is always the largest
    labels = net(images).argmax(dim=1)

    def undone(x: Tensor) -> Tensor:
        x = x * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        return x.flip(1) if flipped else x

    red = Changed(net, lambda x: x[:, :1].expand_as(x))
    wrong = {"c": Changed(net, undone), "d": Changed(Changed(net, 1.0), undone)}
    assert (red(images).argmax(dim=1) == labels).float().mean() < 0.4
    beside = {"a": net, "b": Changed(net, 0.9), "c": wrong["c"], "red": red}
    for nets, suspects in ((beside, "c"), (wrong, "cd")):
        answer = netkin.compare(nets, images, labels, steps=1, bootstrap=2).answer
        (line,) = (line for line in answer if "instead of" in line)
        assert line.startswith("Suspect: ") and line.count("instead of") == len(suspects)
        for name in suspects:
            said = line.partition(f"{name}: its accuracy is ")[2].partition(";")[0]
            assert named in line and "give 100.0% instead of " in said and "on 100 of them" in said


class Rounded(Changed):
    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * 255).round() / 255
        return self.net(x + (rounded - x).detach() if self._change else rounded)


MENDED: dict[str, Callable[[nn.Module], tuple[nn.Module, nn.Module]]] = {
    "gradient": lambda net: (Rounded(net, False), Rounded(net, True)),
    "noise": lambda net: (Noisy(net, None), Changed(net, 1.0)),
    "batch": lambda net: (BatchStatistics(net, None), Changed(net, 1.0)),
}


@pytest.mark.parametrize("kind", MENDED)
def test_a_mended_suspect_is_another_network(
    kind: str, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """What netkin advised to mend does not keep the results, nor the suspicion, of before."""
    broken, mended = MENDED[kind](net)
    compare({"a": net, "b": broken}, images, store=tmp_path)
    with pytest.raises(UserError, match=r"^b is not what it was"):
        compare({"a": net, "b": mended}, images, store=tmp_path)


def test_what_hooks_do_is_kept(images: Tensor) -> None:
    """A batch normalisation, or a squeeze-and-excitation, with a hook is not folded away, even
    where the first images do not show what the hook does."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), SEModule(6, rd_channels=2))
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(216, 4)).eval()
    for part in (conv[1], conv[2]):
        hooked = copy.deepcopy(net)
        place = next(n for n, m in net.named_modules() if m is part)

        def negate(_: Any, inputs: tuple, output: Tensor) -> Tensor:
            return torch.where(torch.arange(len(output)).view(-1, 1, 1, 1) < 8, output, -output)

        hooked.get_submodule(place).register_forward_hook(negate)
        expected = float((hooked(images).argmax(1) == net(images).argmax(1)).float().mean())
        assert expected < 0.9
        found = compare({"a": net, "b": hooked}, images).models["clean_accuracy"]
        assert found.to_list() == pytest.approx([1.0, expected])


def test_the_users_network_does_not_train(images: Tensor) -> None:
    """Where its code refers to itself, the copy runs the original: in eval mode, then as before."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, 4))
    outer = Changed(nn.Identity(), lambda x: net(x))
    before = copy.deepcopy(net)
    models = {"first": copy.deepcopy(net).eval(), "a": net, "b": outer}
    assert compare(models, images).models["clean_accuracy"].to_list() == [1, 1, 1]
    assert net.training and outer.training
    state = before.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


def test_a_target_whose_code_changed_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class stays as it is; a constant of another module, which it reads, does not."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(
        "import torch\nfrom torch import nn\nfrom mine import blocks\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.head = nn.Linear(3, 10)\n\n"
        "    def forward(self, x):\n"
        "        return blocks.SIGN * self.head(x.mean((2, 3)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    member = "{name: %s,_target_: mine.nets.Net,pretrained: true,mean: 0.5,std: 0.5,input_size: 8}"
    words = [f"model.members=[{member % 'one'},{member % 'two'}]", "subset=quick"]
    words += ["attack.steps=1", "score.bootstrap=10", f"store.dir={tmp_path / 'store'}"]

    def run(sign: int) -> Any:

        (package / "blocks.py").write_text(f"SIGN = {sign}\n")
        for name in [name for name in sys.modules if name.startswith("mine")]:
            del sys.modules[name]
        from netkin.zoo import sources

        sources.find.cache_clear()
        return run_here(*words, f"hydra.run.dir=run{sign}", cwd=tmp_path)

    assert run(1).returncode == 0
    changed = run(-1)
    assert changed.returncode != 0 and changed.stderr.count("\n") == 1
    assert re.search(r"error: one is not what it was", changed.stderr), changed.stderr


def test_an_attack_whose_code_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def identity(text: str) -> Any:
        (tmp_path / "my_attack.py").write_text(text)
        sys.modules.pop("my_attack", None)
        linecache.clearcache()
        made = importlib.import_module("my_attack")
        return as_attack(made.Mine(), "mine", {"_target_": "my_attack.Mine"}).identity

    text = (
        "class Mine:\n    def perturb(self, model, pixels, labels, keys):\n        return pixels\n"
    )
    assert identity(text) == identity(text) != identity(text.replace("pixels\n", "1 - pixels\n"))
    assert as_attack(PGD(0.1, 0.1, 1), "pgd", {"steps": 1}).identity == {"steps": 1}
