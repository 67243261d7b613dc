"""The command with members that are not timm's, in worker processes."""

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import timm
import torch
from safetensors.torch import load_file

from netkin.store.files import read_tensors
from netkin.zoo.build import weights_sha256
from tests.conftest import ROOT, run_command
from tests.zoo.own_nets import load


def run(folder: Path, members: list[str], *overrides: str, **environment: str):
    return run_command(
        f"model.members=[{','.join(members)}]",
        "attack=pgd",
        "attack.steps=2",
        "recipe.epochs=1",
        "subset=quick",
        "hardware.members_at_once=2",
        "logger=none",
        "hydra.run.dir=run",
        *overrides,
        cwd=folder,
        **environment,
    )


@pytest.mark.slow
def test_ones_own_network_trained_given_and_brought(tmp_path: Path) -> None:
    """Networks of a package that only PYTHONPATH knows: one trained here, and the same function as
    a gray network's checkpoint and from a function that loads it. Digits are gray."""
    package = tmp_path / "somewhere" / "my_pkg"
    package.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("own_nets.py"), package / "__init__.py")
    path = f"{package.parent}:{ROOT / 'src'}"
    trained = "{name: trained, _target_: my_pkg.Net, mean: 0.3, std: 0.4}"
    done = run(tmp_path, [trained, "test_byobnet"], "recipe.epochs=6", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "store/weights/digits/trained.safetensors"
    notes = json.loads(file.with_suffix(".json").read_text())
    assert notes["made_of"]["preprocessing"]["std"] == [0.4, 0.4, 0.4]
    assert notes["member"]["target"] == "my_pkg.Net" and "timm" not in notes["made_of"]

    state = load_file(file)
    torch.save({"model_state_dict": state}, package.parent / "brought.pt")
    state["conv.weight"] = state["conv.weight"].sum(1, keepdim=True)
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "gray.ckpt")
    members = [
        "digits/trained",
        "{name: gray, _target_: my_pkg.Net, checkpoint: gray.ckpt, in_chans: 1, family: net, "
        "kwargs: {channels: 1, output: dict}, mean: 0.3, std: 0.4}",
        "{name: brought, _target_: my_pkg.load, pretrained: true, mean: 0.3, std: 0.4, "
        f"kwargs: {{file: {package.parent / 'brought.pt'}}}}}",
    ]
    done = run(tmp_path, members, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    models = pl.read_csv(tmp_path / "run" / "models.csv")
    assert models["model"].to_list() == ["trained", "gray", "brought"]
    assert models["clean_accuracy"].n_unique() == 1 and models["clean_accuracy"][0] > 0.3
    (clean,) = (tmp_path / "store" / "digits").glob("quick-*/clean")
    logits = [
        read_tensors(clean / name / "logits.safetensors")["logits"] for name in models["model"]
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits[0], logits[2])
    made = json.loads((clean / "brought" / "identity.json").read_text())["model"]
    assert made["weights_sha256"] == weights_sha256(load(str(package.parent / "brought.pt")))

    # Without the package there is one line that says so.
    done = run(tmp_path, [trained, "test_byobnet"])
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "there is no module my_pkg (my_pkg.Net); start in its folder" in done.stderr


@pytest.mark.slow
def test_a_module_in_the_current_folder(tmp_path: Path) -> None:
    """It is found without PYTHONPATH, by the worker processes, too; and a member of one's own that
    cannot be right is one line before anything is trained or evaluated."""
    shutil.copy(Path(__file__).with_name("own_nets.py"), tmp_path / "mine.py")
    net = "{name: net, _target_: mine.Net, mean: 0.3, std: 0.4}"
    gray = "{name: gray, _target_: mine.Net, in_chans: 1, kwargs: {channels: 1}, mean: 0, std: 1}"
    done = run(tmp_path, [net, gray])
    assert done.returncode == 0, done.stderr
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "other.pt")
    for member, message in (
        ("{name: a, _target_: mine.Net, checkpoint: other.pt}", "a: weights other.pt do not fit"),
        ("{name: a, _target_: mine.Nett}", "has no 'Nett'; did you mean Net"),
        ("{name: a, timm: test_vit, checkpoint: other.pt}", "a: weights other.pt do not fit"),
    ):
        done = run(tmp_path, [net, member], "hydra.run.dir=wrong", "subset.per_class=9")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr
        assert not re.search(r"^(train|clean) ", done.stdout, re.M)
