"""How often does each study say Yes where there is nothing to say Yes to?

    python -m experiments.benchmarks.verdicts scores.csv --components components.csv --draws 100

Each yes-or-no verdict on scores, on the matrix itself, on its scores shuffled among the pairs, and
on structureless scores: the models' main effects with normal noise as large as the rest. Verdicts
on ensembles take the mistakes of simulated models, anew for each draw: two models share the more,
the higher their score in the matrix itself is. Prints and writes a row a verdict and kind of
scores, with the share of each answer. A false Yes may be at most 5%:
experiments/results/verdicts.md.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.cli.components import BASE
from experiments.studies.clusters import by_chance, more_alike
from experiments.studies.compare import agree
from experiments.studies.measures import predicts
from experiments.studies.relatives import likeness, unrelated_likeness
from netkin.analysis import clusters, ensemble, importance, matrix, select
from netkin.analysis.components import differences, read_components, rows_of
from netkin.analysis.confounders import main_effects, related_test
from netkin.analysis.correlation import Definition, correlate
from netkin.analysis.landmarks import complete
from netkin.analysis.matrix import pair_values, square
from netkin.analysis.measures import Use, predict
from netkin.analysis.statistics import mantel
from netkin.analysis.verdict import Verdict, verdict
from netkin.similarity import ALPHA

PERMUTATIONS = 999
IMAGES = 2000  # that simulated models classify
MEASURES = 7  # that experiment=measures compares
SAMPLES = 500  # ensembles of 3


class Models(NamedTuple):
    """The matrix itself, [N, N]; the family and, if known, the base architecture of each model, and
    in which of C components two differ, [N, N, C]."""

    scores: NDArray[np.float64]
    families: list[str]
    bases: Sequence[str] = ()
    differ: NDArray[np.bool_] = np.empty(0, bool)


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


def groups(labels: Sequence[str], scores: NDArray[np.float64]) -> Verdict:
    """As pairwise and within decide it, without the interval over images."""
    test = related_test(scores, np.equal.outer(np.array(labels), np.array(labels)))
    return verdict(test.r, p=test.p)


def relative(scores: NDArray[np.float64], rng: np.random.Generator) -> Verdict:
    """Of one of the models, drawn at random."""
    model = int(rng.integers(len(scores)))
    return verdict(likeness(scores, model), null=unrelated_likeness(scores, model))


def clustered(scores: NDArray[np.float64]) -> Verdict:
    k = clusters.choose_k(None, scores)[0]
    return verdict(more_alike(scores, k), null=by_chance(scores, k))


def component(models: Models, scores: NDArray[np.float64]) -> Verdict:
    """Whether at least one component goes with similarity after Holm's correction."""
    alone = importance.alone(models.differ, scores, PERMUTATIONS)
    return "Yes" if (alone["holm_p"] < ALPHA).any() else "Not certain"


def held_out(models: Models, scores: NDArray[np.float64]) -> Verdict | None:
    """Whether components predict the similarity of models that were not fitted."""
    found = importance.held_out(models.differ, scores)
    return None if found is None else verdict(found.r2, (found.low, found.high))


def landmarks(scores: NDArray[np.float64], rng: np.random.Generator) -> Verdict:
    """Whether a third of the models, at least 5, predict the others' scores."""
    number = max(5, len(scores) // 3)
    return complete(scores, rng.choice(len(scores), number, replace=False).tolist()).verdict


def errors_of(models: Models, scores: NDArray, groups: Sequence[Sequence[int]], rng) -> NDArray:
    """The errors of simulated models and ensembles, [G]: margins of models are normal over images,
    those of similar ones correlated, and that of an ensemble is their mean. Where scores are not
    those of the matrix, neither are the models: they are in another order."""
    n, low, high = len(scores), pair_values(models.scores).min(), pair_values(models.scores).max()
    order = np.arange(n) if scores is models.scores else rng.permutation(n)
    alike = 0.4 + 0.5 * (models.scores[np.ix_(order, order)] - low) / (high - low)
    values, vectors = np.linalg.eigh(np.where(np.eye(n), 1, alike))
    root = vectors * np.sqrt(values.clip(0))
    shared = root / np.linalg.norm(root, axis=1, keepdims=True) @ rng.normal(size=(n, IMAGES))
    margins = rng.uniform(0.6, 1, (n, 1)) + shared  # errors of 16% to 27%
    return np.array([(margins[list(group)].mean(axis=0) < 0).mean() for group in groups])


def reductions(models: Models, scores: NDArray, rng: np.random.Generator) -> list[NDArray]:
    """Of all pairs of simulated models the error reduction, the mean of their errors, and the
    difference of these, [N, N] each."""
    n, pairs = len(scores), ensemble.pairs_of(len(scores))
    errors = errors_of(models, scores, [*((i,) for i in range(n)), *pairs], rng)
    a, b = errors[np.array(pairs).T]
    found = ensemble.reduction(errors[n:], (a + b) / 2), (a + b) / 2, np.abs(a - b)
    return [square(each, n) for each in found]


def avoids(models: Models, scores: NDArray, rng: np.random.Generator, given: int = 0) -> Verdict:
    """Whether less similar pairs have a higher error reduction; with `given` of 2, given errors."""
    err, *controls = reductions(models, scores, rng)
    test = mantel(scores, err, PERMUTATIONS, controls=controls[:given])
    return verdict(-test.r, p=test.p)


def best_measure(models: Models, scores: NDArray, rng: np.random.Generator) -> Verdict:
    """Whether the best of MEASURES predicts error reductions: the scores, and shuffled ones."""
    values = pair_values(reductions(models, scores, rng)[0])[None]
    named = {str(i): shuffled(scores, rng)[None] for i in range(1, MEASURES)}
    pairs = np.array(ensemble.pairs_of(len(scores)))
    return predicts(predict(Use(values, pairs, {"0": scores[None]} | named), PERMUTATIONS))[0]


def adds(models: Models, scores: NDArray, rng: np.random.Generator) -> Verdict | None:
    """Whether similarity adds to the mean error of the members of ensembles of 3."""
    n = len(scores)
    drawn = np.stack([rng.choice(n, 3, replace=False) for _ in range(SAMPLES)])
    errors = errors_of(models, scores, [*((i,) for i in range(n)), *drawn], rng)
    found = select.held_out_models(scores, errors[:n], drawn, errors[n:])
    return None if found is None else verdict(found["gain"], (found["low"], found["high"]))


def same(models: Models, scores: NDArray) -> Verdict:
    """Whether scores agree with the matrix itself."""
    of = Definition("the matrix", models.scores), Definition("scores", scores)
    return agree(correlate(*of, PERMUTATIONS))[0]


VERDICTS: dict[str, tuple[Decide, int]] = {
    "pairwise: are models of one family more similar?": (lambda m, s, _: groups(m.families, s), 1),
    "within: are models of one base architecture?": (lambda m, s, _: groups(m.bases, s), 1),
    "relatives: is the nearest a relative?": (lambda _, s, rng: relative(s, rng), 1),
    "clusters: more alike than clusters of unrelated models?": (lambda _, s, rng: clustered(s), 2),
    "importance: does a component go with similarity?": (lambda m, s, _: component(m, s), 1),
    "importance: do components predict new models?": (lambda m, s, _: held_out(m, s), 5),
    "landmarks: do they predict the other scores?": (lambda _, s, rng: landmarks(s, rng), 5),
    "ensemble: do less similar pairs avoid more errors?": (avoids, 1),
    "ensemble: and given their errors?": (lambda m, s, rng: avoids(m, s, rng, 2), 1),
    "measures: does one predict error reductions?": (best_measure, 5),
    "select: does similarity add to the members' error?": (adds, 1),
    "compare: do two matrices agree?": (lambda m, s, _: same(m, s), 1),
}
"""By study and question, how it is decided, and by which the number of draws is divided."""


def frequencies(
    models: Models, draws: int, studies: Sequence[str] = (), seed: int = 0
) -> pl.DataFrame:
    """A row a verdict, of some studies or all, and kind of scores: n, and the shares that are Yes,
    Not certain and No."""
    rows = []
    for question, (decide, slower) in VERDICTS.items():
        unknown = not models.bases and question.startswith(("within", "importance"))
        if unknown or (studies and not question.startswith(tuple(studies))):
            continue
        for kind in ("real", "shuffled", "structureless"):
            rng = np.random.default_rng(seed)
            # The matrix itself is decided once where a draw chooses or simulates nothing.
            once = kind == "real" and not re.match("relatives|ensemble|measures|select", question)
            number = 1 if once else draws // slower
            found = Counter[str | None]()
            for _ in range(max(1, number)):
                scores = models.scores
                if kind != "real":
                    scores = (shuffled if kind == "shuffled" else structureless)(scores, rng)
                found[decide(models, scores, rng)] += 1
            said = {each: found[each] / found.total() for each in ("Yes", "Not certain", "No")}
            rows.append({"verdict": question, "scores": kind, "n": found.total(), **said})
    return pl.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scores", help="a CSV file of scores of all pairs")
    parser.add_argument("--components", help="a CSV file of the models' components")
    parser.add_argument("--draws", type=int, default=100, help="of each kind of scores")
    parser.add_argument("--studies", nargs="*", default=[], help="such as clusters; all by default")
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    options = parser.parse_args(arguments)
    read = matrix.read(options.scores)
    # Such as "resnet" of resnet50 and "vit" of test_vit: families by name.
    families = [re.match(r"(test_)?([a-z]+)", name)[2] for name in read.names]  # type: ignore[index]
    models = Models(read.scores, families)
    if options.components:
        table = rows_of(read_components(options.components), read.names, "the table")
        models = models._replace(bases=table[BASE].to_list(), differ=differences(table))
    found = frequencies(models, options.draws, options.studies)
    if options.out:
        found.write_csv(options.out)
    with pl.Config(tbl_cols=-1, tbl_rows=-1, fmt_str_lengths=80, tbl_width_chars=160):
        print(found)


if __name__ == "__main__":
    main()
