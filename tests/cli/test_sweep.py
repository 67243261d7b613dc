"""One member at a time: crafting alone, sweeps over sources, a member more, a novel model, and
the study of the store."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.cli import launch
from netkin.errors import UserError
from tests.conftest import SMALL, run_here
from tests.helpers import has_figures, page_text

QUIET = ("logger=none", "hydra.run.dir=run")
MEMBERS = ["test_byobnet", "vit_ti"]


def files(store: Path, pattern: str) -> dict[str, bytes]:
    """Bytes by path, of a store's files."""
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.glob(pattern))}


@pytest.fixture
def store(small_run: Path, tmp_path: Path) -> Path:
    """The small run's store, to be changed."""
    return Path(shutil.copytree(small_run / "store", tmp_path / "store"))


def twin_of(store: Path, name: str = "twin") -> str:
    """A member with the weights of test_byobnet: it needs no training."""
    weights = store / "weights" / "digits" / "test_byobnet.safetensors"
    return f"{{name: {name}, timm: test_byobnet, checkpoint: {weights}}}"


def test_craft(folder: Path) -> None:
    """One source alone, in a store of its own: the bytes of the run that did all."""
    work = folder / "craft"
    shutil.copytree(folder / "store" / "weights", work / "store" / "weights")
    done = run_here(*SMALL, "experiment=craft", "source=vit_ti", *QUIET, cwd=work)
    assert done.returncode == 0, done.stderr
    pattern = "digits/*/pgd-*/adversarial/*/*.safetensors"
    wanted = {k: v for k, v in files(folder / "store", pattern).items() if "/vit_ti/" in k}
    assert wanted and files(work / "store", pattern) == wanted
    assert not list((work / "store").rglob("*.parquet"))
    assert "vit_ti: " in done.stdout and "adversarial images in" in done.stdout
    wrong = run_here(*SMALL, "experiment=craft", "source=[vit_t]", *QUIET, cwd=work)
    assert wrong.returncode == 1
    assert "source=vit_t is not in model.members; did you mean vit_ti?" in wrong.stderr


def test_a_damaged_file_of_a_store_is_named(folder: Path) -> None:
    check = ("experiment=store", "check=true", "hydra.run.dir=run")
    assert run_here(*check, cwd=folder).returncode == 0
    flipped = next(folder.glob("store/digits/*/pgd-*/adversarial/vit_ti/00000.safetensors"))
    data = bytearray(flipped.read_bytes())
    data[1000] ^= 4
    flipped.write_bytes(data)
    done = run_here(*check, cwd=folder)
    assert done.returncode == 1
    damage = pl.read_csv(folder / "run" / "damage.csv")
    assert damage.height == 1 and flipped.parts[-2:] == Path(damage.item(0, 0)).parts[-2:]


@pytest.mark.slow
def test_store(folder: Path) -> None:
    """An intact store is listed; then each kind of damage is found, named and repaired by a run."""
    work = folder / "damaged"
    shutil.copytree(folder / "store" / "weights", work / "store" / "weights")
    assert run_here(*SMALL, "hydra.run.dir=first", cwd=work).returncode == 0
    intact = run_here("experiment=store", "check=true", "hydra.run.dir=run", cwd=work)
    assert intact.returncode == 0, intact.stderr
    assert "No file is damaged." in intact.stdout
    table = pl.read_csv(work / "run" / "store.csv")
    attacked = table.filter(kind="adversarial")
    assert sorted(attacked["member"]) == MEMBERS and attacked["complete"].to_list() == [1, 1]
    assert table.filter(kind="outcomes")["total"].to_list() == [2, 2]
    (images,) = attacked.filter(member="vit_ti")["path"]
    held = sum(f.stat().st_size for f in (work / "store" / images).iterdir())
    assert attacked.filter(member="vit_ti")["bytes"].item() == held

    before = files(work / "store", "digits/**/*.*")
    attack = (work / "store" / images).parents[1]
    subset = attack.parent
    flipped = attack / "adversarial" / "vit_ti" / "00000.safetensors"
    (cut,) = attack.glob("outcomes/vit_ti/*.parquet")
    (altered,) = attack.glob("outcomes/test_byobnet/*.parquet")
    manifest = subset / "manifest.json"
    logits = subset / "clean" / "vit_ti" / "logits.safetensors"
    for file, place in ((flipped, 1000), (altered, 60), (logits, 500)):
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-20])
    manifest.write_text(manifest.read_text().replace("digits/00", "digits/99", 1))

    checked = run_here("experiment=store", "check=true", "hydra.run.dir=run", cwd=work)
    assert checked.returncode == 1 and checked.stderr.count("\n") == 1
    damage = dict(pl.read_csv(work / "run" / "damage.csv").iter_rows())
    page = page_text(work / "run" / "report.html")
    assert "5 files are damaged" in page and all(file in page for file in damage)
    problems = dict.fromkeys((flipped, altered, logits, cut), "do not fit their checksum")
    problems[manifest] = "do not fit its own hash"
    assert damage.keys() == {str(f.relative_to(work / "store")) for f in problems}
    for file, problem in problems.items():
        assert problem in damage[str(file.relative_to(work / "store"))]
    used = run_here(*SMALL, *QUIET, cwd=work)
    assert used.returncode == 1 and "manifest.json is damaged" in used.stderr

    listed = run_here("experiment=store", "remove=damaged", "hydra.run.dir=run", cwd=work)
    assert "Nothing was removed: add confirm=true" in listed.stdout and flipped.exists()
    removed = run_here("experiment=store", "remove=damaged", "confirm=true", *QUIET, cwd=work)
    assert removed.returncode == 0, removed.stderr
    assert not any(file.exists() for file in problems)
    again = run_here(*SMALL, *QUIET, cwd=work)
    assert again.returncode == 0, again.stderr
    assert files(work / "store", "digits/**/*.*") == before


def test_novel(folder: Path) -> None:
    """One direction: the candidate is attacked, and the others are evaluated on its images."""
    work = folder / "novel"
    shutil.copytree(folder / "store", work / "store")
    before = set(files(work / "store", "digits/*/pgd-*/**/*.*"))
    done = run_here(
        *SMALL,
        "experiment=novel",
        f"model.candidate={twin_of(work / 'store', 'stranger')}",
        "novel.clusters=2",
        *QUIET,
        cwd=work,
    )
    assert done.returncode == 0, done.stderr
    new = sorted(set(files(work / "store", "digits/*/pgd-*/**/*.*")) - before)
    assert [Path(name).parent.name + Path(name).suffix for name in new] == [
        "stranger.safetensors",
        "stranger.json",
        "stranger.parquet",
        "test_byobnet.parquet",
        "vit_ti.parquet",
    ]
    table = pl.read_csv(work / "run" / "novel.csv")
    assert table["model"].to_list() == MEMBERS and table["cluster"].n_unique() == 2
    outcomes = pl.read_parquet(work / "store/digits/*/pgd-*/outcomes/*/*.parquet")
    outcomes = outcomes.filter(source="stranger")
    for row in table.to_dicts():
        fooled = outcomes.filter(target=row["model"])["fooled"]
        assert (row["n"], row["fooled"]) == (len(fooled), pytest.approx(fooled.to_numpy().mean()))
        assert row["score"] == pytest.approx(math.log(100 * row["fooled"]))
    assert "nearest relatives of stranger are test_byobnet (s1 = " in done.stdout
    assert re.search(r"(belongs|is closest) to cluster \d of 2 \(test_byobnet\)", done.stdout)
    assert "These scores are one-sided" in done.stdout
    has_figures(work / "run", "novel")


@pytest.mark.slow
def test_one_member_fails_and_the_others_are_scored(
    small_run: Path, store: Path, tmp_path: Path
) -> None:
    state = load_file(store / "weights" / "digits" / "test_byobnet.safetensors")
    state["head.fc.bias"] = torch.full_like(state["head.fc.bias"], float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    broken = f"{{name: broken, timm: test_byobnet, checkpoint: {tmp_path / 'nan.safetensors'}}}"
    members = f"model.members=[test_byobnet,{broken},vit_ti,{broken.replace('broken', 'second')}]"
    done = run_here(*SMALL[1:], members, *QUIET, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "2 of 4 members failed: broken (clean: broken gives NaN" in done.stderr
    assert "second (clean: second gives NaN" in done.stderr
    table = pl.read_csv(tmp_path / "run" / "similarity.csv")
    names = ["test_byobnet", "broken", "vit_ti", "second"]
    assert table.columns == ["", *names] and table[""].to_list() == names
    whole = pl.read_csv(small_run / "first" / "similarity.csv").drop("").to_numpy()
    found = table.drop("").to_numpy().astype(float)
    assert (found[np.ix_([0, 2], [0, 2])] == whole).all()
    assert np.isnan(found[[1, 3]]).all() and np.isnan(found[:, [1, 3]]).all()
    failures = pl.read_csv(tmp_path / "run" / "failures.csv")
    assert failures["model"].to_list() == ["broken", "second"]
    assert pl.read_csv(tmp_path / "run" / "pairs.csv").height == 6
    assert "broken has no scores" in page_text(tmp_path / "run" / "report.html")
    (log,) = (tmp_path / "run").glob("*.log")
    assert "broken failed in clean" in log.read_text()


@pytest.mark.slow
def test_a_full_disk_loses_nothing(
    small_run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard does not fit: one line, and the first is kept and not made again."""
    for attack in store.glob("digits/*/pgd-*"):
        shutil.rmtree(attack)
    written = []

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        if "difference" in tensors and len(written) == 1:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)
        if "difference" in tensors:
            written.append(path)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    done = run_here(*SMALL, *QUIET, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "(No space left on device); what was finished before is kept" in done.stderr
    kept = list(store.glob("digits/*/pgd-*/adversarial/*/0*.safetensors"))
    assert len(kept) == 1 and not list(store.rglob("*.tmp"))
    made = kept[0].stat().st_mtime_ns
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    done = run_here(*SMALL, *QUIET, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kept[0].stat().st_mtime_ns == made
    name = "similarity.csv"
    assert (tmp_path / "run" / name).read_bytes() == (small_run / "first" / name).read_bytes()


@pytest.mark.slow
def test_a_sweep_over_sources(small_run: Path, tmp_path: Path) -> None:
    """A job a source, by Hydra's launcher for one machine; then the matrix is put together from
    what they made. tests/cluster does it on SLURM."""
    store = Path(shutil.copytree(small_run / "store", tmp_path / "store"))
    pattern = "digits/*/pgd-*/adversarial/*/*.safetensors"
    wanted = {
        name: content
        for name, content in files(store, pattern).items()
        if Path(name).parent.name in MEMBERS
    }
    for attack in store.glob("digits/*/pgd-*"):
        shutil.rmtree(attack)
    words = ("experiment=craft", "source=glob(*)", "hydra/launcher=joblib")
    one_process = ("hydra.launcher.n_jobs=1", "logger=csv", "hydra.sweep.dir=sweep")
    done = run_here("-m", *SMALL, *words, *one_process, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(store, pattern) == wanted
    for job, name in enumerate(MEMBERS):
        stages = pl.read_csv(tmp_path / "sweep" / str(job) / "stages.csv")
        assert stages.select("stage", "model").rows() == [("craft", name)]
    done = run_here(*SMALL, *QUIET, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "similarity.csv"
    assert (tmp_path / "run" / name).read_bytes() == (small_run / "first" / name).read_bytes()


def test_a_sweep_names_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    members = "model.members=[test_vit,{name: a, timm: test_vit},vit_ti]"
    given = ["-m", "experiment=craft", members, "seed=1,2"]
    all_of = launch.arguments("evaluate", [*given[:3], "source=glob(*)"])
    assert all_of == [*given[:3], "source='test_vit','a','vit_ti'"]
    some = launch.arguments("evaluate", [*given[:3], "source=glob(*vit*)", "attack.steps=1,2"])
    assert some == [*given[:3], "source='test_vit','vit_ti'", "attack.steps=1,2"]
    with pytest.raises(UserError, match=r"source=glob\(x\): no member matches \(they are test_vit"):
        launch.arguments("evaluate", [*given[:3], "source=glob(x)"])
    single = ["experiment=craft", "source=[a]", "hardware.devices=2"]
    assert launch.arguments("evaluate", single) == single


def test_a_sweep_over_several_devices_is_refused(tmp_path: Path) -> None:
    arguments = (
        "-m",
        "attack.eps=8/255,16/255",
        "hardware.devices=2",
        "hardware.accelerator=cpu",
        "hydra.sweep.dir=sweep",
    )
    done = run_here(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "hardware.devices=2 in a multirun: all jobs would use the same devices" in done.stderr
    assert "without -m: python evaluate.py " in done.stderr
    assert "hardware.devices=2 hardware.accelerator=cpu" in done.stderr.rpartition(" -m: ")[2]
    assert not (tmp_path / "sweep").exists()
