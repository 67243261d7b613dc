"""Scores with some models, the landmarks, from what the store holds: no other pair is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin import similarity
from netkin.errors import UserError
from netkin.model import Model
from netkin.results import Results


@dataclass(frozen=True)
class Rows:
    """The scores of N models with m landmarks among them.

    Attributes:
        marks: [m] positions of the landmarks.
        scores: [N, N], smoothed, in nats; NaN for pairs without a landmark, and on the diagonal of
            other models. Symmetric, unless only landmarks were attacked: then entry [a, b] is of
            how often the images of the landmark a fool b.
        pairs: a row a pair with a landmark: a (the landmark), b, n, a_fools_b, b_fools_a (null
            where b was not attacked), score, low, high (95 % interval).
        forward: [m, N, I] bool, which landmarks' images fool each model.
        correct: [N, I] bool, which clean images the models classify correctly.
    """

    marks: NDArray[np.intp]
    scores: NDArray[np.float64]
    pairs: pl.DataFrame
    forward: NDArray[np.bool_]
    correct: NDArray[np.bool_]


def rows(
    results: Results,
    members: Sequence[Model],
    marks: Sequence[int],
    one_sided: bool,
    eps_s: float = similarity.EPS_S,
) -> Rows:
    """The scores of all members with the landmarks, whose passes are done.

    Args:
        results: of the images and the attack.
        members: N models.
        marks: positions of the landmarks among them.
        one_sided: whether only landmarks were attacked.
        eps_s: the floor of 100 p.

    Raises UserError, naming the pair, where no image is classified correctly by both.
    """
    chosen = [members[i] for i in marks]
    right = np.stack([results.correct(member).numpy() for member in members])
    forward = results.fooled(chosen, members)
    back = {int(i): forward[k] for k, i in enumerate(marks)}  # by source: [N or m, I]
    others = [] if one_sided else [i for i in range(len(members)) if i not in back]
    if others:
        reverse = results.fooled([members[i] for i in others], chosen)
        back |= dict(zip(others, reverse, strict=True))
    scores, table = np.full((len(members), len(members)), np.nan), []
    for k, a in enumerate(marks):
        for b, other in enumerate(members):
            if b in marks[:k]:
                continue
            both = right[a] & right[b]
            if not both.any():
                raise UserError(
                    f"no image is classified correctly by {members[a].name} and {other.name}: their"
                    " similarity is undefined; check the models' clean accuracy, or use more images"
                )
            there = forward[k, b, both]
            reverse = back.get(b)
            known = reverse is not None
            again = reverse[a if b in marks else k, both] if reverse is not None else there
            z = (there.astype(float) + again) / 2
            ends = (there, again) if one_sided else (z, z)
            scores[a, b], scores[b, a] = (similarity.smoothed(x.sum(), len(x)) for x in ends)
            if a != b:
                names = members[a].name, other.name
                table.append(_pair(*names, there, again if known else None, z, eps_s))
    schema = {"b_fools_a": pl.Float64}
    return Rows(
        np.asarray(marks, dtype=np.intp),
        scores,
        pl.DataFrame(table, schema_overrides=schema, infer_schema_length=None),
        forward,
        right,
    )


def _pair(
    a: str,
    b: str,
    there: NDArray[np.bool_],
    back: NDArray[np.bool_] | None,
    z: NDArray[np.float64],
    eps_s: float,
) -> dict[str, str | float | None]:
    """A row of `Rows.pairs`, of the images that both classify correctly."""
    found = similarity.with_interval(z, eps_s)
    return {
        "a": a,
        "b": b,
        "n": found.n,
        "a_fools_b": float(there.mean()),
        "b_fools_a": None if back is None else float(back.mean()),
        "score": found.score,
        "low": found.low,
        "high": found.high,
    }
