"""Landmarks and probes on the small zoo: measured rows, predicted rests, packs and mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.svm import SVC

from netkin.data.digits import Digits
from netkin.zoo.build import Task, build
from netkin.zoo.parse import parse_members
from tests.conftest import run_here
from tests.helpers import has_figures, page_text

MARKS = "landmarks=[a,b,c,v,w]"
Classifier = Callable[[NDArray[np.uint8]], NDArray[np.intp]]
"""Pixels [n, 32, 32, 3] to classes [n]."""


def arguments(folder: Path, leave_out: str = "") -> list[str]:
    """A run of eight members with two members' weights, on a store of its own."""
    store = folder / "eight" / "store"
    if not store.is_dir():
        shutil.copytree(folder / "store" / "weights", store / "weights")
    weights = store / "weights" / "digits"
    vit = "kwargs: {embed_dim: 64, depth: 4, num_heads: 4}"
    members = [
        f"{{name: {name}, timm: test_byobnet, checkpoint: {weights / 'test_byobnet.safetensors'}}}"
        for name in "abcd"
    ] + [
        f"{{name: {name}, timm: vit_tiny_patch16_224, {vit}, "
        f"checkpoint: {weights / 'vit_ti.safetensors'}}}"
        for name in "vwxy"
    ]
    kept = [m for m in members if not leave_out or f"name: {leave_out}," not in m]
    return [
        f"model.members=[{','.join(kept)}]",
        *("attack.steps=4", "subset=quick", "logger=csv", f"store.dir={store}"),
    ]


def run(folder: Path, name: str, *overrides: str) -> Path:
    done = run_here(*overrides, f"hydra.run.dir={name}", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / name


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `landmarks` and its store, which tests only read."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("measured") / "small")
    run(folder, "landmarks", "experiment=landmarks", MARKS, *arguments(folder))
    return folder


@pytest.fixture
def eight(measured: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written to."""
    return shutil.copytree(measured, tmp_path / "eight")


def test_landmarks(measured: Path) -> None:
    """What is measured equals the pairwise matrix."""
    two = measured / "landmarks"
    has_figures(two, "held_out", "landmarks")
    pairs = pl.read_csv(two / "pairs.csv")
    assert pairs["kind"].value_counts().sort("kind")["count"].to_list() == [25, 3]
    assert set(pairs.filter(kind="predicted").select("a", "b").rows()) == {
        ("d", "x"),
        ("d", "y"),
        ("x", "y"),
    }
    outcomes = measured / "eight" / "store" / "digits"
    (table,) = outcomes.glob("quick-*/pgd-*/outcomes")
    rows = pl.read_parquet(table / "*/*.parquet")
    assert rows.filter(source="x", target="y").is_empty()  # no other pair is run
    row = pairs.filter(a="a", b="x").to_dicts()[0]
    there = rows.filter(source="a", target="x")["fooled"].to_numpy()
    back = rows.filter(source="x", target="a")["fooled"].to_numpy()
    assert (row["a_fools_b"], row["b_fools_a"]) == (there.mean(), back.mean())
    k = (there.sum() + back.sum()) / 2
    smoothed = np.log(100 * (k + 0.5) / (len(there) + 1))
    square = pl.read_csv(two / "similarity.csv")
    assert square.filter(pl.col("") == "a")["x"].item() == pytest.approx(smoothed)
    marked = pl.read_csv(two / "measured.csv")
    assert marked.filter(pl.col("") == "x")["y"].item() == 0


def test_a_member_in_another_order_of_classes_is_left_out(folder: Path) -> None:
    """It has no correct image in common with the candidate, which has its weights."""
    file = folder / "store" / "weights" / "digits" / "test_byobnet.safetensors"
    weights = load_file(file)
    for part in ("weight", "bias"):
        weights[f"head.fc.{part}"] = weights[f"head.fc.{part}"].roll(1, 0)
    save_file(weights, folder / "moved.safetensors")
    moved = "{name: moved, timm: test_byobnet, checkpoint: moved.safetensors}"
    words = ["experiment=novel", "novel.clusters=null", "subset=quick", "attack.steps=2"]
    words += [f"model.candidate={{name: new, timm: test_byobnet, checkpoint: {file}}}"]
    words += ["recipe=digits_adamw", "recipe.epochs=4", "hydra.run.dir=novel"]
    done = run_here(*words, f"model.members=[vit_ti,{moved}]", cwd=folder)
    reason = "moved (comparison: no image is classified correctly by moved and new"
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and reason in done.stderr
    assert pl.read_csv(folder / "novel" / "novel.csv")["model"].to_list() == ["vit_ti"]
    done = run_here(*words, f"model.members=[{moved}]", cwd=folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and reason in done.stderr


@pytest.mark.slow
def test_one_sided_landmarks_and_a_study_of_the_output(eight: Path) -> None:
    folder, two = eight, eight / "landmarks"
    pairs = pl.read_csv(two / "pairs.csv").filter(a="a", b="x").to_dicts()[0]
    outcomes = folder / "eight" / "store" / "digits"
    file = f"similarity={two / 'similarity.csv'}"
    out = run(folder, "of_landmarks", "experiment=relatives", file, "relatives.model=x", "k=2")
    assert "3 of 28 scores are predicted, not measured" in page_text(out / "report.html")

    shutil.rmtree(next(outcomes.glob("quick-*/pgd-*")))
    one = run(
        folder, "one_sided", "experiment=landmarks", MARKS, "one_sided=true", *arguments(folder)
    )
    (crafted,) = outcomes.glob("quick-*/pgd-*/adversarial")
    assert sorted(p.name for p in crafted.iterdir()) == ["a", "b", "c", "v", "w"]
    row = pl.read_csv(one / "pairs.csv").filter(a="a", b="x").to_dicts()[0]
    assert row["b_fools_a"] is None and row["score"] == pytest.approx(
        np.log(100 * pairs["a_fools_b"])
    )


def answer(pack: Path, classifier: Classifier, to: Path) -> pl.DataFrame:
    """The classifier's predictions on a pack, in another order, written to a file."""
    table = pl.read_csv(pack / "images.csv")
    pixels = np.stack([np.asarray(Image.open(pack / file)) for file in table["file"]])
    table = table.select("image_id").with_columns(prediction=pl.Series(classifier(pixels)))
    table.reverse().write_csv(to)
    return table


@pytest.mark.slow
def test_probe(eight: Path) -> None:
    """A member known by its predictions alone has the scores that it has as a member."""
    folder, pack = eight, eight / "pack"
    exported = run(
        folder, "pack_run", "experiment=probe", MARKS, f"probe.export={pack}", *arguments(folder)
    )
    manifest = json.loads((pack / "manifest.json").read_text())
    assert manifest["classes"] == [str(i) for i in range(10)] and manifest["eps"] == 48 / 255
    assert "labels" not in manifest and (pack / "README.txt").is_file()
    sizes = pl.read_csv(exported / "pack.csv")
    assert sizes["folder"].to_list() == ["clean-32px", "noise-32px", "a", "b", "c", "v", "w"]
    assert sizes["images"].sum() == len(list((pack / "images").rglob("*.png")))

    member = run(folder, "as_member", "experiment=landmarks", MARKS, "one_sided=true",
                 *arguments(folder))  # fmt: skip
    answer(pack, network(folder), folder / "y.csv")
    probe = run(
        folder, "probe", "experiment=probe", MARKS, f"predictions={folder / 'y.csv'}",
        "probe.clusters=2", *arguments(folder, leave_out="y"),
    )  # fmt: skip
    has_figures(probe, "probe")
    pairs = pl.read_csv(member / "pairs.csv").filter(kind="measured", b="y").sort("a")
    found = pl.read_csv(probe / "probe.csv")
    measured = found.filter(kind="measured").sort("model")
    assert measured["model"].to_list() == pairs["a"].to_list() == ["a", "b", "c", "v", "w"]
    for column in ("n", "score", "low", "high"):
        assert measured[column].to_list() == pytest.approx(pairs[column].to_list()), column
    assert found.height == 7 and found.filter(kind="predicted")["level"].to_list() == [0.9, 0.9]
    assert set(found["model"][:3]) == {"v", "w", "x"}  # its own weights


def network(folder: Path) -> Classifier:
    """The small run's vit_ti, from its weights."""
    vit = {"embed_dim": 64, "depth": 4, "num_heads": 4}
    (member,) = parse_members(
        [{"name": "y", "timm": "vit_tiny_patch16_224", "kwargs": vit}], None, at_least=1
    )
    fit = ({"img_size": 32, "patch_size": 8}, {"img_size": 32}, {})
    task = Task("digits", 10, "train", 32, fit, tuple(map(str, range(10))))
    model = build(member, task, folder / "store" / "weights" / "digits" / "vit_ti.safetensors")
    model.eval()

    def classes(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(1).numpy()

    return classes


@pytest.fixture(scope="module")
def pack(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    eight = shutil.copytree(measured, tmp_path_factory.mktemp("pack") / "eight")
    folder = eight / "module_pack"
    overrides = ("experiment=probe", MARKS, f"probe.export={folder}", *arguments(eight))
    run(eight, "module_run", *overrides)
    return folder


@pytest.mark.slow
def test_a_support_vector_machine_among_networks(eight: Path, pack: Path) -> None:
    def features(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        gray = pixels[..., 0].reshape(len(pixels), 8, 4, 8, 4)
        return gray.mean(axis=(2, 4)).reshape(len(pixels), 64) / 255

    digits = Digits(split="train")
    images = [digits.load(i).convert("RGB").resize((32, 32)) for i in range(len(digits.ids))]
    machine = SVC(C=10).fit(features(np.stack([np.asarray(x) for x in images])), digits.labels)
    file = eight / "svm.csv"
    answer(pack, lambda pixels: machine.predict(features(pixels)), file)
    overrides = (f"predictions={file}", "probe.name=svm", *arguments(eight))
    done = run_here("experiment=probe", MARKS, *overrides, "hydra.run.dir=svm", cwd=eight)
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(eight / "svm" / "probe.csv").filter(kind="measured")
    assert table["noise_rate"].max() < 0.1 and table["n"].min() > 20  # type: ignore[operator]
    assert "svm" in done.stdout and "Its clean accuracy is 9" in done.stdout


@pytest.mark.slow
def test_an_unfinished_pack_is_finished(eight: Path, pack: Path, tmp_path: Path) -> None:
    """By the same command, to the same bytes; a pack of other images is left alone."""
    copy = tmp_path / "pack"
    shutil.copytree(pack, copy)
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    content = json.loads((copy / "manifest.json").read_text())
    assert content.pop("folders")
    (copy / "manifest.json").write_text(json.dumps(content))
    for file in [copy / "images.csv", *sorted(copy.rglob("*.png"))[::2]]:
        file.unlink()
    words = ("experiment=probe", MARKS, f"probe.export={copy}", *arguments(eight))
    run(eight, "pack_again", *words)
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
    content["made_by"]["a"] = "other weights"
    (copy / "manifest.json").write_text(json.dumps(content))
    refused = run_here(*words, "hydra.run.dir=bad", cwd=eight)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert f"{copy} is not empty; name a new folder for the pack" in refused.stderr


@pytest.mark.slow
def test_mistakes_in_predictions(eight: Path, pack: Path, tmp_path: Path) -> None:
    good = answer(pack, network(eight), tmp_path / "good.csv")

    def line(table: pl.DataFrame | str) -> str:
        file = tmp_path / "bad.csv"
        file.write_text(table if isinstance(table, str) else table.write_csv())
        overrides = (f"predictions={file}", *arguments(eight, leave_out="y"))
        done = run_here("experiment=probe", MARKS, *overrides, "hydra.run.dir=bad", cwd=eight)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    n = good.height
    assert f"lacks 7 of the {n} image_ids of the pack: " in line(good.head(n - 7))
    assert "has 2 image_ids more than once: clean-32px/" in line(pl.concat([good, good[:2]]))
    other = good.with_columns(pl.col("image_id") + "x")
    assert f"{n} of its {n} image_ids are not in this pack" in line(other)
    assert "has no column prediction; expected a CSV file with the columns image_id and" in line(
        good[:, :1]
    )
    wrong = good.with_columns(prediction=pl.lit("cat"))
    assert "is 'cat', expected an index from 0 to 9 or the name of a class" in line(wrong)
    shuffled = good.with_columns(pl.col("prediction").shuffle(seed=0))
    assert "near chance" in line(shuffled) and "are rows shuffled against" in line(shuffled)
    turned = good.with_columns((pl.col("prediction") + 1) % 10)
    assert "the classes in another order than in manifest.json?" in line(turned)
    assert "cannot be read" in line("")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=probe"], "experiment=probe takes either probe.export=DIR"),
        (["experiment=probe", "predictions=none.csv"], "none.csv cannot be read"),
        (["experiment=landmarks", "landmarks=4"], "landmarks must be 5 models or more, got 4"),
        (["experiment=landmarks", "landmarks=11"], "at most 10 of the 12 models, got 11"),
        (["experiment=landmarks", "landmarks=many"], "landmarks must be a number, a list of"),
        (["experiment=landmarks", "landmarks=[vit_x]"], "no model 'vit_x'; did you mean vit_s"),
        (
            ["experiment=landmarks", "similarity=sat69", "similarity.dir=none", "landmarks=20"],
            "similarity.dir=none lacks",
        ),
        (["experiment=landmarks", "level=90"], "level must be between 0 and 1, got 90"),
    ],
)
def test_mistakes(overrides: list[str], expected: str, mistake: Callable[..., str]) -> None:
    assert expected in mistake(*overrides)
