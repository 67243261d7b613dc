"""The choice of eps: the verdict, and the study's numbers against the pairwise study's."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from experiments.studies.eps import SUCCESS, sentence, short_steps, smallest, strength_row
from netkin.passes.craft import spread
from tests.conftest import SMALL, run_here
from tests.helpers import has_figures, page_text


def table(*successes: tuple[str, int, int]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            strength_row(model, n / 255, f"{n}/255", 100, (fooled, 2 * n))
            for model, n, fooled in successes
        ]
    )


def test_the_smallest_eps_at_which_every_model_is_fooled() -> None:
    some = table(
        ("a", 2, 100), ("b", 2, 98), ("a", 8, 100), ("b", 8, 99), ("a", 4, 60), ("b", 4, 9)
    )
    assert smallest(some) == "8/255"
    assert sentence(some).startswith("Use eps = 8/255") and "at most 16.0%" in sentence(some)
    none = table(("a", 2, 98), ("b", 2, 100), ("a", 4, 97), ("b", 4, 99))
    assert smallest(none) is None and sentence(none).startswith("None of these eps")
    assert "below 99% on a (97.0%)." in sentence(none)


def test_images_are_spread_over_the_subset() -> None:
    assert spread(10, 5) == (0, 2, 4, 6, 8)
    assert spread(3, 100) == (0, 1, 2)
    assert len({i // 10 for i in spread(500, 50)}) == 50


def test_eps(folder: Path) -> None:
    """At the run's eps, the success that the pairwise study has from the store; nothing stored."""
    before = sorted((folder / "store").rglob("*"))
    values = "eps.values=[48/255,1/255]"
    done = run_here(
        *("experiment=eps", *SMALL, values, "logger=csv", "hydra.run.dir=eps"), cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert sorted((folder / "store").rglob("*")) == before
    has_figures(folder / "eps", "eps")
    rows = pl.read_csv(folder / "eps" / "eps.csv")
    assert rows["eps"].to_list() == ["1/255", "48/255"] * 2
    models = pl.read_csv(folder / "first" / "models.csv")
    assert rows.filter(eps="48/255")[SUCCESS].to_list() == pytest.approx(
        models["white_box_success"].to_list()
    )
    assert rows["n"].to_list()[::2] == [round(100 * a) for a in models["clean_accuracy"]]
    assert rows.filter(eps="1/255")[SUCCESS].max() < 0.9  # type: ignore[operator]
    answer = done.stdout.split("\n\n")[1:]
    assert answer[0].startswith("Use eps = 48/255: it is the smallest")
    assert answer[1].startswith("To compare the models with it: python evaluate.py attack.eps=48/")
    assert "'model.members=[test_byobnet,vit_ti]'" in answer[1] and "eps.values" not in answer[1]

    work = folder / "weak"  # a store of its own: other checks read all outcomes of the first one
    shutil.copytree(folder / "store" / "weights", work / "store" / "weights")
    weak = run_here(*SMALL, "attack.eps=1/255", "logger=none", "hydra.run.dir=run", cwd=work)
    assert weak.returncode == 0, weak.stderr
    advice = "To find an eps that is large enough: python evaluate.py experiment=eps "
    assert advice in weak.stdout and "attack.eps=1/255" in weak.stdout
    assert advice in page_text(work / "run" / "report.html")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["eps.values=8/255"], "eps.values must be a list"),
        (["eps.values=[]"], "eps.values must be a list"),
        (["eps.values=[8]"], "eps.values=8 is outside (0, 1]"),
        (["eps.values=[0.5/255]"], "eps.values: eps=0.00196078 is below 1/255"),
        (["eps.images=0"], "eps.images must be a whole number of 1 or more, got 0"),
        (["attack=clean"], "experiment=eps needs an attack that has an eps"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done = run_here("experiment=eps", *arguments, "logger=none", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert expected in done.stderr


def test_steps_that_fall_short_are_named() -> None:
    some = table(("a", 8, 50), ("a", 16, 90))
    (said,) = short_steps({"steps": 5, "step_size": 2 / 255}, some)
    assert "5 steps of 2/255 go 10/255 at most, less than eps = 16/255:" in said
    assert not short_steps({"steps": 8, "step_size": 2 / 255}, some)
    assert not short_steps({"steps": 5, "step_size": None}, some)
    assert not short_steps({}, some)
