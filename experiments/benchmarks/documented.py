"""Measures the figures that the README and the documentation quote, and writes them there.

    python -m experiments.benchmarks.documented digits       # measure, then write
    python -m experiments.benchmarks.documented              # write what was measured last

A measurement runs the commands that a user types and keeps their numbers, with the day and the
versions, in experiments/results/documented.json. The sentences that quote them are templates in
documented.toml beside it; in its page, the sentence of a template is replaced by the one with the
new numbers. A test compares the pages with documented.json.

- digits: `python evaluate.py` from an empty store, with weights, with everything (4 minutes)
- distill: `python train.py experiment=distill teacher=regnety_032` from an empty store (2 minutes)
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from experiments.benchmarks.commands import ROOT, states, timed

RESULTS = ROOT / "experiments" / "results"
FIGURES = RESULTS / "figures"
NUMBERS = RESULTS / "documented.json"


def numbers(outputs: Path) -> dict[str, Any]:
    return json.loads((outputs / "summary.json").read_text())["numbers"]


def digits(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    found, outputs = dict[str, Any](), folder
    for state, seconds, peak, outputs in states(folder, overrides):
        found |= {f"{state}_seconds": seconds, f"{state}_memory": peak} | numbers(outputs)
    models = pl.read_csv(outputs / "models.csv", glob=False).sort("clean_accuracy")
    for name, row in (("least", models.row(0, named=True)), ("most", models.row(-1, named=True))):
        found |= {f"{name}_accurate": row["model"], f"{name}_accuracy": row["clean_accuracy"]}
    found["white_box"] = models["white_box_success"].min()
    families = pl.read_csv(outputs / "families.csv", glob=False)
    for family in ("ViT", "ConvNeXt"):
        own = (pl.col("family_a") == family) | (pl.col("family_b") == family)
        listed = families.filter(own).sort("mean", descending=True).to_dicts()
        alike = [row["family_a"] == row["family_b"] for row in listed]
        found[f"{family}/within"] = listed[alike.index(True)]["mean"]
        nearest = listed[alike.index(False)]
        found[f"{family}/nearest"] = nearest["family_" + "ba"[nearest["family_b"] == family]]
        found[f"{family}/to_nearest"] = nearest["mean"]
    for kind in ("csv", "png"):
        shutil.copy(outputs / f"similarity.{kind}", FIGURES / f"digits_similarity.{kind}")
    return found


def distill(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    outputs = folder / "distill"
    words = [sys.executable, str(ROOT / "train.py"), "experiment=distill", "teacher=regnety_032"]
    words += [f"store.dir={folder / 'store'}", f"hydra.run.dir={outputs}", "logger=csv"]
    seconds, peak = timed([*words, *overrides])
    found = {"seconds": seconds, "memory": peak} | numbers(outputs)
    return found | pl.read_csv(outputs / "result.csv", glob=False).row(0, named=True)


MEASUREMENTS: dict[str, Callable[[Path, Sequence[str]], dict[str, Any]]] = {
    each.__name__: each for each in (digits, distill)
}


def sentences(measured: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """(page, template, the template with what was measured) of each sentence in documented.toml."""
    for page, templates in tomllib.loads((RESULTS / "documented.toml").read_text()).items():
        for template in templates:
            yield ROOT / page, template, template.format_map(measured)


def rewritten(page: str, template: str, sentence: str) -> str:
    """A page's text with the sentence in the place of that of the same template.

    Raises LookupError where the page has no such sentence, or several.
    """
    words = map(re.escape, re.split(r"\{[^}]*\}", template))
    changed, places = re.subn(r"[^\s|]+".join(words), lambda _: sentence, page)
    if places != 1:
        raise LookupError(f"expected one sentence such as {sentence!r}, found {places}")
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurements", nargs="*", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--overrides", nargs="*", default=[], help="of every command")
    given = parser.parse_args(arguments)
    if unknown := {*given.measurements} - {*MEASUREMENTS}:
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(MEASUREMENTS)}")
    measured = json.loads(NUMBERS.read_text())
    for name in given.measurements:
        with tempfile.TemporaryDirectory(prefix="netkin-documented-") as folder:
            found = MEASUREMENTS[name](Path(folder), given.overrides)
        versions = {package: version(package) for package in ("torch", "timm")}
        measured[name] = {"date": date.today().isoformat()} | versions | found
        NUMBERS.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    for page, template, sentence in sentences(measured):
        page.write_text(rewritten(page.read_text(), template, sentence))


if __name__ == "__main__":
    main()
