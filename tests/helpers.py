"""Studies run in this process, on a store of four members."""

import math
import re
from collections.abc import Sequence
from html import unescape
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import OmegaConf

from netkin.data.digits import Digits
from netkin.data.subset import draw
from netkin.similarity import with_intervals
from tests.conftest import ROOT, run_here

MEMBERS = ("test_byobnet", "vit_ti", "twin", "other")
"""A twin has test_byobnet's weights, and the other has vit_ti's."""


class Scored(NamedTuple):
    """A pair's score with its 95 % interval (nats)."""

    score: float
    low: float
    high: float


def stored_images(file: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """A shard of adversarial images on the 8-bit grid, [n, 3, H, W], and their positions in the
    subset, read as docs/clusters-and-restarts.md tells readers without netkin."""
    page = (ROOT / "docs" / "clusters-and-restarts.md").read_text()
    (code,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(re.sub(r'Path\(".*"\)', f"Path({str(file)!r})", code), names)
    return names["images"], names["shard"].get_tensor("index").tolist()


def with_interval(z: NDArray[np.float64]) -> Scored:
    """The score of per-image values z, [n] in {0, 0.5, 1}."""
    both, half = (np.array([np.sum(z == value)]) for value in (1.0, 0.5))
    value, low, high = with_intervals(both, half, np.array([len(z)]))
    return Scored(float(value[0]), float(low[0]), float(high[0]))


def four_store(folder: Path) -> Path:
    """The store of the four members."""
    return folder / "store"


def overrides(folder: Path) -> list[str]:
    """What makes a run of four members."""
    store = four_store(folder)
    weights = store / "weights" / "digits"
    vit = "{embed_dim: 64, depth: 4, num_heads: 4}"
    members = [
        "test_byobnet",
        "vit_ti",
        f"{{name: twin, timm: test_byobnet, family: ByobNet, "
        f"checkpoint: {weights / 'test_byobnet.safetensors'}}}",
        f"{{name: other, timm: vit_tiny_patch16_224, family: ViT, kwargs: {vit}, "
        f"checkpoint: {weights / 'vit_ti.safetensors'}}}",
    ]
    return [
        f"model.members=[{','.join(members)}]",
        "recipe=digits_adamw",
        "recipe.epochs=4",
        "attack.steps=8",
        "subset=quick",
        "logger=csv",
        "hardware.members_at_once=1",
        "score.bootstrap=50",
        f"store.dir={store}",
    ]


def run(experiment: str, to: Path, arguments: Sequence[str]) -> Path:
    """The command in this process; returns the folder of its outputs."""
    to.parent.mkdir(parents=True, exist_ok=True)
    words = (f"experiment={experiment}", f"hydra.run.dir={to}", *arguments)
    done = run_here(*words, cwd=to.parent)
    assert done.returncode == 0, done.stderr
    check_verdict(experiment, to / "report.html")
    return to


def check_verdict(experiment: str, page: Path) -> None:
    """The page of a study begins with Yes, No or Not certain where its title asks for one."""
    study = str(
        OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml").experiment.study
    )
    if study.startswith("experiments.studies."):
        title = re.search(r"<h1>(.*?)</h1>", page.read_text())
        answer = page_text(page, "answer")
        assert title is not None
        if re.match(r"(Are|Can|Did|Do|Does|Is|Was|Were|Will)\b", title[1]):
            assert re.match(r"(Yes|No|Not certain)\b", answer), answer[:300]


def page_text(page: Path, of: str = "") -> str:
    """What a reader sees of a page, or of its part of a class, without the tags between."""
    html = re.sub(r"<(style|script)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    if of:
        html = html.split(f'<div class="{of}"')[1].split(">", 1)[1].split("</div>")[0]
    html = re.sub(r"</?(a|b|code|span)\b[^>]*>", "", html)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def digits_as_files(root: Path, first: int = 0) -> Path:
    """The small run's digits as PNG files in root/val, in folders of their classes, which are named
    from `first` on; returns the root."""
    digits = Digits()
    for i in draw(digits, "quick", 10).positions:
        path = root / "val" / str(digits.labels[i] + first) / f"{digits.ids[i][7:]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.load(i).save(path)
    return root


def fresh(folder: Path) -> Path:
    """A folder that no run has used: of another config it would be refused."""
    number = next(i for i in count(1) if not Path(f"{folder}-{i}").exists())
    return Path(f"{folder}-{number}") if folder.exists() else folder


def on_four(experiment: str, folder: Path, *arguments: str) -> Path:
    """A study of the four members, in a folder of its own beside the small run's."""
    return run(experiment, fresh(folder / experiment), [*overrides(folder), *arguments])


def has_figures(run: Path, *names: str) -> None:
    """Each figure with its tables, and all of them on the page."""
    page = (run / "report.html").read_text()
    assert page.count('<img src="data:image/webp') == len(names)
    for name in names:
        for suffix in (".png", ".csv", ".tex"):
            assert (run / f"{name}{suffix}").stat().st_size > 50, name
            assert f"./{name}{suffix}" in page


def smoothed_score(folder: Path, a: int = 1, b: int = 0) -> float:
    """The smoothed score of two of the four models, by hand from the first run's pairs.csv."""
    names = {MEMBERS[a], MEMBERS[b]}
    for row in pl.read_csv(folder / "first" / "pairs.csv").to_dicts():
        if {row["a"], row["b"]} == names:
            k = row["n"] * (row["a_fools_b"] + row["b_fools_a"]) / 2
            return math.log(100 * (k + 0.5) / (row["n"] + 1))
    raise AssertionError(names)
