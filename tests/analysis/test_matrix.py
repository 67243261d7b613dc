"""Someone's CSV file as a similarity matrix: what is read, and what is refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from netkin.analysis.matrix import Matrix, read
from netkin.errors import UserError
from tests.conftest import ROOT

PUBLISHED = ROOT.parent / "shared" / "reference" / "sat69_scores.csv"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published scores are not here")
def test_the_published_scores() -> None:
    found = read(PUBLISHED)
    off = ~np.eye(69, dtype=bool)
    assert len(found.names) == 69 and found.names[:2] == ("nfnet_l0", "regnety_032")
    assert found.scores[off].mean() == pytest.approx(2.665, abs=5e-4)
    assert (found.scores[off].min(), found.scores[off].max()) == pytest.approx(
        (1.828, 4.141), abs=5e-4
    )
    assert (found.scores == found.scores.T).all()


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    scores = np.array([[4.6, 1.25, -4.605], [1.25, 4.5, 2.0], [-4.605, 2.0, 4.6]])
    ours = Matrix(("a,b", 'c"d', "ü"), scores)
    ours.table().write_csv(tmp_path / "m.csv")
    found = read(tmp_path / "m.csv")
    assert found.names == ours.names
    np.testing.assert_array_equal(found.scores, scores)


def test_rows_may_be_in_another_order_and_directions_are_averaged(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text(",a,b,c\nc,3,2,9\na,9,1,3\nb,1,9,2\n")
    np.testing.assert_array_equal(read(file).scores, [[9, 1, 3], [1, 9, 2], [3, 2, 9]])
    file.write_text(",a,b\na,9,1\nb,2,9\n")
    assert read(file, symmetrise=True).scores.tolist() == [[9, 1.5], [1.5, 9]]


@pytest.mark.parametrize(
    "text",
    [
        ",a,b\r\na,9,1\r\nb,1,9\r\n",
        "\ufeff,a,b\na,9,1\nb,1,9\n",
        ",a,b\n\na,9,1\nb,1,9\n\n\n",
        ",a,b\na,9,1\nb,1,9\n,,\n",
        " , a, b \na , 9, 1\n b,1 ,9\n",
        '"","a","b"\n"a","9","1"\n"b","1","9"',
    ],
    ids=["windows", "bom", "blank lines", "an empty row", "spaces", "quotes"],
)
def test_what_spreadsheets_and_people_write(text: str, tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes(text.encode())
    found = read(file)
    assert found.names == ("a", "b") and found.scores.tolist() == [[9, 1], [1, 9]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",a,b\na,9,1\n", "is not square: 1 rows and 2 columns"),
        (",a,b\na,9,1\nc,1,9\n", "b in the header only, c in the column only"),
        (",a,a\na,9,1\na,1,9\n", "more than one row named a"),
        (",a,b\na,9,1\nb,2,9\n", "a, b is 1 and b, a is 2; symmetrise=True takes their mean"),
        (",a,b\na,9,\nb,1,9\n", "the score of a and b is '', expected a number"),
        (",a,b\na,9,NaN\nb,1,9\n", "the score of a and b is 'NaN'"),
        (",a,b\na,9,inf\nb,inf,9\n", "the score of a and b is 'inf'"),
        (",a,b\na,9,x\nb,1,9\n", "the score of a and b is 'x'"),
        (",a\na,9\n", "has 1 model, expected 2 or more"),
        (",a,b,c\na,9,1,1\nb,1,9,1\nc,1,1,9\n", "is constant: all 3 pairs have the score 1"),
        ("", "cannot be read"),
        ("hello\n", "expected a header of model names"),
        (",a,b\na,9\nb,1,9,3\n", "cannot be read"),
    ],
)
def test_one_line_says_what_is_wrong(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        read(file)
    assert expected in str(raised.value) and "\n" not in str(raised.value)
    assert "m.csv" in str(raised.value)
