"""Tables of a similarity matrix."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.errors import and_more
from netkin.similarity import Outcomes

WEAK_ATTACK = 0.95
"""White-box success below which the attack, rather than the models, determines the scores."""


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


def left_out(skipped: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> list[str]:
    """How the images were read (`netkin.data.images.Images.notes`), and which could not be read,
    (id, reason); a paragraph each."""
    sentences = [f"{note[:1].upper()}{note[1:]}." for note in notes]
    if not skipped:
        return sentences
    images = and_more(f"{image} ({reason})" for image, reason in skipped)
    return [*sentences, f"{len(skipped)} images could not be read and were left out: {images}."]


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
