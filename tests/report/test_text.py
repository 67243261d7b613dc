"""Numbers and lists in words."""

import pytest

from netkin.report.text import (
    UNKNOWN,
    and_more,
    cell,
    count,
    duration,
    fact,
    fraction_text,
    minus,
    number,
    percent,
    settings_text,
    size,
)

COMMAND = "python train.py -m seed=-1 name=vit-2 range=[-1,-2], 2-3 models, a/-1.csv"
SETTINGS = {"_target_": "a.B", "eps": 8 / 255, "steps": 50, "random_start": True}


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ([count(n) for n in (950, 1234, 25_557_032, 10**9)], ["950", "1.23k", "25.6M", "1G"]),
        ([count(None), number(None), number(float("nan")), percent(None)], [UNKNOWN] * 4),
        ([percent(float("nan")), cell("share", float("nan"))], [UNKNOWN] * 2),
        ([number(1.235, 1), percent(0.9996)], ["1.2", "100.0%"]),
        ([fraction_text(8 / 255), fraction_text(0.1)], ["8/255", "0.1"]),
        (settings_text(SETTINGS), "eps = 8/255, steps = 50, random_start = True"),
        # Rates are in per cent, and numbers have no exponent.
        ([cell("top1_error", 0.012), cell("measured_low", 0.5)], ["1.2%", "50.0%"]),
        ([cell("resize_error", 0.0004), cell("tf_idf", 7.1e-5)], ["0.04%", "0.000071"]),
        ([cell("mantel_p", 7.1e-5), cell("holm_p", 0.0013)], ["< 0.0001", "0.001"]),
        (cell("r", -0.0812), "\u22120.081"),
        # Negative numbers have a minus sign; commands stay as they are.
        (minus("r = -0.3 (-0.6 to 0.1)"), "r = \u22120.3 (\u22120.6 to 0.1)"),
        (minus(COMMAND), COMMAND),
        ([duration(s) for s in (0.25, 119, 720)], ["0.2 s", "119.0 s", "12.0 min"]),
        ([duration(12_240), duration(181_440)], ["3.4 h", "2.1 days"]),
        (
            [size(500), size(12e6), size(3.4e9), size(2e12)],
            ["0.5 kB", "12.0 MB", "3.4 GB", "2.0 TB"],
        ),
        ([and_more("abc"), and_more("abcde", 5), and_more([])], ["a, b, c", "a, b, c, d, e", ""]),
        (and_more((letter for letter in "abcdefgh"), 3), "a, b, c and 5 more"),
    ],
)
def test_numbers_and_lists_in_words(written: object, text: object) -> None:
    assert written == text


def test_a_paragraph_has_a_label_a_sentence_reasons_and_a_command() -> None:
    text = "Noise: it fools 9.9% (Fig. 3). At most 49%. To see: python evaluate.py a='b c'"
    assert fact(text) == (
        "Noise:",
        "it fools 9.9% (Fig. 3).",
        "At most 49%. To see:",
        "python evaluate.py a='b c'",
    )
    assert fact("Is it? No: s = 0.5 here.") == ("Is it?", "No: s = 0.5 here.", "", "")
    assert fact("To go on: python train.py")[::3] == ("To go on:", "python train.py")


def test_rounding_errors_are_nothing() -> None:
    values = [cell("eigenvalue", value) for value in (-1e-16, 3e-12, -0.5)]
    assert values == ["0.000", "0.000", minus("-0.500")]
