"""Outcomes in one file a source: the same rows, whatever happens on the way."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netkin.errors import UserError
from netkin.store import compact, inventory
from netkin.store.layout import OutcomeStore
from netkin.store.lease import lease
from tests.cli.test_sweep import twin_of
from tests.conftest import SMALL, run_here

NAMES = ("a", "m/1", "[x]*", "7", "targets")
SCHEMA = {"image_id": pl.String, "label": pl.Int32, "prediction": pl.Int32}
KILLED = """
import os, signal, sys
from pathlib import Path
from netkin.store import compact

moment, calls = sys.argv[3], []
def dying(function, name):
    def call(*args, **kwargs):
        if name == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if name + " once" == moment and str(args[-1]).endswith(".parquet"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
os.replace = dying(os.replace, "replace")
Path.unlink = dying(Path.unlink, "unlink")
compact.compact(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def table_in(root: Path) -> OutcomeStore:
    """An empty table, where a store has it."""
    return OutcomeStore(root / "digits" / "quick-1" / "pgd-1" / "outcomes")


def rows(*predictions: int) -> pl.DataFrame:
    ids = [f"digits/{i}" for i in range(len(predictions))]
    return pl.DataFrame({"image_id": ids, "label": 1, "prediction": predictions}, SCHEMA)


def filled(root: Path) -> OutcomeStore:
    """A table of one source with three targets."""
    table = table_in(root)
    for i, target in enumerate(("a", "b", "c")):
        table.write("a", target, f"x {target}", rows(i, 1, 2))
    return table


def everything(table: OutcomeStore, pairs: dict[str, list[str]]) -> pl.DataFrame:
    """All rows, in the same order wherever they lie."""
    found = pl.concat(table.read([source], targets) for source, targets in pairs.items())
    return found.sort("source", "target", maintain_order=True)


@settings(deadline=None, max_examples=15)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)),
        st.lists(st.integers(0, 2), max_size=4),
        min_size=1,
    ),
    st.data(),
)
def test_the_rows_stay_the_same(found: dict[tuple[str, str], list[int]], data) -> None:
    """Compacted after any of the pairs, and at the end: what is read, by us and by polars."""
    pairs: dict[str, list[str]] = {}
    for source, target in found:
        pairs.setdefault(source, []).append(target)
    with tempfile.TemporaryDirectory() as scratch:
        plain, table = table_in(Path(scratch) / "plain"), table_in(Path(scratch) / "compact")
        for (source, target), predictions in found.items():
            for each in (plain, table):
                each.write(source, target, f"{source} {target}", rows(*predictions))
            if data.draw(st.booleans()):
                compact.compact(Path(scratch) / "compact", table.file(source, target).parent)
        assert everything(table, pairs).equals(everything(plain, pairs))
        for folder in compact.sources(Path(scratch) / "compact"):
            compact.compact(Path(scratch) / "compact", folder)
        assert len(list(table.path.rglob("*.parquet"))) == len(pairs)
        assert everything(table, pairs).equals(everything(plain, pairs))
        for source, targets in pairs.items():
            fooled = table.fooled(source, targets).sort("target", maintain_order=True)
            same = plain.fooled(source, targets).sort("target", maintain_order=True)
            assert fooled.equals(same)
        for source in NAMES:
            for target in NAMES:
                made = f"{source} {target}"
                assert bool(table.covered(source, target, made)) == ((source, target) in found)
        glob = pl.read_parquet(table.path / "**/*.parquet", hive_schema={"source": pl.String})
        assert glob.height == sum(map(len, found.values()))


@pytest.mark.parametrize("moment", ["replace", "replace once", "unlink", "unlink once"])
def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path, moment: str) -> None:
    """Before and after the rename, and before and after the first file is removed."""
    table, pairs = filled(tmp_path), {"a": ["a", "b", "c"]}
    before, source = everything(table, pairs), table.file("a", "a").parent
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(source), moment]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert everything(table, pairs).equals(before)
    assert table.covered("a", "c", "x c")
    result = compact.compact(tmp_path, source)
    assert not result.reason and everything(table, pairs).equals(before)
    assert [file.name for file in source.glob("*.parquet")] == [compact.NAME]


def test_a_target_that_is_added_later_and_one_that_is_made_again(tmp_path: Path) -> None:
    table = filled(tmp_path)
    source = table.file("a", "a").parent
    compact.compact(tmp_path, source)
    table.write("a", "d", "x d", rows(0))
    table.write("a", "b", "y b", rows(2, 2))
    assert table.covered("a", "d", "x d") and table.covered("a", "b", "y b")
    for _ in range(2):
        assert table.read(["a"], ["b"])["prediction"].to_list() == [2, 2]
        assert table.read(["a"], ["d", "a"])["target"].unique().sort().to_list() == ["a", "d"]
        assert compact.compact(tmp_path, source).files in (2, 0)
    with pytest.raises(UserError, match=r"b in .*targets\.parquet was made by other models"):
        table.covered("a", "b", "x b")


def test_a_damaged_file_is_left_and_found(tmp_path: Path) -> None:
    """A single one stays as it is; a flipped byte of the compacted one is found and refused."""
    table = filled(tmp_path)
    (tmp_path / "digits" / "quick-1" / "manifest.json").write_text("{}")
    cut = table.file("a", "b")
    cut.write_bytes(cut.read_bytes()[:-9])
    result = compact.compact(tmp_path, cut.parent)
    assert (result.files, result.damaged) == (2, 1) and cut.is_file()
    whole = cut.with_name(compact.NAME)
    data = bytearray(whole.read_bytes())
    data[40] ^= 1
    whole.write_bytes(data)
    with pytest.raises(UserError, match=r"targets\.parquet is damaged"):
        table.fooled("a", ["a"])
    damaged = {damage.path for damage in inventory.damage(tmp_path, lambda _n: None)}
    assert damaged >= {cut, whole}
    assert "is damaged" in compact.compact(tmp_path, cut.parent).reason


def test_a_source_at_work_is_left_out(tmp_path: Path) -> None:
    table = filled(tmp_path)
    file = table.file("a", "z")
    with ExitStack() as stack:
        assert stack.enter_context(lease(tmp_path, file))
        assert compact.compact(tmp_path, file.parent).reason == "a run is at work on it"
    assert compact.compact(tmp_path, file.parent).files == 3


@pytest.mark.slow
def test_runs_go_on_with_a_compacted_store(small_run: Path, tmp_path: Path) -> None:
    """The command compacts; runs find all there is, add targets beside it, and give the same."""
    shutil.copytree(small_run / "store", tmp_path / "store")
    store, quiet = tmp_path / "store", ("logger=csv", "hydra.run.dir=run")

    def command(*overrides: str) -> str:
        done = run_here(*overrides, *quiet, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = command("experiment=store", "compact=true")
    assert "Compacted 4 files of outcomes into 2, one a source." in text
    assert "There is nothing to compact." in command("experiment=store", "compact=true")
    before = {f: f.read_bytes() for f in store.glob("digits/**/*.parquet")}
    assert {file.name for file in before} == {compact.NAME}
    assert "craft" not in command(*SMALL)
    for name in ("similarity.csv", "pairs.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (small_run / "first" / name).read_bytes()
    three = f"model.members=[test_byobnet,vit_ti,{twin_of(store)}]"
    command(*SMALL, three)
    assert {file: file.read_bytes() for file in before} == before
    assert "Compacted 5 files" in command("experiment=store", "compact=true")
    assert "No file is damaged." in command("experiment=store", "check=true")
    listed = pl.read_csv(tmp_path / "run" / "store.csv").filter(kind="outcomes")
    assert listed.select("member", "done", "total").rows() == [
        ("test_byobnet", 3, 3),
        ("twin", 3, 3),
        ("vit_ti", 3, 3),
    ]
    command("experiment=store", "remove=[twin]", "confirm=true")
    for file in before:
        made = json.loads(pl.read_parquet_metadata(file)["made_by"])
        assert [*made] == ["test_byobnet", "vit_ti"]
    assert "No file is damaged." in command("experiment=store", "check=true")
    alone = run_here("experiment=store", "compact=true", "check=true", *quiet, cwd=tmp_path)
    assert "compact=true works alone" in alone.stderr
