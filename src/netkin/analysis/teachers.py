"""The choice of teachers for studying how similarity to the student matters (Sec. 4.2)."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.errors import UserError


def choose(
    names: Sequence[str],
    similarities: NDArray[np.float64],
    number: int = 25,
    above: float = 2.5,
    seed: int = 0,
) -> pl.DataFrame:
    """All candidates above a similarity, and a sample of the others with their distribution.

    The others are sorted by similarity and split into as many runs of (nearly) equal length as
    teachers are still needed, and one is drawn from each run.

    Args:
        names: of N candidates.
        similarities: of each to the student, [N], in nats.
        number: of teachers, unless more candidates are above.
        above: every candidate with a higher similarity is chosen, in nats.
        seed: of the draw.

    Returns:
        A row per candidate, in descending order of similarity: teacher, similarity, and chosen,
        which is "above", "sampled" or null.

    Raises UserError when there are fewer candidates than `number`.
    """
    if len(names) < number:
        raise UserError(
            f"number must be at most {len(names)}, since there are {len(names)} candidates, got "
            f"{number}; choose fewer teachers, or from more models"
        )
    order = np.argsort(-similarities, kind="stable")
    high = [int(i) for i in order if similarities[i] > above]
    rest = [int(i) for i in order if similarities[i] <= above]
    needed = max(0, number - len(high))
    rng = np.random.default_rng(seed)
    sampled = {int(rng.choice(run)) for run in np.array_split(rest, needed)} if needed else set()
    how = {**dict.fromkeys(high, "above"), **dict.fromkeys(sampled, "sampled")}
    return pl.DataFrame(
        {
            "teacher": [names[i] for i in order],
            "similarity": similarities[order],
            "chosen": [how.get(int(i)) for i in order],
        },
        schema={"teacher": pl.String, "similarity": pl.Float64, "chosen": pl.String},
    )
