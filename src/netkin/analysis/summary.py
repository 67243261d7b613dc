"""A similarity matrix in words and tables."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.analysis.groups import within_and_between as over_draws
from netkin.analysis.matrix import off_diagonal
from netkin.analysis.statistics import verdict
from netkin.errors import and_more
from netkin.similarity import MeansOfDraws, Outcomes, interval

WEAK_ATTACK = 0.95
"""White-box success below which the attack, rather than the models, determines the scores."""


MODELS = 30
"""Models with a weak attack up to which all are named."""
FAMILIES = 15
"""Families up to which each has a sentence."""


def model_table(
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    families: list[str],
    params: list[int],
    input_sizes: list[int],
) -> pl.DataFrame:
    """One row per model.

    Columns: model, family, params, input_size (pixels a side), clean_accuracy, white_box_success
    (rates), white_box_score (the diagonal), mean_similarity (to the others), nearest (the most
    similar other), nearest_score.
    """
    n = len(outcomes.members)
    others = np.where(np.eye(n, dtype=bool), np.nan, scores)
    nearest = np.nanargmax(others, axis=1)
    return pl.DataFrame(
        {
            "model": outcomes.members,
            "family": families,
            "params": params,
            "input_size": input_sizes,
            "clean_accuracy": outcomes.correct.mean(axis=1),
            "white_box_success": [float(outcomes.per_image(i, i).mean()) for i in range(n)],
            "white_box_score": np.diag(scores),
            "mean_similarity": np.nanmean(others, axis=1),
            "nearest": [outcomes.members[i] for i in nearest],
            "nearest_score": others[np.arange(n), nearest],
        }
    )


def answer(
    pairs: pl.DataFrame,
    models: pl.DataFrame,
    family_means: pl.DataFrame,
    scores: NDArray[np.float64],
    draws: NDArray[np.float64] | MeansOfDraws,
) -> list[str]:
    """The findings as sentences, a paragraph each.

    Args:
        pairs: of `netkin.similarity.pairs`.
        models: of `model_table`; with a column suspect, no advice is given on models that are.
        family_means: of `netkin.similarity.family_means`.
        scores: [N, N], in the order of `models`.
        draws: bootstrap matrices, [draws, N, N], or their means, for the interval of within against
            between.
    """
    kinds = _within_or_between(models["family"].to_list(), scores, draws)
    paragraphs = [*kinds, _extremes(pairs, scores, first=not kinds)]
    paragraphs += _families(family_means)
    weak = models.filter(pl.col("white_box_success") < WEAK_ATTACK)
    if weak.height:
        named = [f"{r['model']} ({r['white_box_success']:.1%})" for r in weak.to_dicts()]
        names = ", ".join(named) if len(named) <= MODELS else and_more(named)
        paragraphs.append(
            f"The attack is weak on {names}: white-box success below {WEAK_ATTACK:.0%}, so scores "
            "in these rows understate similarity."
        )
        if "suspect" not in weak.columns or weak["suspect"].null_count():
            paragraphs[-1] += " Use more steps or a larger eps."
    return paragraphs


def resize(errors: pl.DataFrame) -> list[str]:
    """The errors that crop and resize alone cause, from `netkin.results.Results.resize_errors`."""
    if errors.is_empty():
        return []
    worst = errors.row(0, named=True)
    mean = errors["resize_error"].mean()
    return [
        f"The models take images in {errors['target_view'].n_unique()} geometries. Without any "
        f"attack, crop and resize alone make a target misclassify {mean:.1%} of another geometry's "
        f"images (at most {worst['resize_error']:.1%}: {worst['source_view']} to "
        f"{worst['target_view']}); scores between geometries include these errors."
    ]


def left_out(skipped: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> list[str]:
    """How the images were read (`netkin.data.images.Images.notes`), and which could not be read,
    (id, reason); a paragraph each."""
    sentences = [f"{note[:1].upper()}{note[1:]}." for note in notes]
    if not skipped:
        return sentences
    images = and_more(f"{image} ({reason})" for image, reason in skipped)
    return [*sentences, f"{len(skipped)} images could not be read and were left out: {images}."]


def part_of_imagenet(names: Sequence[str], classes: int) -> list[str]:
    """The models whose predictions were restricted to some of their classes."""
    if not names:
        return []
    return [
        f"Predictions of {and_more(names)} were restricted to the {classes} classes of this "
        "dataset, matched by WordNet id."
    ]


def _pair(row: dict) -> str:
    return (
        f"{row['a']} and {row['b']} (s = {row['score']:.2f}, 95% interval {row['low']:.2f} to "
        f"{row['high']:.2f})"
    )


def _extremes(pairs: pl.DataFrame, scores: NDArray[np.float64], first: bool) -> str:
    """The most and the least similar pair, as far as their intervals tell them apart.

    With `first` it begins with a verdict: whether some models are more related than others, or,
    of two models, whether they are.
    """
    ranked = pairs.sort("score", descending=True)
    best, worst = ranked.row(0, named=True), ranked.row(-1, named=True)
    if ranked.height == 1:
        above = best.get("above_noise")
        begin = "Yes" if above else "Not certain" if above is None else "No more than by noise"
        rate = min(np.exp(best["score"]) / 100, 1.0)
        return (
            f"{begin}: {best['a']} and {best['b']} score {_score(best)}. Each fools the other on "
            f"{rate:.1%} of the images on average."
        )
    mean = f"The mean of all {ranked.height:,} pairs is s = {off_diagonal(scores).mean():.2f}."
    if best["low"] <= worst["high"]:
        begin = "Not certain: no" if first else "No"
        return (
            f"{begin} pair is certainly more similar than another: the highest score, "
            f"{_pair(best)}, and the lowest, {_pair(worst)}, have intervals that overlap. {mean}"
        )
    near = ranked.filter(pl.col("high") >= best["low"]).height - 1
    far = ranked.filter(pl.col("low") <= worst["high"]).height - 1
    begin = "Yes, some are more related than others: the" if first else "The"
    return (
        f"{begin} most similar models are {_pair(best)}{_tied(near)}; the least similar are "
        f"{_pair(worst)}{_tied(far)}. {mean}"
    )


def _tied(pairs: int) -> str:
    """How many other pairs may be the extreme one."""
    if not pairs:
        return ""
    return (
        f", or one of {pairs:,} pairs whose intervals overlap"
        if pairs > 1
        else (", or one more pair whose interval overlaps")
    )


def _score(row: dict) -> str:
    return f"s = {row['score']:.2f} (95% interval {row['low']:.2f} to {row['high']:.2f})"


def _families(family_means: pl.DataFrame) -> list[str]:
    """For each family with a mean within: how that compares with its closest other family. Of more
    than FAMILIES, in how many it is higher."""
    between = family_means.filter(pl.col("family_a") != pl.col("family_b"))
    sentences, less = [], []
    for row in family_means.filter(pl.col("family_a") == pl.col("family_b")).to_dicts():
        family = row["family_a"]
        others = between.filter((pl.col("family_a") == family) | (pl.col("family_b") == family))
        if others.is_empty():
            continue
        closest = others.sort("mean", descending=True).row(0, named=True)
        other = ({closest["family_a"], closest["family_b"]} - {family}).pop()
        verb = "more" if row["mean"] > closest["mean"] else "less"
        less += [family] if verb == "less" else []
        sentences.append(
            f"{family} models are {verb} similar to each other (mean s = {row['mean']:.2f}) than "
            f"to the closest other family, {other} ({closest['mean']:.2f})."
        )
    if len(sentences) > FAMILIES:
        told = (
            f"In {len(sentences) - len(less)} of {len(sentences)} families models are more similar "
        )
        told += "to each other than to the closest other family"
        return [f"{told}; not in {and_more(less)}." if less else f"{told}."]
    return [" ".join(sentences)] if sentences else []


def within_and_between(
    families: Sequence[str], scores: NDArray[np.float64]
) -> tuple[float, float] | None:
    """The mean score of pairs within families and of pairs between them, [N, N] in nats.

    None where there is no pair of one kind.
    """
    pair = np.tri(len(families), k=-1, dtype=bool)
    same = np.equal.outer(np.array(families), np.array(families))
    if not (pair & same).any() or not (pair & ~same).any():
        return None
    return float(scores[pair & same].mean()), float(scores[pair & ~same].mean())


def _within_or_between(
    families: list[str],
    scores: NDArray[np.float64],
    draws: NDArray[np.float64] | MeansOfDraws,
) -> list[str]:
    """The mean within families less that between families, with an interval over images."""
    means = within_and_between(families, scores)
    if means is None:
        return []
    within, between = means
    of_draws = over_draws(draws, families)
    low, high = interval(of_draws[:, 0] - of_draws[:, 1])
    return [
        f"{verdict(low, high)}: models of one family fool each other "
        f"{np.exp(within - between):.1f} times as often as models of different ones. Within a "
        f"family the mean is s = {within:.2f}, between families {between:.2f}: a difference of "
        f"{within - between:.2f} (95% interval over images {low:.2f} to {high:.2f})."
    ]
