"""score.half_width: runs that stop when scores are certain enough."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from omegaconf import OmegaConf

from experiments.cli.setting import images_used
from netkin.analysis.sequential import Certainty, Rule
from tests.conftest import SMALL, Mistake, run_here
from tests.helpers import page_text

FEW = [*SMALL, "store.shard_size=10", "score.bootstrap=50", "logger=csv"]
"""A hundred images in ten shards."""
LOOK = r"(\d+) of 100 images: \d+% of pairs within [\d.]+ nats; "
TABLES = ("similarity.csv", "pairs.csv", "models.csv", "families.csv")


@pytest.fixture(scope="module")
def stopped(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small run's weights in which a run stopped early, and its output."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(trained / "store" / "weights", folder / "store" / "weights")
    done = run_here(*FEW, "score.half_width=0.5", "hydra.run.dir=first", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    shutil.copytree(folder / "store", folder / "stopped_store")
    return folder


def made(store: Path) -> dict[str, bytes]:
    """The files of adversarial images of a store, by their paths."""
    files = store.glob("digits/*/*/adversarial/*/*.safetensors")
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def rows(store: Path) -> pl.DataFrame:
    """The outcomes of a store."""
    files = [pl.read_parquet(f, glob=False) for f in store.glob("digits/*/*/outcomes/*/*.parquet")]
    return pl.concat(files).sort("source", "target", "image_id")


def used(stopped: Path) -> int:
    """The number of images of the run that stopped."""
    (images,) = re.findall(rf"(?m)^{LOOK}enough$", (stopped / "stdout.txt").read_text())
    return int(images)


def tables(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in TABLES}


def test_a_run_stops_when_its_scores_are_certain_enough(stopped: Path) -> None:
    said = (stopped / "stdout.txt").read_text()
    images = used(stopped)
    assert 10 < images < 100 and re.search(rf"(?m)^{LOOK}going on$", said)
    assert f"Stopped after {images} of 100 images: 100% of pairs have" in said
    assert (
        "A smaller half-width goes on from here: python evaluate.py score.half_width=0.25" in said
    )
    (pair,) = pl.read_csv(stopped / "first" / "pairs.csv").to_dicts()
    assert pair["n"] <= images and (pair["high"] - pair["low"]) / 2 <= 0.5
    metrics = pl.read_csv(stopped / "first" / "metrics.csv")
    names = dict(metrics.select("name", "value").iter_rows())
    assert float(names["images_used"]) == images and float(names["share_reached"]) == 1
    assert (metrics["name"] == "sequential/share").sum() > 1
    page = page_text(stopped / "first" / "report.html")
    assert f"on those of the {images} images" in page
    store = stopped / "stopped_store"
    shards = {path.name for path in store.glob("digits/*/*/adversarial/*/0*.safetensors")}
    assert len(shards) == images // 10


@pytest.mark.slow
def test_what_a_stopped_run_made_is_a_prefix_and_goes_on(stopped: Path, tmp_path: Path) -> None:
    """Further to the end, it has made the very bytes of a run on all images in that order."""
    half = made(stopped / "stopped_store")
    again = run_here(*FEW, "score.half_width=0.5", "hydra.run.dir=again", cwd=stopped)
    assert again.returncode == 0 and "craft" not in again.stdout, again.stderr
    assert tables(stopped / "again") == tables(stopped / "first")
    assert made(stopped / "store") == half
    on = run_here(*FEW, "score.half_width=0.001", "hydra.run.dir=on", cwd=stopped)
    assert on.returncode == 0, on.stderr
    assert re.search(r"Not reached with all 100 images: .* need about [\d,]+ images", on.stdout)

    shutil.copytree(stopped / "store" / "weights", tmp_path / "store" / "weights")
    full = run_here(*FEW, "subset.shuffled=true", "hydra.run.dir=full", cwd=tmp_path)
    assert full.returncode == 0, full.stderr
    whole = made(tmp_path / "store")
    assert made(stopped / "store") == whole
    assert all(whole[name] == content for name, content in half.items())
    assert rows(stopped / "store").equals(rows(tmp_path / "store"))
    assert tables(stopped / "on")["similarity.csv"] == tables(tmp_path / "full")["similarity.csv"]
    assert rows(stopped / "stopped_store").height < rows(tmp_path / "store").height

    back = run_here(*FEW, "score.half_width=0.5", "hydra.run.dir=back", cwd=tmp_path)
    assert back.returncode == 0, back.stderr  # of a store with more images
    assert tables(tmp_path / "back") == tables(stopped / "first")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("score.half_width=0", "score.half_width must be a number above 0"),
        ("score.half_width=0.1 score.share=0", "score.share must be a number above 0"),
        ("score.half_width=0.1 score.share=1.5", "score.share must be in (0, 1], got 1.5"),
        ("subset.shuffled=perhaps", "subset.shuffled must be"),
        ("score.half_width=0.1 subset.seed=-1", "subset.seed must be a whole number of 0 or more"),
    ],
)
def test_mistakes(typed: str, expected: str, mistake: Mistake) -> None:
    assert expected in mistake(*typed.split())


def test_an_order_that_may_not_be_random_is_mentioned() -> None:
    found = Certainty(100, 100, 1.0, 0.5, Rule(0.5))
    for order, words in (
        ({"shuffled": None}, ""),
        ({"shuffled": True}, ""),
        ({"shuffled": False}, "in the order of their ids"),
        ({"file": "m.json"}, "in the manifest's order"),
    ):
        text = " ".join(images_used(OmegaConf.create({"subset": order}), found))
        assert words in text and ("used in" in text) == bool(words)


@pytest.mark.parametrize("name", ["craft", "eps", "landmarks"])
def test_no_experiment_ignores_a_half_width(name: str, mistake: Mistake) -> None:
    line = mistake(f"experiment={name}", "score.half_width=0.1")
    assert line.startswith(f"error: experiment={name} takes no score.half_width")
