"""What both commands do with their arguments before Hydra reads them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.cli import setting
from experiments.cli.config import composed
from experiments.cli.launch import for_all_recipes, spelled_out
from experiments.cli.members import one_member
from netkin.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("model=resnet18", "model.members=[resnet18]"),
        ("model=[vit_s,vit_ti]", "model.members=[vit_s,vit_ti]"),
        ("model=vit_s,vit_ti", "model.members=[vit_s],[vit_ti]"),
        ("model=hf-hub:timm/resnet18", "model.members=[hf-hub:timm/resnet18]"),
        ("model=imagenet69", "model=imagenet69"),  # a list in conf/model
        ("attack=pgd", "attack=pgd"),
        ("--attack.eps=0.1", "attack.eps=0.1"),  # as W&B's agents write it
        ("--config-dir=mine", "--config-dir=mine"),
    ],
)
def test_a_model_stands_for_a_list_of_one(given: str, spelled: str) -> None:
    assert spelled_out([given]) == [spelled]


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        (["similarity=a b.csv"], ["similarity={file: a b.csv}"]),
        (["similarity=a.csv,b.csv"], ["similarity={file: a.csv},{file: b.csv}"]),
        (["similarity=sat69"], ["similarity=sat69"]),
        (["similarity=null"], []),
        (["similarity.dir=copies"], ["similarity.dir=copies", "similarity=sat69"]),
        (
            ["experiment=relatives", "model=resnet50"],
            ["experiment=relatives", "relatives.model=resnet50"],
        ),
    ],
)
def test_a_matrix_is_a_file_or_the_published_one(given: list[str], spelled: list[str]) -> None:
    assert spelled_out(given) == spelled


def test_a_recipe_is_one_of_all_that_an_experiment_trains() -> None:
    """Unless another is given to one of them; a teacher is not trained again in a sweep."""
    given = ["-m", "experiment=hparams", "recipe.epochs=1", "recipe.lr=1,2", "recipes.vit.epochs=3"]
    spelled = [text.replace("=1,2", "=5") for text in for_all_recipes("train", given)]
    config = composed("train", [*spelled[1:], "run=0"])
    assert [config.recipes[kind].epochs for kind in ("resnet", "vit")] == [1, 3]
    assert config.recipes.vit.lr == config.recipes.resnet.lr == 5
    given = ["experiment=distill", "teacher=a", "recipe.epochs=1", "recipe.lr=1,2"]
    spelled = [text.replace("=1,2", "=5") for text in for_all_recipes("train", given)]
    config = composed("train", spelled)
    own = composed("train", ["experiment=distill", "teacher=a"]).recipe
    assert (config.recipes.teacher.epochs, config.recipes.teacher.lr) == (1, own.lr)
    assert config.recipes.vit.epochs == own.epochs
    assert for_all_recipes("train", ["recipe.epochs=1"]) == ["recipe.epochs=1"]


def test_both_commands_have_the_same_hardware() -> None:
    with initialize_config_dir(str(Path(ROOT, "conf")), version_base="1.3"):
        assert compose("evaluate").hardware == compose("train").hardware


@pytest.mark.parametrize(
    ("mode", "n_jobs", "at_once", "given", "threads"),
    [
        (RunMode.RUN, 4, 1, "auto", 16),
        (RunMode.RUN, 4, 3, "auto", 5),
        (RunMode.RUN, 4, 64, "auto", 1),
        (RunMode.RUN, 4, 1, 2, 2),
        (RunMode.MULTIRUN, 4, 1, "auto", 4),  # joblib's jobs at once
        (RunMode.MULTIRUN, -1, 1, "auto", 1),  # one a core
        (RunMode.MULTIRUN, None, 1, "auto", 16),  # one after the other
    ],
)
def test_the_cores_are_shared_by_what_works_at_once(
    mode: RunMode,
    n_jobs: int | None,
    at_once: int,
    given: int | str,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hydra = SimpleNamespace(mode=mode, launcher={"n_jobs": n_jobs})
    monkeypatch.setattr(setting.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(setting, "_cores", lambda: 16)
    config = OmegaConf.create({"hardware": {"threads": given}})
    assert setting.thread_count(config, at_once) == threads


def test_a_teacher_is_a_name_or_the_fields_of_a_member() -> None:
    with initialize_config_dir(str(Path(ROOT, "conf")), version_base="1.3"):
        teacher = "{name: mine, torchvision: resnet18, mean: 0.5, std: 0.25}"
        config = compose("train", ["experiment=distill", f"teacher={teacher}"])
        named = compose("train", ["experiment=distill", "teacher=test_vit"])
        listed = compose("train", [f"model.members=[test_vit,{teacher}]"])
    assert one_member(listed, "mine", "teacher").torchvision == "resnet18"
    member = one_member(config, config.teacher, "teacher")
    assert (member.name, member.torchvision) == ("mine", "resnet18")
    assert one_member(named, named.teacher, "teacher").name == "test_vit"
    with pytest.raises(UserError, match="name a teacher with teacher=NAME"):
        one_member(named, None, "teacher")
