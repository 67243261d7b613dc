"""The default study on the small zoo, from the bytes of its store; each experiment has a test."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.store.files import read_tensors
from tests import helpers
from tests.conftest import ROOT, SMALL, run_here
from tests.helpers import page_text, with_interval

RUN = "hydra.run.dir=run"
MEMBERS = ["test_byobnet", "vit_ti"]
CONTROLS = [
    *("asymmetry", "noise_fools_a", "noise_fools_b", "above_noise"),
    *("corrected", "corrected_low", "corrected_high"),
]


def test_pairwise(trained: Path) -> None:
    """The matrix, from the bytes in the store: nothing that is written may disagree with them."""
    run = trained / "first"
    table = pl.read_csv(run / "similarity.csv")
    assert table.columns == ["", *MEMBERS] and table[""].to_list() == MEMBERS
    s = table.drop("").to_numpy()
    assert (s == s.T).all()
    (row,) = pl.read_csv(run / "pairs.csv").to_dicts()
    first = ["a", "b", "n", "a_fools_b", "b_fools_a", "score", "low", "high"]
    assert list(row)[:8] == first and list(row)[8:] == CONTROLS
    outcomes = pl.read_parquet(trained / "store/digits/*/pgd-*/outcomes/**/*.parquet")
    a_b = outcomes.filter(source=row["a"], target=row["b"]).sort("image_id")
    b_a = outcomes.filter(source=row["b"], target=row["a"]).sort("image_id")
    assert a_b["image_id"].to_list() == b_a["image_id"].to_list()
    assert row["n"] == a_b.height
    assert row["a_fools_b"] == pytest.approx(a_b["fooled"].mean())
    z = (a_b["fooled"].cast(float) + b_a["fooled"].cast(float)).to_numpy() / 2
    expected = with_interval(z)
    assert (row["score"], row["low"], row["high"]) == pytest.approx(
        (expected.score, expected.low, expected.high)
    )
    assert s[0, 1] == pytest.approx(expected.score)
    for i, name in enumerate(MEMBERS):
        success = outcomes.filter(source=name, target=name)["fooled"].to_numpy().mean()
        assert s[i, i] == pytest.approx(math.log(100 * success))
    models = pl.read_csv(run / "models.csv")
    assert models["params"].to_list() == [202426, 214218]
    (subset,) = (trained / "store" / "digits").glob("quick-*")
    labels = torch.tensor(json.loads((subset / "manifest.json").read_text())["labels"])
    for name, rate in models.select("model", "noise_rate").rows():
        clean = read_tensors(subset / "clean" / name / "logits.safetensors")["logits"].argmax(1)
        (noise,) = (subset / "clean" / name).glob("noise-*.safetensors")
        wrong = read_tensors(noise)["predictions"] != labels
        assert rate == pytest.approx(wrong[clean == labels].double().mean().item())
    assert (models["clean_accuracy"] > 0.2).all()


def test_plan(folder: Path) -> None:
    """The work that is left is counted exactly, and no model is attacked."""
    before = {*(folder / "store").rglob("*.safetensors")}
    correct = {}
    for name in MEMBERS:
        (file,) = (folder / "store" / "digits").glob(f"quick-*/clean/{name}/logits.safetensors")
        logits = read_tensors(file)["logits"]
        labels = json.loads((file.parents[2] / "manifest.json").read_text())["labels"]
        correct[name] = int((logits.argmax(1) == torch.tensor(labels)).sum())
    arguments = (
        "experiment=plan",
        *SMALL,
        "logger=csv",
        "plan.seconds=0.05",
        RUN,
    )
    done = run_here(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "In all: 0.0 s on 1 device, 0.0 s on 4 devices" in done.stdout
    done = run_here(*arguments, "attack.steps=2000", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "No weights, labels or images are missing (100 images)." in done.stdout
    table = pl.read_csv(folder / "run" / "plan.csv")
    assert table["images_to_craft"].to_list() == [correct[name] for name in MEMBERS]
    stored = dict(table.select("model", "adversarial_bytes").iter_rows())
    assert all(0.6 < stored[name] / (3072 * correct[name]) < 0.8 for name in MEMBERS)  # at 48/255
    assert table["sources_left"].to_list() == [2, 2]
    # A thousand times the two steps that are timed, which take at least a forward pass each.
    assert (table["craft_ms_per_image"] > 500 * table["transfer_ms_per_image"]).all()
    assert (table["peak_memory_bytes"] > 1e8).all()
    page = page_text(folder / "run" / "report.html")
    assert (
        "images to craft" in page
        and "No weights, labels or images are missing (100 images)." in page
    )
    assert {*(folder / "store").rglob("*.safetensors")} == before


def test_every_experiment_config_has_a_test() -> None:
    """A test names it: as experiment=NAME, or in a call of a helper."""
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    named = {
        name
        for text in texts
        for name in re.findall(r'experiment=(\w+)|(?:on_four|run|_check_sweep)\(\s*"(\w+)"', text)
        for name in name
    }
    configs = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert configs - named == set()


def test_what_a_run_says_and_writes(trained: Path) -> None:
    said = (trained / "stdout.txt").read_text()
    for stage in ("clean", "noise", "craft", "transfer"):
        assert re.search(rf"^{stage} 2/2: \w+", said, re.M)
    assert "s left)" in said
    assert "test_byobnet and vit_ti score s = " in said
    run = trained / "first"
    assert "/first/report.html" in said
    for name in ("similarity.png", "similarity.pdf", "report.html", "families.csv"):
        assert (run / name).stat().st_size > 50
    page = (run / "report.html").read_text()
    assert "test_byobnet" in page and "data:image/webp;base64" in page
    assert (run / ".hydra" / "config.yaml").is_file()


def test_adversarial_images_are_in_the_ball_and_of_correct_images(trained: Path) -> None:
    (subset,) = (trained / "store" / "digits").glob("quick-*")
    manifest = json.loads((subset / "manifest.json").read_text())
    labels = torch.tensor(manifest["labels"])
    for name in MEMBERS:
        logits = read_tensors(subset / "clean" / name / "logits.safetensors")["logits"]
        correct = (logits.argmax(1) == labels).nonzero().flatten()
        (folder,) = subset.glob(f"pgd-*/adversarial/{name}")
        shards = [helpers.stored_images(path) for path in sorted(folder.glob("*.safetensors"))]
        assert [i for _, index in shards for i in index] == correct.tolist()
        images = torch.cat([torch.from_numpy(images) for images, _ in shards])
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32)
        from netkin.data import views

        positions = draw(Digits(), "quick", 10).positions
        clean = views.load(Digits(), positions, views.View(32))[correct]
        difference = (images.int() - clean.int()).abs()
        assert difference.amax(dim=(1, 2, 3)).min() >= 10  # every image is attacked
        assert difference.max() <= 48


@pytest.mark.slow
def test_nothing_is_computed_twice(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("*") if p.is_file()}
    done = run_here(*SMALL, "hydra.run.dir=again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^(train|clean|craft|transfer) ", done.stdout, re.M)
    after = {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("*") if p.is_file()}
    assert after == before
    for name in ("similarity.csv", "pairs.csv", "models.csv", "families.csv", "similarity.png"):
        assert (folder / "again" / name).read_bytes() == (folder / "first" / name).read_bytes()


def test_only_missing_parts_are_computed_and_come_out_the_same(folder: Path) -> None:
    """A lost shard and a lost outcome are made again, with the same bytes, in other numbers of
    processes and with another batch size; nothing else is touched."""
    (shard,) = (folder / "store").glob("digits/*/pgd-*/adversarial/vit_ti/00000.safetensors")
    files = (folder / "store").glob("digits/*/pgd-*/outcomes/vit_ti/*.parquet")
    outcome = min(files, key=lambda file: file.stat().st_mtime_ns)  # of the run of two members
    lost = {file: file.read_bytes() for file in (shard, outcome)}
    for file in lost:
        file.unlink()
    kept = {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("[!.]*") if p.is_file()}
    done = run_here(
        *SMALL, "hardware.members_at_once=1", "logger=csv", "hydra.run.dir=run", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) \d/\d: (\w+)", done.stdout, re.M) == [
        ("craft", "vit_ti"),
        ("transfer", "vit_ti"),
    ]
    assert {file: file.read_bytes() for file in lost} == lost
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    names = pl.read_csv(folder / "run" / "metrics.csv")["name"].to_list()
    assert {"images_per_second/craft", "similarity/mean"} <= {*names}
    stages = pl.read_csv(folder / "run" / "stages.csv").select("stage", "model").rows()
    assert stages == [("craft", "vit_ti"), ("transfer", "vit_ti")]


@pytest.mark.slow
def test_another_attack_and_a_local_checkpoint(folder: Path) -> None:
    """The same store serves them; the local copy of a member is its twin."""
    weights = folder / "store" / "weights" / "digits" / "test_byobnet.safetensors"
    twin = f"{{name: twin, timm: test_byobnet, checkpoint: {weights}}}"
    done = run_here(
        f"model.members=[test_byobnet,vit_ti,{twin}]",
        "recipe=digits_adamw",
        "recipe.epochs=4",
        "subset=quick",
        "attack.steps=5",
        "attack.eps=16/255",
        "hydra.run.dir=run",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^train ", done.stdout, re.M)
    s = pl.read_csv(folder / "run" / "similarity.csv").drop("").to_numpy()
    # Not equal: the twin draws its own random start.
    assert s[0, 2] > s[0, 1]
    assert np.isfinite(s).all()


def crafted(store: Path, dataset: str) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """(clean logits, adversarial image) by member and number of the scan."""
    (subset,) = (store / dataset).glob("*-*")
    ids = json.loads((subset / "manifest.json").read_text())["ids"]
    scans = [Path(image).stem for image in ids]
    found = {}
    for name in MEMBERS:
        logits = read_tensors(subset / "clean" / name / "logits.safetensors")["logits"]
        (shard,) = subset.glob(f"pgd-*/adversarial/{name}/00000.safetensors")
        images, index = helpers.stored_images(shard)
        pairs = zip(index, torch.from_numpy(images), strict=True)
        found[name] = {scans[i]: (logits[i], image) for i, image in pairs}
    return found


@pytest.mark.slow
def test_images_as_files_give_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    """The same clean predictions and adversarial images, bit for bit; without random start, which
    depends on an image's id."""
    shutil.copytree(trained / "store" / "weights", tmp_path / "store" / "weights")
    done = run_here(*SMALL, "attack.random_start=false", "hydra.run.dir=digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    without_start = crafted(tmp_path / "store", "digits")
    helpers.digits_as_files(tmp_path / "mine")
    weights = trained / "store" / "weights" / "digits"
    members = ",".join(
        f"{{name: {name}, timm: {timm}, checkpoint: {weights / name}.safetensors, "
        f"kwargs: {kwargs}}}"
        for name, timm, kwargs in (
            ("test_byobnet", "test_byobnet", "{num_classes: 10}"),
            (
                "vit_ti",
                "vit_tiny_patch16_224",
                "{embed_dim: 64, depth: 4, num_heads: 4, num_classes: 10}",
            ),
        )
    )
    done = run_here(
        "dataset=folder",
        "dataset.name=mine",
        f"dataset.root={tmp_path / 'mine'}",
        "dataset.input_size=32",
        "attack.eps=48/255",
        "attack.step_size=6/255",
        "attack.random_start=false",
        f"model.members=[{members}]",
        "attack.steps=8",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    ours = crafted(tmp_path / "store", "mine")
    for name in MEMBERS:
        assert ours[name].keys() == without_start[name].keys()
        for scan, (logits, image) in ours[name].items():
            wanted_logits, wanted = without_start[name][scan]
            torch.testing.assert_close(logits, wanted_logits, atol=1e-5, rtol=1e-5)
            assert logits.argmax() == wanted_logits.argmax()
            assert torch.equal(image, wanted), (name, scan)


@pytest.mark.slow
def test_unreadable_images_stop_the_run_or_are_skipped(trained: Path, tmp_path: Path) -> None:
    """Two of a hundred files are broken: named, before anything is trained; or left out."""
    helpers.digits_as_files(tmp_path / "mine")
    broken = sorted((tmp_path / "mine" / "val" / "4").iterdir())[:2]
    broken[0].write_bytes(broken[0].read_bytes()[:60])
    broken[1].write_text("not an image")
    weights = trained / "store" / "weights" / "digits" / "test_byobnet.safetensors"
    members = ",".join(
        f"{{name: {name}, timm: test_byobnet, checkpoint: {weights}}}" for name in ("a", "b")
    )
    arguments = (
        "dataset=folder",
        f"dataset.root={tmp_path / 'mine'}",
        f"model.members=[{members}]",
        "attack.steps=4",
        "hydra.run.dir=run",
    )
    done = run_here(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "error: 2 images are unreadable: " in done.stderr
    assert all(f"4/{file.name} (" in done.stderr for file in broken)
    assert not list((tmp_path / "store").rglob("*.safetensors"))
    for _ in range(2):  # the second run remembers which
        done = run_here(*arguments, "dataset.on_error=skip", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "2 images could not be read and were left out" in done.stdout
    (row,) = pl.read_csv(tmp_path / "run" / "pairs.csv").to_dicts()
    assert row["n"] <= 98
    manifests = [json.loads(f.read_text()) for f in tmp_path.glob("store/folder/*/manifest.json")]
    (skipping,) = [m for m in manifests if m["skipped"]]
    assert len(skipping["ids"]) == 98
    assert [s["id"] for s in skipping["skipped"]] == [f"4/{file.name}" for file in broken]


OWN_ATTACK = """
class Brighten:
    def __init__(self, by):
        self.eps = by

    def perturb(self, model, pixels, labels, keys):
        return (pixels + self.eps).clamp(0, 1)
"""


@pytest.mark.slow
def test_the_noise_control_is_a_run_of_noise(folder: Path) -> None:
    """attack=noise crafts and stores what the control only evaluates: the rates are the same."""
    arguments = [o for o in SMALL if not o.startswith("attack.")]
    done = run_here("attack=noise", *arguments, RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "noise 1/2" not in done.stdout  # no control of the control
    crafted = pl.read_csv(folder / "run" / "models.csv")
    assert "noise_rate" not in crafted.columns
    control = pl.read_csv(folder / "first" / "models.csv")
    assert control["noise_rate"].to_list() == pytest.approx(crafted["white_box_success"].to_list())
    assert control["noise_rate"].max() > 0  # type: ignore[operator]


def test_an_attack_of_ones_own(folder: Path) -> None:
    (folder / "my_module.py").write_text(OWN_ATTACK)
    (folder / "my_conf" / "attack").mkdir(parents=True)
    config = "_target_: my_module.Brighten\nby: 0.2\n"
    (folder / "my_conf" / "attack" / "mine.yaml").write_text(config)
    arguments = [o for o in SMALL if not o.startswith("attack.")]
    done = run_here(
        *("--config-dir", str(folder / "my_conf"), "attack=mine", *arguments),
        "hydra.run.dir=run",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) 1/2", done.stdout, re.M) == ["noise", "craft", "transfer"]
    (found,) = (folder / "store").glob("digits/*/mine-*/adversarial/vit_ti")
    images, _ = helpers.stored_images(found / "00000.safetensors")
    assert images.min() == 51  # 0.2 of 255 brighter


def test_the_clean_attack_fools_by_resizing_alone(folder: Path) -> None:
    """Between 32 and 48 px, `attack=clean` errs exactly where the resize control errs."""
    arguments = [o for o in SMALL[1:] if not o.startswith("attack.")]
    members = (
        "[test_byobnet,{name: big, timm: test_byobnet, input_size: 48, "
        f"checkpoint: {folder / 'store/weights/digits/test_byobnet.safetensors'}}}]"
    )
    done = run_here(
        *(f"model.members={members}", "attack=clean", "hydra.run.dir=run"),
        *arguments,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "resize_errors.csv" in done.stdout
    errors = pl.read_csv(folder / "run" / "resize_errors.csv")
    assert sorted(errors["target_view"].str.slice(0, 5)) == ["32 px", "48 px"]
    subset = next((folder / "store" / "digits").glob("quick-*"))
    labels = np.array(json.loads((subset / "manifest.json").read_text())["labels"])
    clean = {
        name: read_tensors(subset / "clean" / name / "logits.safetensors")["logits"].argmax(1)
        for name in ("test_byobnet", "big")
    }
    both = (clean["test_byobnet"].numpy() == labels) & (clean["big"].numpy() == labels)
    for target, source in (("big", "test_byobnet"), ("test_byobnet", "big")):
        (seen,) = (subset / "clean" / target).glob("seen-as-*.safetensors")
        wrong = read_tensors(seen)["predictions"].numpy() != labels
        (file,) = subset.glob(f"clean-*/outcomes/{target}/*.parquet")
        fooled = pl.read_parquet(file).filter(source=source)["fooled"]
        assert fooled.to_list() == wrong[both].tolist()
        right = clean[target].numpy() == labels
        size = "48 px" if target == "big" else "32 px"
        (row,) = errors.filter(pl.col("target_view").str.starts_with(size)).to_dicts()
        assert row["resize_error"] == pytest.approx(wrong[right].mean())
