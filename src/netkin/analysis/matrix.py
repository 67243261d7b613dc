"""A similarity matrix with the names of its models: measured, or read from a CSV file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.data.tables import read_text
from netkin.errors import UserError, and_more, check_known

SYMMETRIC = 1e-6
"""The largest difference of s(A, B) and s(B, A) in a file that counts as symmetric, in nats."""


@dataclass(frozen=True)
class Matrix:
    """Scores [N, N] of N named models, in nats, symmetric and without NaN."""

    names: tuple[str, ...]
    scores: NDArray[np.float64]

    def table(self) -> pl.DataFrame:
        """As it is written to files: the names in a first column without a name, then a column per
        model."""
        columns = {name: self.scores[:, i] for i, name in enumerate(self.names)}
        return pl.DataFrame({"": self.names, **columns})

    def pairs(self, **others: NDArray) -> pl.DataFrame:
        """A row a pair: a, b, score, and a column for each other matrix [N, N] of the models."""
        rows, columns = pair_index(len(self.names))
        names, matrices = np.array(self.names), {"score": self.scores, **others}
        values = {name: pair_values(matrix) for name, matrix in matrices.items()}
        return pl.DataFrame({"a": names[columns], "b": names[rows], **values})

    def of(self, names: tuple[str, ...], what: str = "the matrix") -> "Matrix":
        """The part of it for some models, in their order; `what` names the matrix in errors.

        Raises UserError for a name that is not in the matrix.
        """
        index = [position_of(name, self.names, what) for name in names]
        return Matrix(names, self.scores[np.ix_(index, index)])


def pair_index(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs of n models, each once: (1, 0), (2, 0), (2, 1), (3, 0) ..."""
    return np.tril_indices(n, k=-1)


def pair_values(matrices: NDArray) -> NDArray:
    """The values of pairs, [..., N, N] -> [..., N (N - 1) / 2], in the order of `pair_index`."""
    return matrices[..., *pair_index(matrices.shape[-1])]


def square(values: NDArray, n: int, diagonal: float = np.nan) -> NDArray[np.float64]:
    """Symmetric matrices of the values of pairs: the inverse of `pair_values`."""
    rows, columns = pair_index(n)
    result = np.full((*np.shape(values)[:-1], n, n), diagonal)
    result[..., rows, columns] = result[..., columns, rows] = values
    return result


def off_diagonal(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The known scores of pairs of different models, each once: [at most N (N - 1) / 2]."""
    pairs = pair_values(scores)
    return pairs[~np.isnan(pairs)]


def position_of(name: str, names: Sequence[str], what: str = "the matrix") -> int:
    """The position of a model among the names of a matrix; `what` names the matrix in errors.

    Raises UserError, with similar names, where it is not among them.
    """
    check_known(name, names, f"{what} has no model {name!r}")
    return list(names).index(name)


def read(path: str | Path, symmetrise: bool = False) -> Matrix:
    """A square matrix from a CSV file: a header of names, and each row's name in its first cell.

    Rows and columns may be in different orders. Raises UserError for a file that is not square, has
    different names on its two axes, has a cell that is not a number, is not symmetric within 1e-6
    (unless `symmetrise` replaces s(A, B) and s(B, A) by their mean), or whose scores of different
    models are all equal.
    """
    file = Path(path).expanduser()
    expected = "a header of model names, and a row of scores per model"
    table = read_text(file, header=False, expected=expected)
    if table.height < 2 or table.width < 2:
        shape = f"{table.height} rows and {table.width} columns"
        raise UserError(f"{file} has {shape}; expected {expected}")
    names, rows = list(table.row(0)[1:]), table.to_series(0).to_list()[1:]
    if len(rows) != len(names):
        raise UserError(
            f"{file} is not square: {len(rows)} rows and {len(names)} columns of scores; expected "
            f"{expected}"
        )
    for axis, given in (("row", rows), ("column", names)):
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise UserError(f"{file} has more than one {axis} named {', '.join(twice)}")
    if missing := [name for name in names if name not in rows]:
        other = [name for name in rows if name not in names]
        raise UserError(
            f"{file} names different models in its header and its first column: "
            f"{and_more(missing, 3)} in the header only, {and_more(other, 3)} in the column "
            "only"
        )
    cells = table[1:, 1:][[rows.index(name) for name in names]]
    scores = cells.select(pl.all().cast(pl.Float64, strict=False)).to_numpy()
    if not np.isfinite(scores).all():
        i, j = np.argwhere(~np.isfinite(scores))[0].tolist()
        raise UserError(
            f"{file}: the score of {names[i]} and {names[j]} is {cells[i, j]!r}, expected a "
            "number; leave out models without scores"
        )
    apart = np.abs(scores - scores.T)
    if apart.max() > SYMMETRIC and not symmetrise:
        a, b = np.unravel_index(int(apart.argmax()), apart.shape)
        raise UserError(
            f"{file} is not symmetric: {names[a]}, {names[b]} is {scores[a, b]:.6g} and "
            f"{names[b]}, {names[a]} is {scores[b, a]:.6g}; symmetrise=True takes their mean"
        )
    return checked(Matrix(tuple(names), (scores + scores.T) / 2), str(file))


def checked(matrix: Matrix, what: str) -> Matrix:
    """The matrix itself; `what` names it in errors.

    Raises UserError where it has fewer than 2 models, or one score for all pairs.
    """
    n = len(matrix.names)
    if n < 2:
        raise UserError(f"{what} has {n} model, expected 2 or more")
    pairs = off_diagonal(matrix.scores)
    if len(pairs) > 1 and np.ptp(pairs) < 1e-12:
        raise UserError(
            f"{what} is constant: all {len(pairs)} pairs have the score {pairs[0]:.4g}, so it does "
            "not distinguish models"
        )
    return matrix
