"""Progress in a log, which is no terminal: a line now and then, neither silence nor one a batch."""

import io
import re

import pytest
from rich.console import Console

from netkin.jobs import progress
from netkin.jobs.progress import Bars


def lines(monkeypatch: pytest.MonkeyPatch, items: int, units: int, seconds: float) -> list[str]:
    """What is printed of a stage whose units take some seconds each."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    out = io.StringIO()
    with Bars(Console(file=out, soft_wrap=True)) as bars:
        bars.start("craft", [f"m{i}" for i in range(items)], items * units)
        for item in range(items):
            for _ in range(units):
                now[0] += seconds
                bars.advance("craft", 1)
            bars.finish("craft", f"m{item}")
        bars.end("craft")
    return out.getvalue().splitlines()


def test_a_line_every_tenth_of_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(monkeypatch, 1, 100, 2.0)
    assert len(found) == 10
    assert found[0] == "craft: 11 of 100 images (22 s, about 178 s left)"
    assert found[-1].startswith("craft 1/1: m0")
    assert 30 <= len(lines(monkeypatch, 3, 100, 2.0)) <= 33


def test_a_line_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(monkeypatch, 1, 100, 20.0)
    assert len(found) == 33
    assert found[0] == "craft: 4 of 100 images (80 s, about 1920 s left)"


def test_what_is_fast_has_a_line_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lines(monkeypatch, 4, 100, 0.05)) == 4


def test_bars_fit_80_columns_and_do_not_move() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    with Bars(console) as bars:
        for done in (1, 1234, 48_765):
            bars.start("craft", ["vit_small_patch16_224.augreg_in21k_ft_in1k"], 50_000)
            bars.advance("craft", done)
            bars.finish("craft", "vit_small_patch16_224.augreg_in21k_ft_in1k")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.startswith("craft")]
    assert lines and {len(line) for line in lines} == {80}
    for line in lines:
        assert line[24:43] == f"{line[24:36].strip():>12} images"
        assert line[44:52].strip() and line[52:56] == "left"
