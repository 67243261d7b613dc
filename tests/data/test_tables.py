"""CSV files that are written and read."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netkin.data.tables import guarded, read_text

NAMES = st.text("=+-@'1a", min_size=1, max_size=5)


@given(st.lists(NAMES, min_size=1, unique=True), st.integers())
def test_names_that_look_like_formulas_are_guarded_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], number: int
) -> None:
    file = tmp_path_factory.mktemp("table") / "t.csv"
    table = pl.DataFrame({"model": names} | {name: [number] * len(names) for name in names})
    guarded(table).write_csv(file)
    written = pl.read_csv(file, infer_schema=False)
    for text in [*written.columns, *written["model"]]:
        assert text[0] not in "=+-@" or float(text) is not None
    assert written[:, 1].to_list() == [str(number)] * len(names)  # a negative one, too
    assert read_text(file).rows() == table.cast(pl.String).rows()
    assert read_text(file, header=False).row(0) == ("model", *names)
