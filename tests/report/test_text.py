"""Numbers and lists in words."""

import pytest

from netkin.report.text import (
    and_more,
    cell,
    count,
    duration,
    fraction_text,
    minus,
    number,
    percent,
    settings_text,
    size,
)


@pytest.mark.parametrize(
    ("params", "text"),
    [(None, "–"), (950, "950"), (1234, "1.23k"), (25_557_032, "25.6M"), (10**9, "1G")],  # noqa: RUF001
)
def test_count(params: int | None, text: str) -> None:
    assert count(params) == text


def test_unknown_values_are_a_dash() -> None:
    assert number(None) == number(float("nan")) == percent(None) == percent(float("nan")) == "–"  # noqa: RUF001
    assert (number(1.235, 1), percent(0.9996)) == ("1.2", "100.0%")


def test_bounds_are_fractions_where_they_are_one() -> None:
    assert (fraction_text(8 / 255), fraction_text(0.1)) == ("8/255", "0.1")
    settings = {"_target_": "a.B", "eps": 8 / 255, "steps": 50, "random_start": True}
    assert settings_text(settings) == "eps = 8/255, steps = 50, random_start = True"


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("top1_error", 0.012, "1.2%"),
        ("measured_low", 0.5, "50.0%"),
        ("resize_error", 0.0004, "0.04%"),
        ("mantel_p", 7.1e-5, "< 0.0001"),
        ("holm_p", 0.0013, "0.001"),
        ("tf_idf", 7.1e-5, "0.000071"),
        ("r", -0.0812, "\u22120.081"),
        ("share", float("nan"), "–"),  # noqa: RUF001
    ],
)
def test_cells_are_rates_in_per_cent_and_numbers_without_exponents(
    column: str, value: float, text: str
) -> None:
    assert cell(column, value) == text


def test_negative_numbers_have_a_minus_sign_and_commands_stay_as_they_are() -> None:
    assert minus("r = -0.3 (-0.6 to 0.1)") == "r = \u22120.3 (\u22120.6 to 0.1)"
    text = "python train.py -m seed=-1 name=vit-2 range=[-1,-2], 2-3 models, a/-1.csv"
    assert minus(text) == text


def test_durations_and_sizes_have_a_unit_that_suits_them() -> None:
    assert [duration(s) for s in (0.25, 119, 720, 12_240, 181_440)] == [
        "0.2 s", "119.0 s", "12.0 min", "3.4 h", "2.1 days",
    ]  # fmt: skip
    assert [size(n) for n in (500, 12e6, 3.4e9, 2e12)] == ["0.5 kB", "12.0 MB", "3.4 GB", "2.0 TB"]


def test_long_lists_end_in_a_number() -> None:
    assert and_more("abc") == "a, b, c"
    assert and_more("abcde", 5) == "a, b, c, d, e"
    assert and_more((letter for letter in "abcdefgh"), 3) == "a, b, c and 5 more"
    assert and_more([]) == ""
