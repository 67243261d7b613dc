"""What two models' scores with some landmarks say about their score with each other.

A model's profile are its scores with the landmarks; of one-sided scores, how often their images
fool it. The features of a pair are of a fixed number: regressions can be fitted with some
landmarks and used with others.
"""

import numpy as np
from numpy.typing import NDArray

WIDTHS = (0.3, 1.0)
"""Widths of the kernel of kriging, relative to the median squared distance of landmarks."""
NOISE = 0.1
"""The variance of the noise in kriging, relative to that of the scores."""
RIDGE = 0.5
"""Added to the squared matrix of the landmarks before Nystrom's method inverts it, in nats^2."""
TINY = 1e-9


class Profiles:
    """The profiles of some models.

    Args:
        scores: [N, N] in nats: symmetric, or one-sided, of which the rows of landmarks are read:
            entry [a, b] is of how often a's images fool b.
        landmarks: [c] their positions, none of which is in `rows`.
        rows: [R] positions of the models.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        landmarks: NDArray[np.intp],
        rows: NDArray[np.intp],
    ):
        self.profile = scores[np.ix_(landmarks, rows)].T  # [R, c]
        between = scores[np.ix_(landmarks, landmarks)].T  # [c, c], of targets by sources
        own, c = np.diag(between), len(landmarks)
        self.mean, self.spread = self.profile.mean(axis=1), self.profile.std(axis=1)
        self.highest = self.profile.max(axis=1)
        centred = self.profile - self.mean[:, None]
        length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
        self.direction = centred / np.maximum(length, TINY)
        # Mean squared differences of profiles; scores of a landmark with itself are left out.
        squares = (between**2).sum(axis=1)
        apart = (self.profile**2).sum(axis=1)[:, None] + squares - 2 * self.profile @ between.T
        apart = np.maximum(apart - (self.profile - own) ** 2, 0) / max(c - 1, 1)
        marks = squares[:, None] + squares - 2 * between @ between.T
        marks -= (between - own) ** 2 + (between - own[:, None]) ** 2
        marks = np.maximum(marks, 0) / max(c - 2, 1)
        np.fill_diagonal(marks, 0)
        self.nearest = apart.argmin(axis=1)
        usual = max(float(np.median(marks[np.triu_indices(c, 1)])), TINY)
        self.kriging, self.averaging, self.closeness = [], [], []
        for width in WIDTHS:
            kernel, near = (np.exp(-x / (2 * width * usual)) for x in (marks, apart))
            self.kriging.append(near @ np.linalg.inv(kernel + NOISE * np.eye(c)))
            self.averaging.append(near / np.maximum(near.sum(axis=1, keepdims=True), TINY))
            self.closeness.append(near.max(axis=1))
        self.middle = float(between[~np.eye(c, dtype=bool)].mean())
        offset = between - self.middle
        inverse = np.linalg.solve(offset @ offset + RIDGE * np.eye(c), offset)
        self.nystrom = (self.profile - self.middle) @ inverse

    def features(
        self, a: NDArray[np.intp], b: NDArray[np.intp], directed: bool = False
    ) -> NDArray[np.float64]:
        """Features of pairs, [pairs, features], of the positions of their models among `rows`.

        With `directed` there are more, which tell the source a from the target b.
        """
        p, q = self.profile[a], self.profile[b]
        mean_a, mean_b = self.mean[a], self.mean[b]
        difference, least = np.abs(p - q), np.minimum(p, q)
        first = np.arange(len(a))
        by_a, by_b = q[first, self.nearest[a]], p[first, self.nearest[b]]
        columns = [
            mean_a + mean_b,
            np.abs(mean_a - mean_b),
            difference.mean(axis=1),
            np.sqrt((difference**2).mean(axis=1)),
            difference.max(axis=1),
            _dot(self.direction[a], self.direction[b]),
            least.mean(axis=1),
            least.max(axis=1),
            np.maximum(p, q).max(axis=1),
            _dot(p, q) / p.shape[1],
            np.minimum(self.highest[a], self.highest[b]),
            np.minimum(self.spread[a], self.spread[b]),
            np.maximum(self.spread[a], self.spread[b]),
            (by_a + by_b) / 2,
            np.maximum(by_a, by_b),
            self.middle + _dot(self.nystrom[a], q - self.middle),
        ]
        if directed:
            columns += [mean_a, mean_b, self.spread[a], self.spread[b], by_a, by_b]
        for kriging, averaging, near in zip(
            self.kriging, self.averaging, self.closeness, strict=True
        ):
            from_a = _dot(kriging[a], q - mean_b[:, None]) + mean_b
            from_b = _dot(kriging[b], p - mean_a[:, None]) + mean_a
            if directed:
                columns += [from_a, from_b]
            columns += [
                (from_a + from_b) / 2,
                (_dot(averaging[a], q) + _dot(averaging[b], p)) / 2,
                np.minimum(near[a], near[b]),
                np.maximum(near[a], near[b]),
            ]
        return np.stack(columns, axis=1)


def _dot(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", x, y)
