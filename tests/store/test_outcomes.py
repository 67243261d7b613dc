"""Outcomes are one table, whoever wrote which files of it, and in which order."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netkin.errors import DamagedFile, OtherContents, StoreError
from netkin.store import inventory
from netkin.store.outcomes import COLUMNS, Contents, OutcomeStore, Part

NAMES = ("a", "m/1", "[x]*", "7")
IDS = tuple(f"digits/{i}" for i in range(6))
SCHEMA = {"image_id": pl.String, "label": pl.Int32, "prediction": pl.Int32}


def rows(source: str, target: str, start: int, stop: int) -> pl.DataFrame:
    """Made up: of every image but one, with a prediction that depends on pair and image."""
    chosen = [i for i in range(start, stop) if i != 4]
    predictions = [len(source) + 2 * len(target) + i for i in chosen]
    return pl.DataFrame(
        {"image_id": [IDS[i] for i in chosen], "label": 5, "prediction": predictions}, SCHEMA
    )


def write(table: OutcomeStore, target: str, ranges: dict[str, tuple[int, int]]) -> None:
    """A file of a target, with a range of images for each source."""
    parts = {source: Part(f"of {source}", *ends) for source, ends in ranges.items()}
    made_up = {source: rows(source, target, *ends) for source, ends in ranges.items()}
    table.write(target, f"is {target}", parts, made_up)


def covered(table: OutcomeStore, target: str) -> dict[str, int]:
    return table.covered(target, f"is {target}", {name: f"of {name}" for name in NAMES})


RANGES = st.sampled_from([(0, 2), (0, 4), (0, 6), (2, 4), (2, 6), (4, 6)])
FILES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(NAMES), RANGES, min_size=1)),
    max_size=6,
)


@settings(deadline=None, max_examples=30)
@given(FILES)
def test_rows_are_read_once_in_any_order_of_files(written: list) -> None:
    """From files that overlap, or leave gaps; by netkin, and by polars over the whole folder."""
    with tempfile.TemporaryDirectory(prefix="a=b[c]*") as scratch:
        table, known = OutcomeStore(Path(scratch) / "outcomes"), {}
        for target, ranges in written:
            write(table, target, ranges)
            for source, ends in ranges.items():
                known.setdefault(target, {}).setdefault(source, set()).update(range(*ends))
        for target in NAMES:
            images = known.get(target, {})
            for source, number in covered(table, target).items():
                missing = set(range(7)) - images.get(source, set())
                assert number == min(missing) and table.has(source, target, f"is {target}") == (
                    source in images
                )
            if not images:
                continue
            found = table.read(target, images)
            assert found.columns == list(COLUMNS)
            for source, positions in images.items():
                wanted = rows(source, target, 0, 6)
                wanted = wanted.filter(pl.col("image_id").is_in([IDS[i] for i in positions]))
                mine = found.filter(source=source, target=target).sort("image_id")
                assert mine.select(*SCHEMA).equals(wanted)
                classes = table.predictions(target, [source], IDS)[0]
                assert {IDS[i]: classes[i] for i in np.flatnonzero(classes >= 0)} == dict(
                    mine.select("image_id", "prediction").iter_rows()
                )
                fooled = table.fooled(target, [source], IDS)
                assert np.flatnonzero(fooled[0]).tolist() == [
                    IDS.index(i) for i in wanted.filter(pl.col("prediction") != 5)["image_id"]
                ]
        if written:
            everything = [f for target in known for f in table.files(target)]
            whole = pl.read_parquet(everything, glob=False)
            pairs = set(whole.select("source", "target").iter_rows())
            assert pairs <= {(s, t) for t, sources in known.items() for s in sources}


def test_what_was_made_by_others_is_refused(tmp_path: Path) -> None:
    table = OutcomeStore(tmp_path)
    write(table, "a", {"b": (0, 6), "c": (0, 6)})
    (file,) = table.files("a")
    assert table.covered("a", "another", {"d": "of d"}) == {"d": 0}
    for model, source in (("another", "of b"), ("is a", "another")):
        with pytest.raises(OtherContents, match=str(file)):
            table.covered("a", model, {"b": source})
    with pytest.raises(StoreError, match="no outcomes of a on images of d"):
        table.read("a", ["b", "d"])
    (tmp_path / "x").mkdir()
    file.rename(tmp_path / "x" / file.name)
    with pytest.raises(DamagedFile, match="it has outcomes of a"):
        table.covered("x", "is x", {"b": "of b"})


def test_outcomes_without_predictions_are_an_error(tmp_path: Path) -> None:
    """Not a share of equal mistakes that is wrong."""
    table = OutcomeStore(tmp_path)
    of = Contents("a", "is a", {"b": Part("of b", 0, 6)})
    table._write(of, rows("b", "a", 0, 6).select("image_id", source=pl.lit("b"), fooled=True))
    assert table.fooled("a", ["b"], IDS).sum() == 5
    with pytest.raises(DamagedFile, match="prediction"):
        table.predictions("a", ["b"], IDS)


def test_a_pair_is_removed(tmp_path: Path) -> None:
    table = OutcomeStore(tmp_path)
    write(table, "a", {"b": (0, 6), "c": (0, 2)})
    write(table, "a", {"c": (2, 6)})
    before = table.read("a", ["b"])
    for _ in range(2):
        table.remove("c", "a")
        assert table.covered("a", "is a", {"b": "of b", "c": "of c"}) == {"b": 6, "c": 0}
        assert table.read("a", ["b"]).equals(before) and len(table.files("a")) == 1


@given(st.data())
def test_no_byte_goes_unnoticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        table = OutcomeStore(Path(scratch) / "digits" / "quick-1" / "pgd-1" / "outcomes")
        write(table, "a", {"b": (0, 6)})
        (Path(scratch) / "digits" / "quick-1" / "manifest.json").write_text("{}")
        (file,) = table.files("a")
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        with pytest.raises(StoreError):  # DamagedFile, or another name where that was changed
            table.read("a", ["b"])
        found = {damage.path for damage in inventory.damage(Path(scratch), lambda _n: None)}
        assert file in found
