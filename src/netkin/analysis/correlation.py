"""Two definitions of the scores of the same models: how far they agree, as a row and in words."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from netkin.analysis import noise, statistics
from netkin.analysis.noise import OverImages, Sampled
from netkin.analysis.statistics import FEWEST, p_text


class Definition(NamedTuple):
    """One way to score pairs, such as "pgd": [N, N], symmetric or one-sided ([a, b]: b on a's
    images), NaN where a pair has no score, as in rows of models that were not attacked; and the
    same on other images, drawn in the same way for all definitions, where these are known."""

    name: str
    scores: NDArray[np.float64]
    sampled: Sampled | None = None


def correlate(
    first: Definition,
    other: Definition,
    permutations: int = statistics.PERMUTATIONS,
    images: OverImages | None = None,
) -> dict[str, Any]:
    """Pearson's r of two definitions over pairs, as a row of a table; null where unknown.

    Columns: reference and other (names), models, n (pairs), r; models_low and models_high, its 95 %
    interval over models; those of `OverImages.row`, of `images` if given; p, by so many
    permutations of models (`test` is Mantel), or of targets where the first has rows without
    scores; and p_independent_pairs.
    """
    x, y, low, high = first.scores, other.scores, np.nan, np.nan
    pairs, attacked = statistics.pearson(*statistics.paired(x, y)), ~np.isnan(x).all(axis=1)
    if attacked.all():
        test, tested = "Mantel", statistics.mantel(x, y, permutations)
        low, high = statistics.over_models(x, y)
    else:
        off = np.where(np.eye(len(x), dtype=bool), np.nan, 1.0)
        test = "target permutation"
        tested = statistics.target_test((x * off)[attacked], (y * off)[attacked], permutations)
    if images is None and first.sampled is not None and other.sampled is not None:
        at = statistics.pair_positions(x, y)
        images = noise.over_images(first.sampled.at(*at), other.sampled.at(*at), len(x))
    return {
        "reference": first.name,
        "other": other.name,
        "models": len(x),
        "n": pairs.n,
        "r": pairs.r,
        "models_low": None if np.isnan(low) else low,
        "models_high": None if np.isnan(low) else high,
        **(images or OverImages()).row(),
        "p": tested.p,
        "permutations": tested.permutations,
        "test": test,
        "p_independent_pairs": pairs.p,
    }


def note(row: dict[str, Any]) -> str:
    """A row for a figure, such as "r = -0.31, Mantel p = 0.0012, n = 66"."""
    p = p_text(row["p"], row["permutations"])
    return f"r = {row['r']:.2f}, {row['test']} p {p}, n = {row['n']}"


def sentence(row: dict[str, Any]) -> str:
    """A row for a report: r, its intervals, the noise of the images, and both p-values."""
    n = row["n"]
    if np.isnan(row["r"]):
        why = "too few, or all scores of one are the same"
        return f"no correlation over {n:,} pair{'s' * (n != 1)} ({why})."
    notes = [noise.text(row)]
    if row["models_low"] is not None:
        ends = f"{row['models_low']:.2f} to {row['models_high']:.2f}"
        notes.append(f"95% interval over models {ends}")
    if row["models"] < FEWEST:
        notes.append(f"too few models for an interval or a verdict (fewer than {FEWEST})")
    listed, p = "; ".join(filter(None, notes)), p_text(row["p"], row["permutations"])
    return (
        f"Pearson r = {row['r']:.3f} over {n:,} pairs of {row['models']} models"
        f"{f' ({listed})' if listed else ''}; {row['test']} p {p} ({row['permutations']:,} "
        "permutations). If pairs were independent, which they are not: "
        f"p {p_text(row['p_independent_pairs'])}."
    )
