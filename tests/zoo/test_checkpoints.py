"""Checkpoints of common layouts, and the preprocessing that they record."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from netkin.errors import UserError
from netkin.store.layout import Store
from netkin.training.weights import trained_members
from netkin.zoo.build import Task, build, check_member, preprocessing
from netkin.zoo.checkpoints import load_weights
from netkin.zoo.member import Member
from netkin.zoo.parse import parse_members
from netkin.zoo.preprocessing import unknown_preprocessing
from tests.zoo.own_nets import Net

FOLDER = Task("mine", num_classes=10, input_size=32)


def state(seed: int = 1) -> dict[str, Tensor]:
    """A network's weights, none of them constant."""
    torch.manual_seed(seed)
    return {
        key: value + torch.rand_like(value) if value.is_floating_point() else value
        for key, value in Net().state_dict().items()
    }


def under(prefix: str, seed: int = 1) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state(seed).items()}


def loaded(file: Path, key: str | None = None) -> dict[str, Tensor]:
    net = Net()
    load_weights(net, file, "mine", key)
    return net.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


OPTIMISER = {"state": {0: {"exp_avg": torch.rand(6, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
CONTENTS: dict[str, Any] = {
    "flat": state(),
    "model_state_dict": {"model_state_dict": state(), "optimizer_state_dict": OPTIMISER},
    "model": {"model": state(), "optimizer": OPTIMISER, "scaler": None},
    "numpy's numbers": {"state_dict": state(), "best_acc1": np.float64(84.0), "n": np.int64(3)},
    "arguments": {"state_dict": state(), "args": argparse.Namespace(lr=0.1, arch="net")},
    "Lightning": {"state_dict": under("model."), "hyper_parameters": {"lr": 0.1}, "epoch": 3},
    "Lightning with a loss": {"state_dict": {**under("net."), "loss.weight": torch.rand(10)}},
    "DataParallel": under("module."),
    "compiled": under("_orig_mod."),
    "DDP, then compiled": under("_orig_mod.module."),
    "all of it in Lightning": {"state_dict": under("model._orig_mod.module.")},
    "a compiled part": {key.replace("conv.", "conv._orig_mod."): v for key, v in state().items()},
    "averaged": {"ema": {"module": state()}, "decay": 0.999},
    "AveragedModel": {"swa": {**under("module."), "n_averaged": torch.tensor(3)}},
    "a profiler's counters": {**state(), "total_ops": torch.zeros(1)},
    "deep": {"checkpoint": {"weights": {"student": under("encoder.backbone.")}}},
    "half precision": {key: v.half() if v.is_floating_point() else v for key, v in state().items()},
    "without counters of batches": {k: v for k, v in state().items() if "batches" not in k},
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENTS)
def test_where_people_keep_weights(kind: str, tmp_path: Path) -> None:
    torch.save(CONTENTS[kind], tmp_path / "mine.ckpt")
    expected = state()
    if kind == "half precision":
        expected = {k: v.half().to(v.dtype) for k, v in expected.items()}
    assert same(loaded(tmp_path / "mine.ckpt"), expected)


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    save_file(under("_orig_mod.module."), tmp_path / "mine.safetensors")
    assert same(loaded(tmp_path / "mine.safetensors"), state())


def test_several_sets_of_weights(tmp_path: Path) -> None:
    """One average is taken before others; else the member has to say which, also of a student and
    its teacher."""
    several = {"state_dict": {**under("model.", 1), **under("teacher.", 2)}}
    torch.save({**several, "model_ema": state(3), "other": {"a": torch.ones(3)}}, tmp_path / "e.pt")
    assert same(loaded(tmp_path / "e.pt"), state(3))
    for key, seed in (("model_ema", 3), ("state_dict.model", 1), ("teacher", 2), ("model", 1)):
        assert same(loaded(tmp_path / "e.pt", key), state(seed)), key
    with pytest.raises(UserError, match=r"weights_key 'modle_ema'; did you mean model_ema"):
        loaded(tmp_path / "e.pt", "modle_ema")
    with pytest.raises(UserError, match=r"do not fit: .* keys are a, the model's conv.weight"):
        loaded(tmp_path / "e.pt", "other")
    for content, labels in (
        (several, "state_dict.model, state_dict.teacher"),
        ({"student": state(1), "teacher": state(2)}, "student, teacher"),
        ({"ema_a": state(1), "ema_b": state(2)}, "ema_a, ema_b"),
        ({**state(1), "swa": state(2)}, "'', swa"),
    ):
        torch.save(content, tmp_path / "two.pt")
        with pytest.raises(UserError, match=rf"several sets .* field weights_key: {labels}$"):
            loaded(tmp_path / "two.pt")
        with pytest.raises(UserError, match="several sets"):
            check_member(member(tmp_path / "two.pt"), FOLDER)
    assert same(loaded(tmp_path / "two.pt", ""), state(1))
    torch.save({"model": state(1), "copy": state(1)}, tmp_path / "twice.pt")
    assert same(loaded(tmp_path / "twice.pt"), state(1))


def test_a_misfit_shows_the_first_keys_of_both(tmp_path: Path) -> None:
    torch.save({"state_dict": under("model.") | {"model.more": torch.rand(2)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"more is no such key in the model and \[2\] in the file"):
        loaded(tmp_path / "a.pt")
    torch.save({"encoder.w": torch.rand(2), "encoder.b": torch.rand(3)}, tmp_path / "b.pt")
    with pytest.raises(
        UserError, match=r"conv.weight is \[6, 3, 3, 3\] .* keys are encoder.w, enc"
    ):
        loaded(tmp_path / "b.pt")
    for content in ({"epoch": 3}, [1, 2], {}):
        torch.save(content, tmp_path / "c.pt")
        with pytest.raises(UserError, match="holds no tensors; expected a state dict"):
            loaded(tmp_path / "c.pt")


class Hook:
    def __reduce__(self) -> Any:
        return (print, ("this code runs",))


@pytest.mark.parametrize("content", [{"state_dict": state(), "hook": Hook()}, Net()])
def test_pickled_code_is_not_run_nor_advised(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"it holds pickled objects") as error:
        loaded(tmp_path / "evil.pt")
    message = str(error.value)
    assert "weights_only" not in message and "\n" not in message
    assert "torch.save(net.state_dict(), FILE)" in message
    assert ("print" if isinstance(content, dict) else "own_nets.Net") in message
    assert "this code runs" not in capsys.readouterr().out


# ---- the preprocessing of a checkpoint ----

TIMM = {
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "input_size": [3, 48, 48],
    "crop_pct": 0.9,
    "interpolation": "bilinear",
}


def member(file: Path, **fields: Any) -> Member:
    return Member("mine", target="tests.zoo.own_nets.Net", checkpoint=str(file), **fields)


def check_timm(file: Path) -> None:
    own = preprocessing(member(file), FOLDER)
    assert (own.mean, own.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    view = own.view
    assert (view.input_size, view.crop_pct, view.interpolation) == (48, 0.9, "bilinear")
    assert not unknown_preprocessing(member(file), FOLDER)
    given = preprocessing(member(file, mean=(0.7,), std=(0.8,), input_size=32), FOLDER)
    assert (given.mean, given.std) == ((0.7,) * 3, (0.8,) * 3)
    assert (given.view.input_size, given.view.crop_pct) == (32, 0.9)


@pytest.mark.parametrize(
    "content",
    [
        {"pretrained_cfg": TIMM},
        {"config": {"pretrained_cfg": TIMM}},
        {"hyper_parameters": TIMM | {"lr": 0.1}},
        {"args": argparse.Namespace(**TIMM, lr=0.1)},
        {"args": TIMM},
    ],
)
def test_a_torch_files_own_config(content: dict, tmp_path: Path) -> None:
    torch.save({"state_dict": state(), **content}, tmp_path / "mine.pt")
    check_timm(tmp_path / "mine.pt")


@pytest.mark.parametrize(
    "metadata",
    [{"pretrained_cfg": json.dumps(TIMM)}, {k: json.dumps(v) for k, v in TIMM.items()}],
)
def test_a_safetensors_files_own_config(metadata: dict, tmp_path: Path) -> None:
    metadata = {k: v.strip('"') for k, v in metadata.items()}
    save_file(state(), tmp_path / "mine.safetensors", metadata)
    check_timm(tmp_path / "mine.safetensors")


def test_the_config_beside_an_exported_model(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": TIMM}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_timm(tmp_path / "model.safetensors")
    save_file(state(), tmp_path / "other.safetensors")  # of another model, for all one knows
    assert unknown_preprocessing(member(tmp_path / "other.safetensors"), FOLDER)


def test_the_arguments_of_timms_training_script(tmp_path: Path) -> None:
    """What they leave open (None) is the model's own."""
    arguments = argparse.Namespace(
        model="resnet18.a1_in1k", mean=None, std=None, crop_pct=None, img_size=64, input_size=None
    )
    torch.save({"state_dict": state(), "args": arguments, "arch": "x"}, tmp_path / "mine.pt")
    own = preprocessing(member(tmp_path / "mine.pt"), FOLDER)
    assert own.mean == (0.485, 0.456, 0.406) and own.view.input_size == 64
    assert not unknown_preprocessing(member(tmp_path / "mine.pt"), FOLDER)


def test_a_checkpoint_that_says_nothing_is_noted(tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "args": argparse.Namespace(lr=1)}, tmp_path / "mine.pt")
    own = preprocessing(member(tmp_path / "mine.pt"), FOLDER)
    assert (own.mean, own.view.input_size, own.view.crop_pct) == ((0.5,) * 3, 32, 1.0)
    assert unknown_preprocessing(member(tmp_path / "mine.pt"), FOLDER)
    assert not unknown_preprocessing(Member("t", "test_vit"), FOLDER)  # is trained here
    save_file(state(), tmp_path / "here.safetensors")
    (tmp_path / "here.json").write_text(json.dumps({"made_of": {}}))
    assert not unknown_preprocessing(member(tmp_path / "here.safetensors"), FOLDER)


def test_a_pretrained_tag_lends_its_preprocessing(tmp_path: Path) -> None:
    """As the members of conf/model/resnet50_regimes that are to be added by hand."""
    task = Task("imagenet", 1000, weights="pretrained")
    torch.save({"state_dict": state()}, tmp_path / "mine.pt")
    mine = Member("m", "resnet50.tv_in1k", checkpoint=str(tmp_path / "mine.pt"))
    assert preprocessing(mine, task).mean == (0.485, 0.456, 0.406)
    assert not unknown_preprocessing(mine, task)


def test_a_members_classifier_uses_all_of_it(tmp_path: Path) -> None:
    torch.save({"state_dict": under("model.", 5), "hyper_parameters": TIMM}, tmp_path / "mine.ckpt")
    classifier = build(member(tmp_path / "mine.ckpt"), FOLDER, tmp_path / "mine.ckpt").eval()
    net: nn.Module = Net().eval()
    net.load_state_dict(state(5))
    pixels = torch.rand(2, 3, 48, 48)
    mean, std = torch.tensor(TIMM["mean"]), torch.tensor(TIMM["std"])
    expected = net((pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    assert torch.equal(classifier(pixels), expected)


# ---- names of trained models ----


def test_every_seed_includes_the_one_without_a_name(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def write(name: str, seed: int) -> None:
        file = store.weights("digits", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(state(), file)
        made = {"recipe": {"seed": seed}}
        notes = {"made_of": made, "member": {"name": name, "timm": "test_vit", "kwargs": {}}}
        file.with_suffix(".json").write_text(json.dumps(notes))

    for name, seed in (("X", 0), ("X@seed1", 1), ("X@seed2", 2), ("Xi", 0), ("Y", 7)):
        write(name, seed)
    write("Y@seed1", 1)

    def names(pattern: str) -> list[str]:
        return [m["name"] for m in trained_members(store, "digits", pattern)]

    assert names("X@*") == ["X", "X@seed1", "X@seed2"]
    assert names("Y@*") == ["Y@seed1"]  # Y was trained with seed 7 under a name of its own
    assert names("*@*") == ["X", "X@seed1", "X@seed2", "Xi", "Y@seed1"]
    assert names("X@seed?") == ["X@seed1", "X@seed2"]
    assert names("X") == ["X"]
    (entry,) = trained_members(store, "digits", "X@seed1")
    (trained,) = parse_members([entry], at_least=1)
    assert (trained.name, trained.timm) == ("X@seed1", "test_vit")
    with pytest.raises(UserError, match=r"no trained model digits/X@sed; did you mean X@seed"):
        names("X@sed")
