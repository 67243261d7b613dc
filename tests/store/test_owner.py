"""Each file of a store says what it is of: a swapped, flipped or cut one is refused by name."""

import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from safetensors import safe_open

from netkin.store import inventory
from netkin.store.files import METADATA
from tests import helpers
from tests.conftest import run_here

KINDS = {"weights", "views", "clean", "noise", "adversarial", "outcomes", "measures", "manifest"}


def by_kind(store: Path) -> dict[str, list[Path]]:
    """The files with results, by kind: each must be told from every other of its kind."""
    kinds = defaultdict(list)
    for file in sorted(store.rglob("*")):
        parts = file.relative_to(store).parts
        if file.is_dir() or any(part.startswith(".") for part in parts):
            continue
        if file.suffix in (".safetensors", ".parquet"):
            known = [part for part in parts if part in KINDS]
            kind = "noise" if file.name.startswith("noise") else known[0]
            kinds[kind].append(file)
        elif file.name == "manifest.json":
            kinds["manifest"].append(file)
    return kinds


@pytest.fixture
def store(folder: Path) -> Path:
    """A store with files of every kind, of four members."""
    helpers.on_four("measures", folder)
    return helpers.four_store(folder)


def refused(store: Path) -> set[Path]:
    return {found.path for found in inventory.damage(store, lambda _: None)}


def test_swapped_flipped_and_cut_files_of_every_kind(store: Path) -> None:
    kinds = by_kind(store)
    assert kinds.keys() == KINDS and not refused(store)
    for file in store.rglob("*.safetensors"):  # a new kind without an owner fails here
        with safe_open(file, "pt") as tensors:
            assert json.loads(tensors.metadata()[METADATA])["owner"], file
    draw = random.Random(0)
    for kind, files in kinds.items():
        if len(files) > 1:
            a, b = draw.sample(files, 2)
            before = a.read_bytes(), b.read_bytes()
            same = kind == "outcomes" and a.parent == b.parent  # of one target, read as one table
            if before[0] != before[1] and not same:
                a.write_bytes(before[1])
                b.write_bytes(before[0])
                assert {a, b} <= refused(store), f"swapped {kind}"
                a.write_bytes(before[0])
                b.write_bytes(before[1])
        file = draw.choice(files)
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) * 2 // 3] ^= 4
        for changed in (bytes(flipped), content[: len(content) // 2]):
            file.write_bytes(changed)
            assert refused(store) == {file}, kind
        file.write_bytes(content)
    assert not refused(store)


@pytest.mark.parametrize("kind", ["weights", "clean", "noise", "adversarial", "outcomes"])
def test_a_run_refuses_what_is_anothers(folder: Path, kind: str) -> None:
    """Of two members of one architecture, whose files have the same shapes."""
    store = helpers.four_store(folder)
    files = [
        f for f in by_kind(store)[kind] if kind == "weights" or {"vit_ti", "other"} & {*f.parts}
    ]
    if kind == "weights":
        file = next(f for f in files if f.stem == "vit_ti")
        changed = bytearray(file.read_bytes())
        changed[-5] ^= 1
        file.write_bytes(changed)
    else:
        first, second = (next(f for f in files if name in f.parts) for name in ("vit_ti", "other"))
        saved = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(saved)
        file = first
        if kind == "adversarial":
            shutil.rmtree(file.parents[2] / "outcomes")
    done = run_here(*helpers.overrides(folder), "hydra.run.dir=again", cwd=folder)
    assert done.returncode != 0 and done.stderr.count("\n") == 1, done.stderr
    assert "is damaged" in done.stderr and file.name in done.stderr, done.stderr
