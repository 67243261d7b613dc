"""netkin.compare: the command's scores, its errors, and what it leaves as it was."""

import copy
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import netkin
from netkin.attacks import PGD, PatchFool
from netkin.data.digits import Digits
from netkin.errors import UserError
from netkin.zoo import build as zoo
from netkin.zoo.member import Task
from netkin.zoo.parse import parse_members
from tests import isolation
from tests.conftest import ROOT
from tests.zoo.own_nets import Rooted

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


@pytest.mark.slow
def test_scores_are_the_commands(trained: Path, tmp_path: Path) -> None:
    """The command's members and images, as modules and arrays, give its tables byte for byte."""
    manifest = json.loads(next((trained / "store").glob("digits/*/manifest.json")).read_text())
    images = Digits()
    place = {image: i for i, image in enumerate(images.ids)}
    pixels = np.stack([np.asarray(images.load(place[i])) for i in manifest["ids"]])
    task = Task("digits", 10, input_size=32, fit=FIT)
    known = {"test_byobnet": {"timm": "test_byobnet"}, "vit_ti": VIT_TI}
    models, families = {}, pl.read_csv(trained / "first" / "models.csv")
    for member in parse_members(list(known), known):
        weights = trained / "store" / "weights" / "digits" / f"{member.name}.safetensors"
        net = zoo.build(member, task, weights).net
        family = families.filter(model=member.name)["family"][0]
        models[member.name] = netkin.Model(net, mean=0.5, std=0.5, family=family)
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
        ours, theirs = tmp_path / f"{table}.csv", trained / "first" / f"{table}.csv"
        assert ours.read_bytes() == theirs.read_bytes(), table
    assert result.names == ("test_byobnet", "vit_ti")
    assert result.scores[0, 1] == result.pairs["score"][0]


def test_the_result_and_its_files(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module], tmp_path: Path
) -> None:
    result = quick(nets, *scans)
    assert result.names == ("mlp", "cnn") and result.scores.shape == (2, 2)
    assert result.pairs.columns[:3] == ["a", "b", "n"] and result.models.height == 2
    assert result.families.height == 1 and min(result.models["clean_accuracy"]) > 0.9
    figure = result.heatmap()
    assert [text.get_text() for ax in figure.axes for text in ax.texts]  # the cells' numbers
    for png in (result._repr_png_(), figure._repr_png_()):  # type: ignore[attr-defined]
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG" and image.width > 200
    assert result.answer[0] in result._repr_html_() and result.answer[0] in repr(result)
    page = result.save(tmp_path / "out")
    assert (
        page == tmp_path / "out" / "report.html"
        and "images under attack" in page.read_text().lower()
    )
    tables = ("similarity", "pairs", "models", "families", "corrected")
    names = {f"{name}.{suffix}" for name in tables for suffix in ("csv", "tex")} | {
        "report.html",
        "examples.png",
    }
    names |= {f"{x}.{y}" for x in ("similarity", "corrected") for y in ("png", "pdf")}
    assert {file.name for file in (tmp_path / "out").iterdir()} >= names
    assert pl.read_csv(tmp_path / "out" / "pairs.csv")["score"][0] == result.scores[0, 1]


@pytest.mark.slow
def test_any_form_of_the_same_images_gives_the_same_scores(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module]
) -> None:
    images, labels = scans
    expected = quick(nets, images, labels).scores
    in_bytes = (images * 255).round().to(torch.uint8)
    loader = torch.utils.data.DataLoader(TensorDataset(images, labels), batch_size=64)
    for form in (
        quick(nets, in_bytes.numpy(), labels.tolist()),
        quick(nets, images.double().numpy(), labels.numpy()),
        quick(nets, loader),
        quick(nets, images, labels, batch_size=7, seed=0),
    ):
        assert (form.scores == expected).all()
    assert (quick(nets, images, labels, seed=1).scores != expected).any()
    own = netkin.compare(nets, images, labels, attack=PGD("48/255", "12/255", 3), bootstrap=20)
    assert (own.scores == expected).all()


def test_preprocessing_is_each_models_own(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module]
) -> None:
    """A network behind its own normalisation and one before which `Model` normalises are equal."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets["cnn"]

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x * 0.25 + 0.5)}

    models = {
        "plain": nets["cnn"],
        "wrapped": netkin.Model(Normalised(), mean=0.5, std=[0.25, 0.25, 0.25]),
        "small": netkin.Model(
            nn.Sequential(nn.Upsample(16), nets["cnn"]), input_size=8, family="resized"
        ),
    }
    with torch.inference_mode():
        result = quick(models, *scans, steps=8)
    accuracy = dict(zip(result.names, result.models["clean_accuracy"], strict=True))
    assert accuracy["plain"] == accuracy["wrapped"] != accuracy["small"]
    assert result.models["input_size"].to_list() == [16, 16, 8]
    assert result.models["family"].to_list() == ["Sequential", "Normalised", "resized"]
    assert result.scores[0, 1] > result.scores[0, 2]
    assert any("2 geometries" in paragraph for paragraph in result.answer)


def test_gray_images(scans: tuple[Tensor, Tensor]) -> None:
    gray, labels = scans[0].mean(dim=1, keepdim=True).round(decimals=2), scans[1]
    torch.manual_seed(1)
    nets = {n: nn.Sequential(nn.Flatten(), nn.Linear(256, 10)) for n in "ab"}
    for net in nets.values():
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(gray), labels).backward()
            optimizer.step()
    assert min(quick(nets, gray, labels).models["clean_accuracy"]) > 0.8


def test_published_names_and_mappings_go_with_modules(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module], tmp_path: Path
) -> None:
    torch.save(nets["mlp"].state_dict(), tmp_path / "mlp.pt")
    entry = {"_target_": f"{__name__}.make_mlp", "checkpoint": str(tmp_path / "mlp.pt")}
    entry |= {"input_size": 16, "mean": 0.0, "std": 1.0}
    result = quick({"module": nets["mlp"], "file": entry}, *scans)
    assert result.pairs["a_fools_b"][0] > 0.2
    assert result.models["clean_accuracy"][0] == result.models["clean_accuracy"][1]
    with pytest.raises(UserError, match=r"models must have the same classes: .* 10, .* 1000"):
        quick({"module": nets["mlp"], "other": "resnet18.a1_in1k"}, *scans)
    with pytest.raises(UserError, match=r"there is no checkpoint nowhere\.pt"):
        quick({"module": nets["mlp"], "file": {**entry, "checkpoint": "nowhere.pt"}}, *scans)


def make_mlp() -> nn.Module:
    """The architecture of `nets["mlp"]`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 10))


def test_a_store_is_gone_on_from(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module], tmp_path: Path
) -> None:
    def written() -> dict[Path, int]:
        return {f: f.stat().st_mtime_ns for f in tmp_path.rglob("[!.]*.*") if f.is_file()}

    first = quick(nets, *scans, store=tmp_path)
    files = written()
    assert any(file.suffix == ".parquet" for file in files)
    again = quick(nets, *scans, store=tmp_path)
    assert written() == files and (again.scores == first.scores).all()
    three = quick({**nets, "third": nets["cnn"]}, *scans, store=tmp_path)
    assert files.items() <= written().items() and three.scores[0, 1] == first.scores[0, 1]
    changed = copy.deepcopy(nets["cnn"])
    changed[5].bias.data[0] += 1  # type: ignore[index]
    with pytest.raises(UserError, match=r"sha256.*another store, or remove"):
        quick({**nets, "cnn": changed}, *scans, store=tmp_path)
    darker = quick(nets, scans[0] * 0.9, scans[1], store=tmp_path)  # the same ids
    assert (darker.scores != first.scores).any()


@contextmanager
def same_state(nets: dict[str, nn.Module]) -> Iterator[None]:
    """Fails where the block changed the process, its random numbers or the networks."""

    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in (None, "netkin", "pytorch_lightning")]
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        found = [isolation.state(), list(warnings.filters), tf32, random.getstate()]
        found += [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]  # type: ignore[index]
        found += [(log.level, list(log.handlers), log.disabled) for log in loggers]
        for net in nets.values():
            hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
            found += [hooks, [m.training for m in net.modules()]]
            weights = net.parameters()
            found += [(p.requires_grad, p.grad is None, p.sum().item()) for p in weights]
        return found

    before = state()
    yield
    assert state() == before


def test_nothing_is_changed_or_printed(
    scans: tuple[Tensor, Tensor],
    nets: dict[str, nn.Module],
    capfd: pytest.CaptureFixture[str],
) -> None:
    nets["cnn"].train()[4].eval()  # type: ignore[index]
    next(nets["mlp"].parameters()).requires_grad_(False)
    try:
        with same_state(nets), torch.no_grad():
            quick(nets, *scans)._repr_png_()
        assert capfd.readouterr() == ("", "")
        with same_state(nets):
            quick(nets, *scans, progress=True)
        shown = capfd.readouterr()
        assert not shown.out and "craft 2/2: cnn" in shown.err
    finally:
        nets["cnn"].train()
        next(nets["mlp"].parameters()).requires_grad_(True)


def test_a_failing_model_leaves_all_as_it_was(
    scans: tuple[Tensor, Tensor],
    nets: dict[str, nn.Module],
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise RuntimeError("no gradients today")
            return nets["cnn"](x)

    with (
        same_state(nets),
        pytest.raises(UserError, match=r"b failed in craft: .*no gradients today") as caught,
    ):
        quick({"a": nets["mlp"], "b": Fails()}, *scans)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_is_a_keyboard_interrupt(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module]
) -> None:
    class Interrupts(PGD):
        def perturb(self, model: nn.Module, *rest: Any) -> Tensor:
            os.kill(os.getpid(), signal.SIGINT)
            return super().perturb(model, *rest)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with same_state(nets), pytest.raises(KeyboardInterrupt):
            quick(nets, *scans, eps=None, steps=None, attack=Interrupts())
    finally:
        signal.signal(signal.SIGINT, before)


class Fixed(nn.Module):
    """Gives an output of a shape, whatever it is given."""

    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(self.shape or (len(x), 10))


def convolution(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 10, 16), nn.Flatten())


PIXELS = torch.rand(4, 3, 16, 16)
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"models": {"a": Fixed()}}, "models must be two or more, got 1"),
    ({"models": [Fixed(), Fixed()]}, "models must be a mapping of names .* got a list"),
    ({"models": {"a": Fixed(), "b": 3}}, "models: b must be an nn.Module, got a int"),
    ({"models": {"a": Fixed(), "b": Fixed(2, 7)}}, "same classes: a has 10, b has 7"),
    ({"models": {"a": Fixed(), "b": Fixed(2, 7, 7)}}, r"models: b gives \[2, 7, 7\]"),
    ({"models": {"a": Fixed(), "b": nn.Linear(3, 10)}}, r"b does not take images \[2, 3, 16, 16\]"),
    (
        {"models": {"a": Fixed(), "b": netkin.Model(Fixed(), mean=0.5, std=0.0)}},
        "'b': std must be .* above 0",
    ),
    ({"models": {"a": Fixed(), "b": Fixed(2, 1)}}, "b gives one logit z .* two or more classes"),
    ({"models": {"a": Fixed(), "b": netkin.Model(Fixed(), mean=124, std=58)}}, "divide mean and"),
    (
        {"models": {"a": Fixed(), "b": convolution(1)}},
        r"it takes 1: .*in_chans=1",
    ),
    (
        {
            "images": PIXELS[:, :1],
            "models": {"a": convolution(3), "b": Fixed()},
        },
        "in_chans=3",
    ),
    ({"images": DataLoader(PIXELS)}, "images are a DataLoader, .* leave `labels` out"),  # type: ignore[arg-type]
    ({"images": PIXELS[0]}, r"images must be an array or tensor \[N, 3, H, W\]"),
    ({"images": PIXELS.permute(0, 2, 3, 1)}, "the channels are last"),
    ({"images": PIXELS * 4 - 2}, r"images must be in \[0, 1\], got .* without normalisation"),
    ({"images": PIXELS * 255}, r"images must be in \[0, 1\], got .* divide them by 255"),
    ({"images": (PIXELS * 255).long()}, "images must be floating .* or uint8, got int64"),
    ({"images": PIXELS.log().log()}, "images must be finite, got NaN"),
    ({"images": PIXELS[:0], "labels": []}, "images must be one or more"),
    ({"images": PIXELS[..., :8]}, "16 x 8 and models take squares"),
    ({"labels": [0, 1, 2]}, "labels must be one an image: 4 images, 3 labels"),
    ({"labels": [0, 1, 2, 10]}, "labels must be in 0 to 9 for 10 classes, got 0 to 10"),
    ({"labels": [2, 2, 3, 10]}, "counted from 1"),
    ({"images": TensorDataset(PIXELS)}, "a TensorDataset, whose batches have labels of their own"),
    ({"labels": torch.eye(10)[:4]}, r"labels must be class indices, .* float32 of shape \[4, 10\]"),
    ({"labels": None}, "labels must be given"),
    ({"images": [PIXELS], "labels": None}, r"images must be batches \(images, labels\)"),
    ({"images": [], "labels": None}, "images must be one or more"),
    ({"ids": ["a", "b", "c", "c"]}, "ids must be unique, .* 'c' twice"),
    ({"ids": ["a"]}, "ids must be .* got 1 for 4 images"),
    ({"classes": ["x", "y"]}, "classes names 2, but a has 10 classes"),
    ({"eps": 8}, "eps=8 is outside"),
    ({"eps": 0.001}, "eps=0.001 is below 1/255"),
    ({"steps": 0}, "steps must be a whole number"),
    ({"attack": PGD()}, "eps is of PGD"),
    ({"attack": 3, "eps": None, "steps": None}, "int is no attack"),
    (
        {"attack": PatchFool(), "eps": None, "steps": None},
        "attack patchfool .* a is no timm Vision",
    ),
    ({"batch_size": 0}, "batch_size must be"),
    ({"bootstrap": 0}, "bootstrap must be"),
    ({"eps_s": 0}, "eps_s must be"),
    ({"device": "cuda:7"}, "device must be auto, cpu or cuda"),
    ({"store": "/proc/none"}, "^store=/proc/none cannot be written"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_error_that_names_the_argument(
    arguments: dict[str, Any], message: str
) -> None:
    given = {"models": {"a": Fixed(), "b": Fixed()}, "images": PIXELS, "labels": [0, 0, 0, 0]}
    with pytest.raises(UserError, match=message):
        quick(**{**given, **arguments})


def test_no_common_image_is_an_error_and_chance_is_noted(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module]
) -> None:
    images, labels = scans
    with pytest.raises(UserError, match="no image is classified correctly by"):
        quick(nets, images, (labels + 1) % 10)
    weak = nn.Sequential(nn.AvgPool2d(16), nn.Upsample(16), nets["cnn"])
    result = quick({**nets, "weak": weak}, images, labels)
    (note,) = [paragraph for paragraph in result.answer if "near chance" in paragraph]
    assert note.startswith("Suspect: weak: its accuracy is") and "netkin.Model" in note


def test_a_network_in_another_order_of_classes_is_left_out(
    scans: tuple[Tensor, Tensor], nets: dict[str, nn.Module]
) -> None:
    """Its pairs are empty, with the reason; the others' pair is as without it."""
    right = torch.stack([net.eval()(scans[0]).argmax(dim=1) == scans[1] for net in nets.values()])
    images, labels = (of[right.all(dim=0)] for of in scans)
    order = torch.roll(torch.arange(10), 1)
    moved = nn.Sequential(nets["mlp"], Picked(order))
    result = quick({"moved": moved, **nets}, images, labels)
    plain = quick(nets, images, labels)
    assert result.names == ("moved", "mlp", "cnn")
    assert np.isnan(result.scores[0]).all() and (result.scores[1:, 1:] == plain.scores).all()
    rows = result.pairs.select("a", "b", "n", "score").rows()
    assert rows[:2] == [("moved", "mlp", 0, None), ("moved", "cnn", 0, None)]
    assert rows[2] == plain.pairs.select("a", "b", "n", "score").row(0)
    assert result.pairs["reason"][0].startswith("no image is classified correctly by moved")
    assert result.pairs["reason"][2] is None and result.failures["model"].to_list() == ["moved"]
    text = "\n".join(result.answer)
    assert "moved has no scores" in text and "Suspect: moved: its accuracy is 0.0%" in text


class Picked(nn.Module):
    """Logits in another order."""

    def __init__(self, order: Tensor):
        super().__init__()
        self.order = order

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, self.order]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page of docs/."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_the_examples_of_the_page_run(
    scans: tuple[Tensor, Tensor],
    nets: dict[str, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first block as it is; of the others, which are slow, what they pass."""
    first, *others = blocks("python.md")
    assert len(first.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    any_size = nn.Sequential(nn.AdaptiveAvgPool2d(16), nets["cnn"])
    values = {"net_a": nets["mlp"], "net_b": any_size, "images": scans[0], "labels": scans[1]}
    exec(first, values)
    assert "a and b fool each other on " in capsys.readouterr().out
    assert (tmp_path / "comparison" / "report.html").is_file()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(netkin, "compare", lambda *args, **kwargs: calls.append((args, kwargs)))
    for block in others:
        exec(block, values)
    monkeypatch.undo()
    (models, *images), _ = calls[0]
    assert images == list(scans) and quick(models, *scans).models["input_size"][1] == 32
    assert calls[1][1]["attack"].eps == 8 / 255


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From two modules to a heatmap in ten lines, and every other cell."""
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), values)
    result = values["result"]
    assert result._repr_png_() and (tmp_path / "comparison" / "report.html").is_file()
    assert result.pairs["score"][0] == max(result.pairs["score"])  # the two perceptrons
    assert min(result.models["white_box_success"]) > 0.95
    (compared,) = [c for c in notebook["cells"] if "netkin.compare(" in "".join(c["source"])]
    assert len(compared["source"]) <= 10 and "image/png" in compared["outputs"][0]["data"]


def test_importing_netkin_is_light() -> None:
    code = (
        "import sys, netkin; "
        "print(*sorted({'torch', 'polars', 'timm', 'wandb', 'sklearn'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == []
    assert set(netkin.__all__) <= set(dir(netkin))
    with pytest.raises(AttributeError, match="has no attribute 'comparison_of'"):
        netkin.comparison_of  # type: ignore[attr-defined]  # noqa: B018


ALONE = """
import sys
for name in ("hydra", "omegaconf", "wandb", "experiments"):
    sys.modules[name] = None
import netkin, torch
from torch import nn
torch.manual_seed(0)
images = torch.rand(20, 3, 8, 8)
nets = {n: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for n in "ab"}
nets["b"].load_state_dict(nets["a"].state_dict())
result = netkin.compare(nets, images, nets["a"](images).argmax(1), steps=2, bootstrap=5)
print(result.save("out"), netkin.__file__)
"""


@pytest.mark.slow
def test_the_wheel_runs_without_hydra(tmp_path: Path) -> None:
    """The built package holds its templates, and is all that is needed."""
    source = tmp_path / "source"  # a copy: building writes beside it
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    build = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(tmp_path)]
    built = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "netkin/py.typed" in archive.namelist()
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page, module = done.stdout.split()
    assert (tmp_path / page).stat().st_size > 10_000
    assert Path(module).is_relative_to(tmp_path / "site") and not done.stderr


def test_gradients_that_are_nan_are_said() -> None:
    """Signs of NaN are 0: attacks would leave the images as they are, without a word."""
    pixels = torch.rand(6, 3, 32, 32)
    net = Rooted().eval()
    labels = net((pixels - 0.5) / 0.5).argmax(1)
    models = {name: netkin.Model(net, mean=0.5, std=0.5) for name in ("a", "b")}
    with pytest.raises(UserError, match=r"gradient of its loss is NaN or infinite on \d of \d"):
        quick(models, pixels, labels)
