"""What a user gets wrong: one clear line, exit code 1, nothing half-done."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, SMALL, Mistake, run_command, run_here


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.members=[resnet5O,test_vit]", "no model 'resnet5O'; did you mean resnet50"),
        ("model.members=[test_vit]", "model.members names 1 model, expected 2 or more"),
        ("model.members=[test_vit,test_vit]", "names test_vit more than once"),
        ("model.members=test_vit", "must be a list such as [test_vit,vit_ti]"),
        ("attack=pdg", "pgd"),
        ("experiment=pairwize", "pairwise"),
        ("attack.stepz=3", "attack.stepz"),
        ("attack.eps=-8/255", "attack.eps=-8/255 is outside (0, 1]"),
        ("attack.eps=8", "did you mean 8/255"),
        ("attack.eps=8of255", "attack.eps=8of255 is not a number"),
        ("attack.eps=0.5/255", "use a larger eps, or store.dtype=float32"),
        ("attack.step_size=0", "attack.step_size=0 is outside (0, 1]"),
        ("attack.steps=0", "attack.steps must be a whole number of 1 or more, got 0"),
        ("recipe.epochs=0", "recipe.epochs must be a whole number of 1 or more, got 0"),
        ("recipe.lr=0", "recipe.lr must be above 0"),
        ("+recipe.epoch=3", "recipe has no setting 'epoch'; did you mean epochs"),
        ("~recipe.lr", "recipe needs a value of lr"),
        ("recipe.keep=ema", "recipe.keep=ema needs ema_decay"),
        ("+subset.per_clas=3", "subset has no setting 'per_clas'; did you mean per_class"),
        ("subset.per_class=3 subset.fraction=0.1", "subset.per_class and fraction exclude"),
        ("dataset=folder dataset.root=/nowhere", "dataset.root=/nowhere is not a folder"),
        ("dataset=folder dataset.root=/tmp dataset.split=x", "dataset.split must be"),
        ("logger=csv logger.kind=tensorbord", "logger.kind must be wandb, tensorboard, csv"),
        ("hardware.train_precision=half", "hardware.train_precision must be 32-true or"),
        ("hardware.batch_size=0", "hardware.batch_size must be auto or a whole number"),
        (
            "hardware.members_at_once=none",
            "hardware.members_at_once must be auto or a whole number",
        ),
        ("store.dtype=int4", "store.dtype must be uint8 or float32, got 'int4'"),
        ("score.eps_s=0", "score.eps_s must be above 0"),
        ("subset.per_class=1000", "takes more images than class"),
        ("dataset.weights=pretraind", "dataset.weights must be train or pretrained, got 'pretr"),
        ("dataset.input_size=null", "dataset.input_size must be a whole number of 1 or more"),
        ("dataset.name=null", "dataset.name must be a name, got None"),
        ("dataset.images.split=val", "splits train and test, not 'val'"),
        ("store.dir=/proc/store", "store.dir=/proc/store cannot be written"),
        ("attack._target_=netkin.attacks.PDG", "PDG"),
        ("logger=wandb logger.mode=ofline", "logger.mode must be online or offline"),
        ("subset=10", "subset=10: subset must be one of compatible, digits, file"),
        ("subset=10,20 -m", "subset=10,20: subset must be one of compatible"),
        ("attack=pgd,pdg -m", "attack=pdg: no such option; did you mean pgd?"),
        ("clusters.sedes=3,4 experiment=clusters -m", "no setting clusters.sedes; did you mean"),
        ("attack=true", "attack=true: attack must be one of apgd, autoattack"),
        ("attack=[pgd", "attack=[pgd cannot be read as KEY=VALUE"),
        ("attack.epsilon=4/255", "no setting attack.epsilon; did you mean attack.eps"),
        ("atack=pgd", "no setting atack; did you mean attack"),
        ("seed=3", "it is one of experiment=landmarks, precision, probe; did"),
        ("student=vit_ti", "it is one of experiment=distill, distillation, teachers"),
        ("recipe.sched_args={foo:1}", "to add it, type +recipe.sched_args.foo=VALUE"),
        ("experiment=distil", "no such option; did you mean distill, distillation?"),
        ("dataset=folder", "dataset.root has no default: type dataset.root=VALUE"),
        ("experiment=novel", "model.candidate has no default"),
        ("store=foo", "store=foo: store holds settings, such as store.dir=VALUE"),
        ("attack.seed=abc", "attack.seed must be a whole number of 0 or more, got 'abc'"),
        ("attack.seed=-1", "attack.seed must be a whole number of 0 or more, got -1"),
        ("attack.random_start=maybe", "attack.random_start must be true or false, got 'maybe'"),
        ("attack=mim attack.momentum=.inf", "attack.momentum must be a number of 0 or more"),
        ("recipe.opt=adamax2", "recipe.opt must be one of timm's"),
        ("recipe.sched=cosin", "recipe.sched must be one of cosine"),
        ("+recipe.opt_args.foo=1", "recipe.opt=adamw with {'fused': True, 'foo': 1}: "),
        (f"model.members=[test_vit,{{name:{'a' * 260},timm:test_vit}}]", "200 characters at most"),
    ],
)
def test_one_line(mistake: Mistake, override: str, expected: str) -> None:
    assert expected in mistake(*override.split())


def test_a_folder_is_of_one_config_and_one_run_at_a_time(small_run: Path, tmp_path: Path) -> None:
    """Another config and a run beside it are refused before anything in the folder changes."""
    run, store = tmp_path / "run", f"store.dir={small_run / 'store'}"
    shutil.copytree(small_run / "first", run)
    given = [*SMALL, store, f"hydra.run.dir={run}", "logger=none"]
    (run / ".run.json").unlink()
    assert run_here(*given, cwd=tmp_path, again=True).returncode == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    other = run_here(*given, "score.bootstrap=10", cwd=tmp_path, again=True)
    assert other.returncode == 1 and other.stderr.count("\n") == 1
    assert "holds the results of a run with score.bootstrap = 1000, now it is 10" in other.stderr
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert run_here(*given, "hardware.fuse=false", cwd=tmp_path, again=True).returncode == 0
    with (run / ".run.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        beside = run_here(*given, cwd=tmp_path, again=True)
    assert beside.returncode == 1
    assert "another run is writing to" in beside.stderr and beside.stderr.count("\n") == 1


def test_an_unwritable_store(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written (Not a directory)" in mistake("store.dir=file/store")


@pytest.mark.slow
def test_weights_trained_otherwise(small_run: Path, mistake: Mistake) -> None:
    said = mistake(*SMALL, f"store.dir={small_run / 'store'}", "recipe.epochs=5")
    assert "were trained with recipe.epochs = 4, now it is 5" in said
    other = "hardware.train_precision=bf16-mixed"
    said = mistake(*SMALL, f"store.dir={small_run / 'store'}", other)
    assert "were trained with precision = nothing, now it is bf16-mixed" in said


@pytest.mark.slow
def test_members_that_do_not_fit_the_dataset(small_run: Path, mistake: Mistake) -> None:
    store = f"store.dir={small_run / 'store'}"
    weights = small_run / "store" / "weights" / "digits" / "vit_ti.safetensors"
    many = f"{{name: many, timm: test_vit, checkpoint: {weights}, kwargs: {{num_classes: 1000}}}}"
    assert "many has 1000 classes, digits has 10" in mistake(
        f"model.members=[test_byobnet,{many}]", *SMALL[1:], store, "hardware.members_at_once=1"
    )
    other = f"{{name: other, timm: test_resnet, checkpoint: {weights}}}"
    said = mistake(
        f"model.members=[test_byobnet,{other}]", *SMALL[1:], store, "hardware.members_at_once=1"
    )
    assert "other: weights" in said and "do not fit: conv1" in said
    nowhere = "{name: none, timm: test_resnet, checkpoint: /nowhere.pth}"
    said = mistake(f"model.members=[test_byobnet,{nowhere}]", *SMALL[1:], store)
    assert "there is no checkpoint /nowhere.pth (of none)" in said


@pytest.mark.slow
def test_nan_logits_name_the_model_and_images(small_run: Path, tmp_path: Path) -> None:
    """By the real command, in worker processes; what was computed before stays."""
    state = load_file(small_run / "store" / "weights" / "digits" / "test_byobnet.safetensors")
    state["head.fc.bias"] = torch.full_like(state["head.fc.bias"], float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    broken = f"{{name: broken, timm: test_byobnet, checkpoint: {tmp_path / 'nan.safetensors'}}}"
    before = sorted((small_run / "store").rglob("*.safetensors"))
    done = run_command(
        f"model.members=[test_byobnet,{broken}]",
        *SMALL[1:],
        f"store.dir={small_run / 'store'}",
        "logger=none",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "error: broken gives NaN or infinite logits on 100 of 100 clean images" in done.stderr
    assert "digits/" in done.stderr
    assert sorted((small_run / "store").rglob("*.safetensors")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    assert "cannot be written (Permission denied)" in mistake()


@pytest.mark.slow
def test_help_and_composition(tmp_path: Path) -> None:
    helped = run_command("--help", cwd=tmp_path)
    assert helped.returncode == 0, helped.stderr
    for words in (
        "How related are image classifiers?",
        "apgd, autoattack, clean, fgsm, mim, noise, patchfool, pgd",
        "Which models form clusters, and what have those in common?",
        "Experiments of train.py",
        "images in a unit of work",
    ):
        assert words in helped.stdout
    assert max(map(len, helped.stdout.splitlines())) <= 80
    composed = run_command("--cfg", "job", cwd=tmp_path)
    assert composed.returncode == 0 and "steps: 50" in composed.stdout
    assert ROOT.name not in os.listdir(tmp_path)
