"""Which teachers to distil from, to see what their similarity to the student does (Sec. 4.2)."""

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
    """All candidates above a similarity, and of the others a sample with their distribution.

    The others are sorted by similarity and cut into as many runs of (nearly) equal length as are
    still wanted, and one of each is drawn: so the sample has their quantiles.

    Args:
        names: of N candidates.
        similarities: of each to the student, [N], in nats.
        number: how many teachers, where no more than these are above.
        above: the similarity from which on every candidate is chosen.
        seed: of the draw.

    Returns:
        A row a candidate, by falling similarity: teacher, similarity, chosen ("above", "sampled" or
        null). Raises UserError when there are fewer candidates than wanted.
    """
    if len(names) < number:
        raise UserError(
            f"number must be at most {len(names)}, since there are {len(names)} candidates, got "
            f"{number}; choose fewer teachers, or from more models"
        )
    order = np.argsort(-similarities, kind="stable")
    high = [int(i) for i in order if similarities[i] > above]
    rest = [int(i) for i in order if similarities[i] <= above]
    wanted = max(0, number - len(high))
    rng = np.random.default_rng(seed)
    sampled = {int(rng.choice(run)) for run in np.array_split(rest, wanted)} if wanted else set()
    how = {**dict.fromkeys(high, "above"), **dict.fromkeys(sampled, "sampled")}
    return pl.DataFrame(
        {
            "teacher": [names[i] for i in order],
            "similarity": similarities[order],
            "chosen": [how.get(int(i)) for i in order],
        },
        schema={"teacher": pl.String, "similarity": pl.Float64, "chosen": pl.String},
    )
