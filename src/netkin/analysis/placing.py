"""Where a classifier belongs, known by its predictions on some landmarks' images alone.

s1(l, B), how often landmark l's images fool the classifier B, depends on how strong l's images are:
some landmarks fool every model. What tells B's relatives is by how much B is fooled more than other
models are, the excess over the mean of the landmark's row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from netkin import similarity
from netkin.similarity import Score

Z_90 = 1.6448536269514722


@dataclass(frozen=True)
class Answers:
    """What a classifier answers on m landmarks' images, over I images.

    Attributes:
        both: [m, I] bool, images that the landmark and the classifier classify correctly.
        fooled: [m, I] bool, adversarial images that it misclassifies.
        noise: [m, I] bool, images that it misclassifies under noise; None without this control.
    """

    both: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    noise: NDArray[np.bool_] | None

    def score(self, k: int, eps_s: float) -> Score:
        """s1 of a landmark with its 95 % interval."""
        return similarity.with_interval(self.fooled[k, self.both[k]].astype(float), eps_s)

    def smoothed(self, counts: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Smoothed s1 of each landmark, [m]; of draws of images, counts [draws, I], [draws, m]."""
        weights = np.ones((1, self.both.shape[1])) if counts is None else counts
        fooled = (self.fooled & self.both).astype(float)
        found = similarity.smoothed(weights @ fooled.T, weights @ self.both.T.astype(float))
        return found[0] if counts is None else found

    def noise_rate(self, k: int) -> float | None:
        """How often noise fools the classifier, over the landmark's images."""
        return None if self.noise is None else float(self.noise[k, self.both[k]].mean())

    def above_noise(self, k: int) -> bool | None:
        """Whether the landmark's images fool it more often than noise does (95 % interval)."""
        if self.noise is None:
            return None
        more = self.fooled[k, self.both[k]].astype(float) - self.noise[k, self.both[k]]
        return bool(more.mean() > similarity.Z_95 * more.std() / np.sqrt(len(more)))


def excess(row: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """A classifier's scores with N models, [..., N], less the mean of each model's other scores.

    Args:
        row: its scores, in nats; NaN where unknown.
        scores: [N, N], of the models: a column has the scores of all with one model. NaN where
            unknown; the diagonal is not read.
    """
    others = np.where(np.eye(len(scores), dtype=bool), np.nan, scores)
    known = ~np.isnan(others)
    total = np.where(known, others, 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return row - total / known.sum(axis=0)


def cluster_shares(
    draws: NDArray[np.float64], labels: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The cluster of the highest mean of each draw, [draws], and the share of each cluster, [k].

    Args:
        draws: [draws, N] excess scores; NaN where unknown.
        labels: [N] the models' clusters, from 0.
    """
    means = np.full((len(draws), int(labels.max()) + 1), -np.inf)
    for cluster in range(means.shape[1]):
        part = draws[:, labels == cluster]
        known = ~np.isnan(part)
        count = known.sum(axis=1)
        total = np.where(known, part, 0).sum(axis=1)
        means[:, cluster] = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
    chosen = means.argmax(axis=1)
    return chosen, np.bincount(chosen, minlength=means.shape[1]) / len(draws)


def drawn_rows(
    answers: Answers,
    marks: Sequence[int],
    predicted: NDArray[np.float64],
    half: NDArray[np.float64],
    counts: NDArray[np.float64],
    seed: int = 0,
) -> NDArray[np.float64]:
    """Rows of a classifier's scores over draws of images, [draws, N].

    The scores with landmarks are those of the draw. The others are predicted; each draw adds a
    normal error with the width of their interval.

    Args:
        answers: of the classifier.
        marks: [m] the landmarks among the N models.
        predicted: [N] its row.
        half: [N] half-widths of 90 % intervals of predicted scores; 0 for landmarks.
        counts: [draws, I] of `netkin.similarity.resample`.
        seed: of the errors.
    """
    noise = np.random.default_rng(seed).standard_normal((len(counts), len(predicted)))
    rows = predicted + noise * half / Z_90
    rows[:, list(marks)] = answers.smoothed(counts)
    return rows
