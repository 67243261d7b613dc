"""What a user gets wrong: one clear line, exit code 1, nothing half-done."""

import fcntl
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.cli.config import EXPERIMENTS, check, check_read, composed, settings
from experiments.cli.launch import spelled_out
from experiments.cli.mistakes import ENDS, check_additions, one_line
from tests.conftest import SMALL, Mistake, run_here

CONFIG = {
    # what is typed: the setting or option that the error names, and what it offers
    "attack=pdg": ("attack=pdg", "pgd"),
    "experiment=pairwize": ("experiment=pairwize", "pairwise"),
    "atack=pgd": ("atack", "attack"),
    "attack.stepz=3": ("attack.stepz", "attack.steps"),
    "clusters.sedes=3 experiment=clusters": ("clusters.sedes", "clusters.seeds"),
    "student=vit_ti": ("student", "distillation"),
    "similarity=a.csv": ("similarity", "clusters"),
    "recipe.sched_args={foo:1}": ("recipe.sched_args.foo", "+recipe.sched_args.foo=VALUE"),
    "+store.dirr=x": ("store.dirr", "store.dir"),
    "+foo=1": ("foo", "--help"),
    "clusters=foo experiment=clusters": ("clusters=foo", "clusters.restarts"),
    "attack=[pgd": ("attack=[pgd", "KEY=VALUE"),
    "quiet=maybe": ("quiet", "true or false"),
    "store.dtype=int4": ("store.dtype", "uint8 or float32"),
    "store.shard_size=1.5": ("store.shard_size", "whole number of 1 or more"),
    "store.shard_size=0": ("store.shard_size", "whole number of 1 or more"),
    "score.eps_s=0": ("score.eps_s", "above 0"),
    "hardware.batch_size=0": ("hardware.batch_size", "auto or a whole number"),
    "hardware.pin_memory=perhaps": ("hardware.pin_memory", "auto or true or false"),
    "experiment=plan plan.devices=[1,x]": ("plan.devices", "each a whole number"),
    "experiment=clusters clusters.seed=-1": ("clusters.seed", "of 0 or more"),
    "experiment=clusters k=many": ("k", "auto or a whole number"),
}


def line_of(script: str, *given: str) -> str:
    """The line that a command would end with before it does anything; "" if there is none."""
    try:
        overrides = spelled_out(given)
        check_additions(overrides, script)
        config = composed(script, overrides)
        check(config, script)
        check_read(config, script, overrides)
    except ENDS as error:
        return one_line(error, script, overrides)
    return ""


@pytest.mark.parametrize("given", CONFIG)
def test_a_setting_that_is_wrong_is_named_with_what_it_may_be(given: str) -> None:
    named, offered = CONFIG[given]
    line = line_of("evaluate", *given.split())
    assert re.search(rf"(^|[ `]){re.escape(named)}\b", line) and offered in line, line
    assert "\n" not in line


UNREAD = {
    "train experiment=seeds run=0 model=vit_ti": "model.members",
    "train experiment=hparams run=0 seed=3": "seed",
    "train experiment=distill teacher=a recipes.vit.lr=1": "recipes.vit",
    "train recipes.teacher.lr=1": "recipes",
    "evaluate experiment=clusters similarity=a.csv attack=fgsm": "attack",
    "evaluate experiment=index subset=quick": "subset",
    "evaluate dataset=imagenet dataset.root=x recipe.epochs=2": "recipe",
}


@pytest.mark.parametrize("given", UNREAD)
def test_a_setting_that_the_run_would_not_read_is_refused(given: str) -> None:
    script, *words = given.split()
    assert f"does not read {UNREAD[given]}" in line_of(script, *words)
    assert not line_of(script, *words[:-1])


@pytest.mark.slow
def test_every_setting_refuses_another_type() -> None:
    """Of each experiment: a list for a number; and each default is valid."""
    tried: set[tuple[str, str]] = set()
    for name in [*EXPERIMENTS, "pairwise", "scratch"]:
        script = "train" if name in ("distill", "seeds", "hparams", "scratch") else "evaluate"
        config = composed(script, [f"experiment={name}"])
        for key, setting in settings(name, script).items():
            if (script, key) in tried:  # what all experiments share
                continue
            tried.add((script, key))
            if {bool, int, float} & setting.kinds:
                wrong = config.copy()
                with pytest.raises(ENDS, match=re.escape(key.rpartition(".")[2])):
                    OmegaConf.update(wrong, key, [["x"]], force_add=True)
                    check(wrong, script)
            elif setting.default not in ("???", None):
                assert setting.allows(setting.default) or "$" in str(setting.default), key


def test_valid_settings_pass() -> None:
    for given in (
        "score.half_width=0.3",
        "experiment=clusters similarity=sat69 k=auto",
        "experiment=relatives similarity=sat69 model=resnet50",
        "+recipe.opt_args.eps=1e-9",
        "+subset.per_clas=3",  # refused by what it is passed to
        "hardware.devices=auto hardware.pin_memory=false",
    ):
        assert line_of("evaluate", *given.split()) == ""
    assert line_of("train", "experiment=distill", "teacher=regnety_032") == ""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.members=[resnet5O,test_vit]", "resnet50"),
        ("model.members=[test_vit]", "model.members"),
        ("model.members=[test_vit,test_vit]", "test_vit"),
        ("model.members=[test_vit,{name:a,_target_:nowhere.Net}]", "nowhere.Net"),
        ("attack.eps=8", "8/255"),
        ("attack.eps=0.5/255", "store.dtype=float32"),
        ("recipe.epochs=0", "recipe.epochs"),
        ("+recipe.epoch=3", "epochs"),
        ("~recipe.lr", "lr"),
        ("+subset.per_clas=3", "per_class"),
        ("subset.per_class=3 subset.fraction=0.1", "subset.per_class"),
        ("dataset=folder dataset.root=/nowhere", "dataset.root"),
        ("logger=csv logger.kind=tensorbord", "logger.kind"),
        ("subset.per_class=1000", "class"),
        ("dataset.input_size=null", "dataset.input_size"),
        ("store.dir=/proc/store", "store.dir=/proc/store"),
        ("attack._target_=netkin.attacks.PDG", "PDG"),
        ("attack=pgd,pdg -m", "pgd"),
        ("dataset=folder", "dataset.root=VALUE"),
        ("attack.seed=abc", "attack.seed"),
        (f"model.members=[test_vit,{{name:{'a' * 260},timm:test_vit}}]", "200"),
    ],
)
def test_one_line(mistake: Mistake, override: str, expected: str) -> None:
    """What the classes refuse that settings are passed to, by the whole command."""
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


@pytest.mark.slow
def test_weights_trained_otherwise(small_run: Path, mistake: Mistake) -> None:
    said = mistake(*SMALL, f"store.dir={small_run / 'store'}", "recipe.epochs=5")
    assert "recipe.epochs = 4, now it is 5" in said
    other = "hardware.train_precision=bf16-mixed"
    said = mistake(*SMALL, f"store.dir={small_run / 'store'}", other)
    assert "precision = nothing, now it is bf16-mixed" in said


@pytest.mark.slow
def test_members_that_do_not_fit_the_dataset(small_run: Path, mistake: Mistake) -> None:
    store = f"store.dir={small_run / 'store'}"
    weights = small_run / "store" / "weights" / "digits" / "vit_ti.safetensors"
    many = f"{{name: many, timm: test_vit, checkpoint: {weights}, kwargs: {{num_classes: 1000}}}}"
    assert "many has 1000 classes, digits has 10" in mistake(
        f"model.members=[test_byobnet,{many}]", *SMALL[1:], store, "hardware.members_at_once=1"
    )
    other = f"{{name: misfit, timm: test_resnet, checkpoint: {weights}}}"
    said = mistake(
        f"model.members=[test_byobnet,{other}]", *SMALL[1:], store, "hardware.members_at_once=1"
    )
    assert "misfit: weights" in said and "do not fit: conv1" in said
    nowhere = "{name: none, timm: test_resnet, checkpoint: /nowhere.pth}"
    said = mistake(f"model.members=[test_byobnet,{nowhere}]", *SMALL[1:], store)
    assert "there is no checkpoint /nowhere.pth (of none)" in said
