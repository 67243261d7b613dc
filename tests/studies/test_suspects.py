"""Members that are run otherwise than they were trained are called out before they are attacked."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import timm
import torch

from tests.conftest import SMALL, run_here
from tests.helpers import digits_as_files, page_text

TEN = "{name: ten, timm: test_byobnet, checkpoint: WEIGHTS, kwargs: {num_classes: 10}, MORE}"
HALF = "mean: 0.5, std: 0.5"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run's digits as files, in folders named 1 to 10: the class 0 is in 1."""
    return digits_as_files(tmp_path_factory.mktemp("numbers"), first=1)


def arguments(root: Path, members: list[str]) -> list[str]:
    return [
        *("dataset=folder", "dataset.name=numbers", f"dataset.root={root}"),
        *(f"model.members=[{','.join(members)}]", "dataset.input_size=32", "attack.steps=2"),
        *("attack.eps=48/255", "logger=none", "hydra.run.dir=run"),
    ]


def ten(small_run: Path, name: str = "ten", more: str = HALF) -> str:
    weights = small_run / "store" / "weights" / "digits" / "test_byobnet.safetensors"
    entry = TEN.replace("WEIGHTS", str(weights)).replace("MORE", more)
    return entry.replace("name: ten", f"name: {name}")


def test_classes_in_another_order(small_run: Path, root: Path, tmp_path: Path) -> None:
    """In text order, 10 comes second: the member is right on one class, and told apart from a bad
    one; in natural order, and by the list of classes, it is fine."""
    members = [ten(small_run), ten(small_run, "twin")]
    stop = run_here(*arguments(root, members), "on_suspect=stop", cwd=tmp_path)
    assert stop.returncode == 1 and stop.stderr.count("\n") == 1
    assert stop.stderr.startswith("error: 2 suspect members, and on_suspect=stop: Suspect: ten: ")
    assert (
        "with its outputs in the natural order of the classes: it predicts 10 as 9, 2 as 10, 3 as 2"
        in stop.stderr
    )
    assert "Use dataset.class_order=natural (for all members" in stop.stderr
    assert len([*(tmp_path / "store").glob("numbers/*/clean/*/logits.safetensors")]) == 2
    assert not [*(tmp_path / "store").glob("numbers/*/pgd-*/adversarial/*/0*")]
    assert not (tmp_path / "run" / "report.html").exists()

    warn = run_here(*arguments(root, members), cwd=tmp_path)
    assert warn.returncode == 0, warn.stderr
    assert "clean 1/2" not in warn.stdout  # kept
    first = warn.stdout.index("Suspect: ten: its accuracy is 1")
    assert warn.stdout.count("Suspect: ten: ") == 1
    assert first < warn.stdout.index("craft 1/2") < warn.stdout.index("Some members are suspect")
    models = pl.read_csv(tmp_path / "run" / "models.csv")
    assert models["clean_accuracy"].max() < 0.2  # type: ignore[operator]
    assert models["suspect"].str.contains("natural order").all()
    assert "Suspect: ten: " in page_text(tmp_path / "run" / "report.html")

    fine = run_here(
        *arguments(root, members), "dataset.class_order=natural", "on_suspect=stop", cwd=tmp_path
    )
    assert fine.returncode == 0, fine.stderr
    assert "Suspect" not in fine.stdout
    models = pl.read_csv(tmp_path / "run" / "models.csv")
    assert models["clean_accuracy"].min() > 0.9  # type: ignore[operator]
    assert models["suspect"].null_count() == 2

    order = [3, 1, 10, 2, 5, 4, 9, 7, 8, 6]
    (tmp_path / "classes.txt").write_text("\n".join(map(str, order)))
    shuffled = run_here(
        *arguments(root, members), "dataset.classes=classes.txt", "on_suspect=stop", cwd=tmp_path
    )
    assert shuffled.returncode == 1
    assert "Use dataset.classes=FILE, with the names of the classes in the order" in shuffled.stderr


def test_chance_unknown_preprocessing_and_novel(
    small_run: Path, root: Path, tmp_path: Path
) -> None:
    """Untrained weights of unknown preprocessing, beside a member that is fine."""
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    torch.save(state, tmp_path / "untrained.pth")
    untrained = "{name: new, timm: test_resnet, checkpoint: untrained.pth}"
    for experiment in ("experiment=pairwise", "experiment=novel", "experiment=craft"):
        given = arguments(root, [ten(small_run), untrained])
        if experiment == "experiment=novel":
            given = arguments(root, [ten(small_run)])
            given += [f"model.candidate={untrained}", "novel.clusters=null"]
        done = run_here(experiment, *given, "dataset.class_order=natural", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        at_chance = "Suspect: new: its accuracy is "
        assert at_chance in done.stdout and "near chance (10.0%). Check that" in done.stdout
        guessed = "Suspect: new: its preprocessing is unknown, and mean = std = 0.5 is a guess."
        assert guessed in done.stdout and "Suspect: ten" not in done.stdout
        if experiment != "experiment=craft":
            assert guessed in page_text(tmp_path / "run" / "report.html")


def test_below_what_the_training_noted(trained: Path, tmp_path: Path) -> None:
    """The notes of another accuracy stand for other weights, images or preprocessing."""
    shutil.copytree(trained / "store", tmp_path / "store")
    notes = tmp_path / "store" / "weights" / "digits" / "vit_ti.json"
    content = json.loads(notes.read_text())
    assert content["test_images"] == 100
    content["test_accuracy"] = 0.95
    notes.write_text(json.dumps(content))
    done = run_here(*SMALL, "logger=none", "hydra.run.dir=run", "on_suspect=stop", cwd=tmp_path)
    assert done.returncode == 1
    assert "Suspect: vit_ti: its accuracy is " in done.stderr
    assert "% on 100 images, but its training recorded 95.0% on 100. Check that" in done.stderr


def test_on_suspect_takes_two_words(tmp_path: Path) -> None:
    done = run_here("on_suspect=ignore", "logger=none", cwd=tmp_path)
    assert done.returncode == 1
    assert "on_suspect must be warn or stop, got 'ignore'" in done.stderr
