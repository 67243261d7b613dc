"""Yes, No and Not certain."""

import math
from pathlib import Path
from typing import Any

import pytest

from netkin.analysis.verdict import verdict
from netkin.report.sentences import Sentences

NAN = math.nan


@pytest.mark.parametrize(
    ("effect", "given", "expected"),
    [
        (0.4, {"interval": (0.1, 0.7)}, "Yes"),
        (-0.4, {"interval": (-0.7, -0.1)}, "No"),
        (0.4, {"interval": (0.0, 0.7)}, "Not certain"),
        (0.4, {"interval": (0.1, 0.7), "threshold": 0.5}, "Not certain"),
        (0.4, {"interval": (0.1, 0.45), "threshold": 0.5}, "No"),
        (0.4, {"interval": (NAN, 0.7)}, "Not certain"),
        (0.4, {"interval": (None, None)}, "Not certain"),
        (0.4, {"p": 0.05}, "Not certain"),
        (0.4, {"p": 0.049}, "Yes"),
        (-0.4, {"p": 0.01}, "No"),
        (0.4, {"p": NAN}, "Not certain"),
        (0.4, {"interval": (0.1, 0.7), "p": 0.2}, "Not certain"),
        (0.4, {"interval": (0.1, 0.7), "enough": False}, "Not certain"),
        (NAN, {"p": 0.01}, "Not certain"),
        (3, {"threshold": 2}, "Yes"),
    ],
)
def test_verdict(effect: float, given: dict[str, Any], expected: str) -> None:
    assert verdict(effect, **given) == expected


def test_sentences_are_filled_by_verdict_and_number(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[a]\nYes = "Yes: {n} model{n:s} {n:is} {share:.0%}."\nNo = "No."\n')
    text = Sentences(file)
    assert text("a", "Yes", n=1, share=0.5) == "Yes: 1 model is 50%."
    assert text("a", "Yes", n=2, share=0.5) == "Yes: 2 models are 50%."
    for wrong in (("a", "Not certain"), ("a.Yes",), ("b",)):
        with pytest.raises(KeyError):
            text(*wrong)
