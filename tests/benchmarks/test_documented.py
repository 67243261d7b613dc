"""The README and the results quote what was measured last."""

import json

import pytest

from experiments.benchmarks import documented


def test_pages_quote_what_was_measured() -> None:
    measured = json.loads(documented.NUMBERS.read_text())
    for page, template, sentence in documented.sentences(measured):
        text = page.read_text()
        assert sentence in text, f"{page.name}: run python -m {documented.__name__}"
        assert documented.rewritten(text, template, sentence) == text


def test_other_numbers_take_the_place_of_a_sentences() -> None:
    page, template = "One.\n| a | 3 | 4.5% |\n| b | 3 |\nTwo.", "| a | {m[n]:.0f} | {m[x]:.1%} |"
    new = template.format_map({"m": {"n": 20, "x": 0.999}})
    changed = documented.rewritten(page, template, new)
    assert changed == "One.\n| a | 20 | 99.9% |\n| b | 3 |\nTwo."
    assert documented.rewritten(changed, template, new) == changed
    for wrong in ("One.", page + page):
        with pytest.raises(LookupError, match="expected one sentence"):
            documented.rewritten(wrong, template, new)
