"""How often does each study say Yes where there is nothing to say Yes to?

    python -m experiments.benchmarks.verdicts scores.csv --components components.csv --draws 100

Each yes-or-no verdict that a matrix alone decides, on the matrix itself, on its scores shuffled
among the pairs, and on structureless scores: the models' main effects with normal noise as large as
the rest. Prints and writes a row a verdict and kind of scores, with the share of each answer. A
false Yes may be at most 5%: experiments/results/verdicts.md.
"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.cli.components import BASE
from experiments.studies.clusters import by_chance, more_alike
from experiments.studies.relatives import likeness, unrelated_likeness
from netkin.analysis import clusters, importance, matrix
from netkin.analysis.components import differences, read_components, rows_of
from netkin.analysis.confounders import main_effects, related_test
from netkin.analysis.landmarks import complete
from netkin.analysis.matrix import pair_values, square
from netkin.analysis.statistics import mantel
from netkin.analysis.verdict import Verdict, verdict
from netkin.similarity import ALPHA

PERMUTATIONS = 999


class Models(NamedTuple):
    """What the verdicts read beside scores: the family of each of N models, and, if known, the base
    architecture of each and in which of C components two differ, [N, N, C]; and the scores of the
    matrix itself, [N, N]."""

    families: list[str]
    bases: list[str] | None
    differ: NDArray[np.bool_] | None
    scores: NDArray[np.float64]


Decide = Callable[[Models, NDArray[np.float64], np.random.Generator], Verdict | None]


def shuffled(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The scores [N, N], permuted among the pairs."""
    return square(rng.permutation(pair_values(scores)), len(scores), float(scores.max()))


def structureless(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Main effects of the models, and normal noise as large as the rest of the scores [N, N]."""
    rest = main_effects(scores).rest
    noise = rng.normal(0, pair_values(rest).std(), len(pair_values(rest)))
    fitted = np.where(np.eye(len(scores)), scores, scores - rest)
    return fitted + square(noise, len(scores), 0.0)


def groups(labels: Sequence[str] | None, scores: NDArray[np.float64]) -> Verdict | None:
    """As pairwise and within decide it, without the interval over images."""
    if labels is None:
        return None
    test = related_test(scores, np.equal.outer(np.array(labels), np.array(labels)))
    return verdict(test.r, p=test.p)


def relative(scores: NDArray[np.float64], rng: np.random.Generator) -> Verdict:
    """Of one of the models, drawn at random."""
    model = int(rng.integers(len(scores)))
    return verdict(likeness(scores, model), null=unrelated_likeness(scores, model))


def clustered(scores: NDArray[np.float64]) -> Verdict:
    k = clusters.choose_k(None, scores)[0]
    found = more_alike(scores, clusters.spectral(scores, k))
    return verdict(found, null=by_chance(scores, k))


def component(models: Models, scores: NDArray[np.float64]) -> Verdict | None:
    """Whether at least one component goes with similarity after Holm's correction."""
    if models.differ is None:
        return None
    alone = importance.alone(models.differ, scores, PERMUTATIONS)
    return "Yes" if (alone["holm_p"] < ALPHA).any() else "Not certain"


def held_out(models: Models, scores: NDArray[np.float64]) -> Verdict | None:
    """Whether components predict the similarity of models that were not fitted."""
    if models.differ is None:
        return None
    found = importance.held_out(models.differ, scores)
    return None if found is None else verdict(found.r2, (found.low, found.high))


def landmarks(scores: NDArray[np.float64], rng: np.random.Generator) -> Verdict:
    """Whether a third of the models, at least 5, predict the others' scores."""
    number = max(5, len(scores) // 3)
    return complete(scores, rng.choice(len(scores), number, replace=False).tolist()).verdict


def goes_with(models: Models, scores: NDArray[np.float64], rng: np.random.Generator) -> Verdict:
    """Whether scores go with another measure of the pairs, such as errors of ensembles: here the
    matrix itself, or one of other models, which have other main effects."""
    order = np.arange(len(scores))
    if scores is not models.scores:
        order = rng.permutation(order)
    test = mantel(models.scores, scores[np.ix_(order, order)], PERMUTATIONS)
    return verdict(test.r, p=test.p)


VERDICTS: dict[str, tuple[Decide, int]] = {
    "pairwise: are models of one family more similar?": (lambda m, s, _: groups(m.families, s), 1),
    "within: are models of one base architecture?": (lambda m, s, _: groups(m.bases, s), 1),
    "relatives: is the nearest a relative?": (lambda _, s, rng: relative(s, rng), 1),
    "clusters: more alike than clusters of unrelated models?": (lambda _, s, rng: clustered(s), 2),
    "importance: does a component go with similarity?": (lambda m, s, _: component(m, s), 1),
    "importance: do components predict new models?": (lambda m, s, _: held_out(m, s), 5),
    "landmarks: do they predict the other scores?": (lambda _, s, rng: landmarks(s, rng), 5),
    "ensemble and measures: does it go with s?": (goes_with, 1),
}
"""By study and question, how it is decided, and by which the number of draws is divided."""


def frequencies(models: Models, draws: int, seed: int = 0) -> pl.DataFrame:
    """A row a verdict and kind of scores: n, and the shares that are Yes, Not certain and No."""
    rows = []
    for question, (decide, slower) in VERDICTS.items():
        for kind in ("real", "shuffled", "structureless"):
            rng, start = np.random.default_rng(seed), time.perf_counter()
            # The matrix itself is decided anew only where a draw chooses models.
            number = draws // slower if kind != "real" or "relat" in question else 1
            found = Counter[str]()
            for _ in range(max(1, number)):
                scores = models.scores
                if kind != "real":
                    scores = (shuffled if kind == "shuffled" else structureless)(scores, rng)
                decided = decide(models, scores, rng)
                if decided is not None:
                    found[decided] += 1
            if n := sum(found.values()):
                said = {each: found[each] / n for each in ("Yes", "Not certain", "No")}
                seconds = (time.perf_counter() - start) / n
                rows.append({"verdict": question, "scores": kind, "n": n, **said, "s": seconds})
    return pl.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scores", help="a CSV file of scores of all pairs")
    parser.add_argument("--components", help="a CSV file of the models' components")
    parser.add_argument("--draws", type=int, default=100, help="of each kind of scores")
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    options = parser.parse_args(arguments)
    read = matrix.read(options.scores)
    # Such as "resnet" of resnet50 and "vit" of test_vit: families by name.
    families = [re.match(r"(test_)?([a-z]+)", name)[2] for name in read.names]  # type: ignore[index]
    bases, differ = None, None
    if options.components:
        table = rows_of(read_components(options.components), read.names, "the table")
        bases, differ = table[BASE].to_list(), differences(table)
    found = frequencies(Models(families, bases, differ, read.scores), options.draws)
    if options.out:
        found.write_csv(options.out)
    with pl.Config(tbl_cols=-1, tbl_rows=-1, fmt_str_lengths=80, tbl_width_chars=160):
        print(found)


if __name__ == "__main__":
    main()
