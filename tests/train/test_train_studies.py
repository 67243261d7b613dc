"""train.py: its studies, their weights in the store, and evaluate.py on these weights."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from experiments.train.distill import paired_gain, sentences
from experiments.train.variants import label, varied
from netkin.analysis.select import choose_teachers
from netkin.analysis.statistics import pearson, t_interval
from netkin.analysis.verdict import verdict
from netkin.errors import UserError
from netkin.report.text import minus
from netkin.store.files import file_sha256
from netkin.store.layout import Store
from netkin.training import checkpoint
from netkin.training.recipe import Recipe
from netkin.training.weights import accuracies_by_seed, notes
from tests import helpers
from tests.conftest import ROOT, Mistake, run_here

QUICK = ("recipe.epochs=1", "recipes.teacher.epochs=1", "logger=csv")
TEACHERS = ("test_byobnet", "test_resnet", "test_vit")


def run(to: Path, *arguments: str, store: Path | None = None) -> Path:
    """train.py in this process; returns the folder of its outputs."""
    folder = to.parent if store is None else store.parent
    done = trained(to, *arguments, f"store.dir={folder / 'store'}")
    assert done.returncode == 0, done.stderr
    return to


def trained(to: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(f"hydra.run.dir={to}", *arguments, cwd=to.parent, script="train")


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store holds students of three teachers, each trained for an epoch."""
    folder = tmp_path_factory.mktemp("students")
    for teacher in TEACHERS:
        run(folder / teacher, "experiment=distill", f"teacher={teacher}", *QUICK)
    return folder


@pytest.mark.slow
def test_distill(students: Path) -> None:
    table = pl.concat([pl.read_csv(students / t / "result.csv") for t in TEACHERS])
    assert table["student"].to_list() == [f"vit_ti@{teacher}" for teacher in TEACHERS]
    assert table["alone_accuracy"].n_unique() == 1  # one student without a teacher serves all
    assert (table["n"] == 500).all()
    gain = table["student_accuracy"] - table["alone_accuracy"]
    np.testing.assert_allclose(table["gain"], gain, atol=1e-12)
    assert ((table["gain_low"] <= table["gain"]) & (table["gain"] <= table["gain_high"])).all()
    weights = students / "store" / "weights" / "digits"
    names = {file.stem for file in weights.glob("*.json")}
    assert names == {*TEACHERS, *(f"vit_ti@{teacher}" for teacher in TEACHERS), "vit_ti@none"}
    curves = pl.read_csv(students / "test_vit" / "curves.csv")
    assert {"label_loss", "teacher_loss", "teacher_agreement", "test_accuracy"} <= {*curves.columns}
    helpers.has_figures(students / "test_vit", "curves")
    page = helpers.page_text(students / "test_vit" / "report.html")
    assert "Does vit_ti learn more with the teacher test_vit than from the labels alone?" in page
    assert (table["seeds"] == 1).all() and "Not certain: trainings differ by their seeds" in page
    assert f"{100 * table['student_accuracy'][2]:.1f}%" in page and "teacher: test_vit" in page
    metrics = pl.read_csv(students / "test_vit" / "metrics.csv")["name"].to_list()
    assert {"train/teacher_loss", "alone/train/loss", "teacher/val/accuracy", "gain"} <= {*metrics}


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again(students: Path) -> None:
    weights = students / "store" / "weights"
    before = {file: file.stat().st_mtime_ns for file in weights.rglob("*")}
    words = ("experiment=distill", "teacher=test_vit", *QUICK)
    done = trained(students / "again", *words, f"store.dir={students / 'store'}")
    assert done.returncode == 0, done.stderr
    assert {file: file.stat().st_mtime_ns for file in weights.rglob("*")} == before
    first, again = (students / name / "result.csv" for name in ("test_vit", "again"))
    assert first.read_bytes() == again.read_bytes()
    lines = done.stdout.splitlines()
    assert not any(line.startswith("train ") for line in lines)
    assert lines[-2:] == [
        f"Weights  {weights}/digits/vit_ti@test_vit.safetensors",
        "Member   digits/vit_ti@test_vit of evaluate.py",
    ]


@pytest.mark.slow
def test_distillation(students: Path) -> None:
    out = helpers.run(
        "distillation",
        students / "distillation",
        [
            *("recipe.epochs=1", "attack.steps=1", "hardware.members_at_once=1", "logger=none"),
            f"store.dir={students / 'store'}",
        ],
    )
    table = pl.read_csv(out / "distillation.csv")
    assert sorted(table["teacher"]) == sorted(TEACHERS)
    bases = dict(zip(table["teacher"], table["base"], strict=True))
    assert bases["test_vit"] == "Transformer" and bases["test_resnet"] == "CNN"
    assert table.filter("same_base")["teacher"].to_list() == ["test_vit"]
    for row in table.to_dicts():
        of = pl.read_csv(students / row["teacher"] / "result.csv").to_dicts()[0]
        assert row["student_accuracy"] == pytest.approx(of["student_accuracy"])
    helpers.has_figures(out, "distillation_similarity", "distillation_accuracy")
    page = helpers.page_text(out / "report.html")
    # The members that ran are those of the store; neither config claims the dataset's.
    assert "members: auto" in page and "test_mambaout" not in page.split("members: auto")[1][:200]
    config = OmegaConf.load(out / ".hydra" / "config.yaml")
    assert config.model.members == "auto"
    r = pearson(table["similarity"], 100 * table["student_accuracy"]).r
    assert minus(f"r = {r:.2f}") in page


@pytest.mark.slow
def test_students_are_members(students: Path) -> None:
    """By name and by pattern, next to any other; and of evaluate.py as a command."""
    done = run_here(
        "model.members=[digits/vit_ti@test_v*,test_resnet,digits/vit_ti@none]",
        *("recipe.epochs=1", "attack.steps=1", "logger=none", "hardware.members_at_once=1"),
        "hydra.run.dir=members",
        cwd=students,
    )
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(students / "members" / "models.csv")
    assert table["model"].to_list() == ["vit_ti@test_vit", "test_resnet", "vit_ti@none"]
    assert table["params"][0] > table["params"][2]  # the token, its position and its head
    assert table["family"].to_list() == ["ViT", "ResNet", "ViT"]


def test_distill_on_stored_weights(folder: Path) -> None:
    """On the small run's weights: teacher and student alone are in the store, and are used."""
    weights = folder / "store" / "weights" / "digits"
    before = {*weights.iterdir()}
    arguments = ("experiment=distill", "teacher=test_byobnet", "distillation=soft")
    out = run(folder / "soft", *arguments, "recipe=digits_adamw", "recipe.epochs=4", "logger=none")
    assert {file.stem for file in {*weights.iterdir()} - before if file.suffix == ".json"} == {
        "vit_ti@test_byobnet"
    }
    assert pl.read_csv(out / "result.csv")["kind"].to_list() == ["soft"]


def test_scratch(folder: Path) -> None:
    """The zoo's own training under the zoo's name; a seed has a name of its own."""
    weights = folder / "store" / "weights" / "digits"
    before = file_sha256(weights / "vit_ti.safetensors")
    run(
        folder / "scratch",
        "experiment=scratch",
        "recipe=digits_adamw",
        "recipe.epochs=4",
        "logger=none",
    )
    assert file_sha256(weights / "vit_ti.safetensors") == before
    run(folder / "other", "recipe.epochs=1", "model=test_resnet", "seed=2", "logger=none")
    result = pl.read_csv(folder / "other" / "result.csv").to_dicts()[0]
    assert result["model"] == "test_resnet@seed2" and result["seed"] == 2
    assert (weights / "test_resnet@seed2.safetensors").is_file()


def _check_sweep(experiment: str, runs: str, folder: Path, names: Sequence[str]) -> None:
    to = folder / experiment
    run(
        folder / "unused",
        *(f"experiment={experiment}", f"run={runs}", f"hydra.sweep.dir={to}"),
        *("fast_dev_run=true", "logger=none"),
    )
    models = [pl.read_csv(to / f"{i}" / "result.csv")["model"][0] for i in range(len(names))]
    assert models == list(names)
    assert not (folder / "store" / "weights" / "digits" / f"{names[0]}.json").exists()


def test_seeds(folder: Path) -> None:
    _check_sweep("seeds", "20,21", folder, ["test_resnet@seed20", "vit_s@seed0"])


@pytest.mark.slow
def test_hparams(folder: Path) -> None:
    names = ["test_resnet@lr0.1-wd0.5-cosine", "vit_s@lr1-wd1"]
    _check_sweep("hparams", "0,36", folder, names)


def test_teachers(tmp_path: Path) -> None:
    names = [f"m{i}" for i in range(8)]
    s = np.full((8, 8), 4.6)
    s[0, 1:] = s[1:, 0] = [3.0, 2.6, 2.4, 2.0, 1.5, 1.0, 0.5]
    path = tmp_path / "matrix.csv"
    pl.DataFrame({"": names, **{n: s[:, i] for i, n in enumerate(names)}}).write_csv(path)
    arguments = (f"similarity={path}", "student=m0", "teachers.number=4", "logger=none")
    out = helpers.run("teachers", tmp_path / "teachers", arguments)
    table = pl.read_csv(out / "teachers.csv")
    assert table.filter(chosen="above")["teacher"].to_list() == ["m1", "m2"]
    assert table.filter(chosen="sampled").height == 2
    page = helpers.page_text(out / "report.html")
    assert "python train.py -m experiment=distill student=m0 teacher=m1,m2," in page
    assert "Can an effect of similarity show in their students? No:" in page
    helpers.has_figures(out, "teachers")


def test_the_sample_follows_the_distribution() -> None:
    rng = np.random.default_rng(0)
    similarities = np.concatenate([rng.normal(1.0, 0.3, 300), rng.uniform(2.6, 3, 5)])
    names = [str(i) for i in range(305)]
    table = choose_teachers(names, similarities, 25, 2.5, seed=1)
    assert table.filter(chosen="above").height == 5
    sampled = np.sort(table.filter(chosen="sampled")["similarity"].to_numpy())
    assert len(sampled) == 20
    quantiles = np.quantile(similarities[:300], (np.arange(20) + 0.5) / 20)
    assert np.abs(sampled - quantiles).mean() < 0.1
    assert table.equals(choose_teachers(names, similarities, 25, 2.5, seed=1))
    assert not table.equals(choose_teachers(names, similarities, 25, 2.5, seed=2))
    with pytest.raises(UserError, match="number must be at most 5, since there are 5"):
        choose_teachers(names[:5], similarities[:5], 30)


def test_a_sweeps_settings() -> None:
    recipe = Recipe(epochs=90, batch_size=8, lr=0.1, weight_decay=1e-4, sched="step")
    entry = {"lr": 0.2, "weight_decay": 5, "sched": "cosine"}
    variant = varied(recipe, entry)
    assert (variant.lr, variant.weight_decay, variant.sched) == (
        pytest.approx(0.02),
        5e-4,
        "cosine",
    )
    assert label(entry) == "lr0.2-wd5-cosine" and label({"seed": 3}) == "seed3"
    step = varied(recipe, {**entry, "sched": "step"})
    assert step.sched_args == {"decay_epochs": 30, "decay_rate": 0.1}
    assert varied(recipe, {"seed": 3}).seed == 3


def test_a_student_learns_more_where_its_seeds_say_so() -> None:
    """Of pairs of trainings that differ by chance 5% may have a verdict, and hardly fewer do."""
    rng = np.random.default_rng(0)
    said = []
    for _ in range(2000):
        gains = rng.normal(0, 0.02, 5)
        low, high = t_interval(gains)
        said.append(verdict(gains.mean(), (low, high)))
    assert 0.03 < 1 - said.count("Not certain") / len(said) < 0.065
    rates = ("student_accuracy", "alone_accuracy", "teacher_accuracy", "agreement")
    of = {"teacher": "t", "seed": 0, "n": 9, "seeds": 5, "seeds_gain": 0.02, "gain": 0.0}
    of |= {"gain_low": 0.0, "gain_high": 0.0, "seeds_low": 0.01, "seeds_high": 0.03}
    of |= dict.fromkeys(rates, 0.5)
    assert sentences("vit_ti", of)[0].startswith("Yes: over 5 seeds the teacher adds +2.0 points")
    one = {**of, "seeds": 1, "seeds_low": None, "seeds_high": None}
    assert sentences("vit_ti", one)[0].startswith("Not certain")


def test_seeds_of_the_same_training_are_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name, epochs, seed in (("a", 2, 0), ("a@seed1", 2, 1), ("a@long", 3, 0)):
        file = store.weights("digits", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        made_of = {"timm": "a", "recipe": {"epochs": epochs, "seed": seed}}
        of = {"made_of": made_of, "test_accuracy": 0.5 + seed / 10, "test_subset": "full"}
        file.with_suffix(".json").write_text(json.dumps(of))
    like = notes(store.weights("digits", "a@seed1"))
    assert like is not None
    assert accuracies_by_seed(store, "digits", like) == {0: 0.5, 1: 0.6}


def test_gain_by_hand() -> None:
    student, alone = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool)
    gain, low, high = paired_gain(student, alone)
    assert gain == 0.5
    half = 1.959963984540054 * np.sqrt(1 / 3) / 2  # sd of (0, 1, 1, 0) over sqrt(4)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.slow
def test_a_killed_training_continues(tmp_path: Path) -> None:
    """kill -9 in the middle; the same command ends in the bytes of an undisturbed run."""
    arguments = ["recipe.epochs=3", "hardware.threads=1", "logger=none", "hydra.run.dir=run"]
    last = tmp_path / "store" / "training" / "digits" / "vit_ti" / "last.safetensors"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )

    def epochs() -> int:
        with suppress(UserError):  # it is replaced while it is read
            return checkpoint.load(last).epoch if last.is_file() else 0
        return 0

    deadline = time.monotonic() + 300
    while epochs() < 1 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= checkpoint.load(last).epoch < 3
    done = run_here(*arguments, cwd=tmp_path, script="train")
    assert done.returncode == 0, done.stderr
    assert not last.exists()
    (tmp_path / "undisturbed").mkdir()
    run(tmp_path / "undisturbed" / "run", "recipe.epochs=3", "logger=none")
    files = [
        folder / "store" / "weights" / "digits" / "vit_ti.safetensors"
        for folder in (tmp_path, tmp_path / "undisturbed")
    ]
    assert file_sha256(files[0]) == file_sha256(files[1])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("experiment=distill", "name a teacher with teacher=NAME"),
        ("experiment=distill teacher=digits/nobody", "has no trained model digits/nobody"),
        ("experiment=distill teacher=test_vit student=test_resnet", "distillation.token=false"),
        (
            "experiment=distill teacher=test_vit distillation.alpha=0",
            "distillation.alpha must be in",
        ),
        ("recipe.batch_size=2000", "is larger than the training set (1297 images)"),
        ("recipe.mixup=0.8 recipe.batch_size=31", "batch_size=31 must be even"),
        ("model=resnet5O", "no model 'resnet5O'; did you mean resnet50"),
        ("resume=nowhere.safetensors", "there is no checkpoint nowhere.safetensors"),
        ("experiment=pairwise", "experiment=pairwise is run by evaluate.py"),
    ],
)
def test_one_line(mistake: Mistake, overrides: str, expected: str) -> None:
    assert expected in mistake(*overrides.split(), script="train")


@pytest.mark.slow
def test_checkpoints_and_weights_of_others(students: Path, mistake: Mistake) -> None:
    """Weights are no checkpoint of a training; weights of another recipe are not used."""
    store = f"store.dir={students / 'store'}"
    weights = students / "store" / "weights" / "digits" / "test_vit.safetensors"
    assert "is not a training checkpoint" in mistake(
        store, f"resume={weights}", "name=resumed", script="train"
    )
    line = mistake(store, "model=test_vit", "recipe.epochs=3", script="train")
    assert "recipe.epochs = 1, now it is 3" in line and "name=NAME" in line
