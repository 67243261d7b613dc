"""Is the ERR of pairs related to their similarity, and is there anything beyond accuracy? (Fig. 2.)

The first part of `experiments.studies.ensemble`.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.cli.study import Study
from netkin.analysis import ensemble
from netkin.analysis.matrix import Matrix, pair_index, square
from netkin.analysis.noise import OverImages, Sampled, halves, over_images, sampled_scores, text
from netkin.analysis.statistics import (
    FEWEST,
    Association,
    Tested,
    associate,
    paired,
    partial_mantel,
    trend,
)
from netkin.report.plots import scatter_figure
from netkin.report.study import Section
from netkin.similarity import interval

LEVEL = 0.05
"""Of the p-value below which a relation is certain."""


def pair_section(
    s: Study,
    matrix: Matrix,
    wrong: NDArray[np.bool_],
    pair_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> Section:
    """Fig. 2: ERR of all pairs against their similarity."""
    scores, n, permutations = matrix.scores, len(matrix.names), s.config.ensemble.permutations
    table = pair_table(matrix, wrong, pair_wrong, counts)
    err, mean, gap = (
        square(table[name].to_numpy(), n) for name in ("err", "member_error", "error_gap")
    )
    association = associate(scores, err, permutations)
    beyond = partial_mantel(scores, err, (mean, gap), permutations)
    r = association.pairs.r
    if not np.isnan(r):
        s.tracker.summary({"ensemble/r": r, "ensemble/mantel_p": association.test.p})
    x, y = paired(scores, err)
    figure = scatter_figure(
        x,
        100 * y,
        "similarity s (nats)",
        "error reduction rate (%)",
        names=[f"{a} + {b}" for a, b in table.select("a", "b").iter_rows()] if n < 6 else None,
        trend=trend(x, 100 * y) if n >= FEWEST else None,
        text=str(association) if n > 2 else "",
    )
    caption = (
        f"Error reduction rate of all {table.height} pairs against their similarity. "
        "Line and band: least squares and the 90% confidence band of its mean for independent "
        "pairs."
    )
    picture = s.outputs.figure("ensemble_pairs", figure, table, caption)
    images = text(pair_noise(s, table, wrong, pair_wrong, counts, n).row(), r)
    paragraphs = [
        f"{verdict(association)} {effect(table, wrong.shape[1])}",
        f"Similarity and error reduction: {association.sentence()}"
        + (f" {images[0].upper()}{images[1:]}." if images else ""),
        beyond_accuracy(beyond, n),
        *one_image(table),
    ]
    if undefined := table["err"].is_nan().sum():
        paragraphs.append(f"{undefined} pairs have no ERR: neither model errs.")
    return Section("Similarity and error reduction (Fig. 2)", paragraphs, {}, [picture])


def pair_table(
    matrix: Matrix,
    wrong: NDArray[np.bool_],
    pair_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
) -> pl.DataFrame:
    """A row a pair: similarity (nats), errors, ERR with its 95 % interval, images that either model
    misclassifies, and what one more misclassified image takes from ERR."""
    groups = ensemble.pairs_of(len(wrong))
    a, b = np.array(groups).T
    alone, error = wrong.mean(axis=1), pair_wrong.mean(axis=1)
    mean = (alone[a] + alone[b]) / 2
    drawn = ensemble.reduction_draws(wrong, groups, pair_wrong, counts)
    ends, events = [], []
    for i, group in enumerate(groups):
        members = wrong[list(group)].mean(axis=0)
        events.append(int((members > 0).sum()))
        few = min(pair_wrong[i].sum(), events[-1]) < ensemble.FEW
        exact = ensemble.reduction_interval(pair_wrong[i], members, 2)
        ends.append(exact if few else interval(drawn[:, i]))
    return pl.DataFrame(
        {
            "a": [matrix.names[i] for i in a],
            "b": [matrix.names[i] for i in b],
            "similarity": matrix.scores[a, b],
            "top1_error": error,
            "err": ensemble.reduction(error, mean),
            "err_low": [low for low, _ in ends],
            "err_high": [high for _, high in ends],
            "all_wrong": (wrong[a] & wrong[b]).mean(axis=1),
            "member_error": mean,
            "error_gap": np.abs(alone[a] - alone[b]),
            "images_with_errors": events,
            "err_of_one_image": [1 / (wrong.shape[1] * m) if m else np.nan for m in mean],
        }
    )


def pair_noise(
    s: Study,
    table: pl.DataFrame,
    wrong: NDArray[np.bool_],
    pair_wrong: NDArray[np.bool_],
    counts: NDArray[np.float64],
    n: int,
) -> OverImages:
    """The noise of the images in the correlation of similarity and ERR; unknown for a file."""
    if s.measured is None:
        return OverImages()
    score = s.config.score
    scores = sampled_scores(s.measured.outcomes, score.bootstrap)
    reductions = (
        ensemble.reduction_draws(wrong, ensemble.pairs_of(n), pair_wrong, weights)
        for weights in (counts, halves(wrong.shape[1]))
    )
    err = Sampled(table["err"].to_numpy(), *reductions)
    return over_images(scores.at(*pair_index(n)), err, n)


def verdict(association: Association) -> str:
    """Whether less similar pairs make better ensembles, in words."""
    if association.models < FEWEST or np.isnan(association.pairs.r):
        return f"Not certain: {association.models} models are too few for a verdict."
    if association.test.p >= LEVEL:
        return "Not certain: the correlation may be chance."
    if association.pairs.r < 0:
        return "Yes: the less similar a pair, the more errors it avoids."
    return "No: the more similar a pair, the more errors it avoids."


def effect(table: pl.DataFrame, images: int) -> str:
    """What similarity changes in plain rates, and what one image is worth."""
    ranked = table.sort("similarity")
    half = max(ranked.height // 2, 1)
    low, high = ranked.head(half)["top1_error"], ranked.tail(half)["top1_error"]
    errors = table["top1_error"]
    return (
        f"The less similar half of the pairs misclassifies {low.mean():.2%} of the images, the "
        f"more similar half {high.mean():.2%}; one image of {images} is {1 / images:.2%}, and "
        f"pairs err on {errors.min():.1%} to {errors.max():.1%}."
    )


def beyond_accuracy(beyond: Tested, models: int) -> str:
    """What similarity adds to the accuracy of the members, the verdict first."""
    question = "Is there anything beyond accuracy?"
    given = "given the mean error of a pair's members and their difference"
    if models < FEWEST or np.isnan(beyond.r):
        return f"{question} Not certain: {models} models are too few to say, {given}."
    if beyond.p >= LEVEL:
        found = "Not certain: no relation of similarity and ERR was found"
    else:
        found = f"Yes: {'less' if beyond.r < 0 else 'more'} similar pairs have a higher ERR"
    return f"{question} {found}, {given}: partial r = {beyond.r:.2f}, Mantel {beyond.text()}."


def one_image(table: pl.DataFrame) -> list[str]:
    """Says, if it is so, that one image is worth more than the effect of similarity on ERR."""
    line = trend(table["similarity"].to_numpy(), table["err"].to_numpy())
    worth = table["err_of_one_image"].drop_nans()
    if line is None or not len(worth):
        return []
    effect, median = abs(line.slope) * float(np.ptp(line.x)), float(np.median(worth))
    if median <= effect:
        return []
    return [
        f"One misclassified image is worth {median:.2f} of the ERR of the median pair, more than "
        f"the effect: {effect:.2f} from the least to the most similar pair. Use more images."
    ]
