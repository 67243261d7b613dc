"""The similarity score and its uncertainty: pure functions of outcomes.

Source: "Similarity of Neural Architectures based on Input Gradient Transferability", Eq. 1.
For models A and B, label y, adversarial images x_A and x_B, and X, the images that both classify
correctly:

    p(A, B) = 1 / (2 |X|) * sum over X of [B(x_A) != y] + [A(x_B) != y]
    s(A, B) = ln max(eps_s, 100 p)

Everything is computed from one value per image, z = ([B(x_A) != y] + [A(x_B) != y]) / 2, which
includes the covariance of the two directions; p is its mean. Intervals are two-sided at 95 %.

The floor eps_s is far below every other score: ln 0.01 = -4.6, where one image of 500 gives -1.6.
One pair at the floor would dominate a mean or a correlation. What is computed from many scores
(clusters, means, correlations, the bootstrap) therefore takes the smoothed score

    ln(100 (k + 1/2) / (n + 1)),   k = n p, n = |X|

which adds half a success and half a failure to the images (Anscombe 1956, Gart 1966).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.errors import UserError

EPS_S = 0.01
ALPHA = 0.05  # how often an interval may miss
Z_95 = 1.959963984540054
ALWAYS = float(np.log(100.0))
"""The score of a pair whose every adversarial image transfers: ln 100 = 4.605."""


@dataclass(frozen=True)
class Outcomes:
    """Predictions of N models on I clean images and on each other's adversarial images.

    Attributes:
        members: N model names.
        image_ids: I image ids, the axis that bootstrap draws resample.
        correct: [N, I] bool, whether the model classifies the clean image correctly.
        fooled: [N, N, I] bool, fooled[a, b, i]: b misclassifies the adversarial image that was
            crafted on a from image i. Read only where a and b are both correct.
        noise: [N, I] bool, whether the model misclassifies the image under noise of the attack's
            eps; None without this control. Read only where the model is correct.

    Raises ValueError when the shapes disagree.
    """

    members: tuple[str, ...]
    image_ids: tuple[str, ...]
    correct: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    noise: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n, images = len(self.members), len(self.image_ids)
        if self.correct.shape != (n, images) or self.fooled.shape != (n, n, images):
            shapes = f"{self.correct.shape} and {self.fooled.shape}"
            expected = f"correct {(n, images)} and fooled {(n, n, images)}"
            raise ValueError(f"expected {expected}, got {shapes}")
        assert self.noise is None or self.noise.shape == (n, images)

    def both_correct(self, a: int, b: int) -> NDArray[np.bool_]:
        """X as a mask, [I] bool. Raises UserError, naming the pair, when no image is in it."""
        mask = self.correct[a] & self.correct[b]
        if not mask.any():
            raise nothing_common(self.members[a], self.members[b])
        return mask

    def per_image(self, a: int, b: int) -> NDArray[np.float64]:
        """z of each image in X, [|X|] in {0, 0.5, 1}."""
        mask = self.both_correct(a, b)
        return (self.fooled[a, b, mask].astype(float) + self.fooled[b, a, mask]) / 2

    def of(self, members: Sequence[str]) -> "Outcomes":
        """The outcomes of some of the models, by their names."""
        index = [self.members.index(name) for name in members]
        fooled = self.fooled[np.ix_(index, index)]
        noise = None if self.noise is None else self.noise[index]
        return Outcomes(tuple(members), self.image_ids, self.correct[index], fooled, noise)

    def on(self, images: Sequence[int]) -> "Outcomes":
        """The outcomes on some of the images, given by their positions."""
        return Outcomes(
            self.members,
            tuple(self.image_ids[i] for i in images),
            self.correct[:, images],
            self.fooled[:, :, images],
            None if self.noise is None else self.noise[:, images],
        )


def nothing_common(a: str, b: str) -> UserError:
    """The error of two models, or of one, that classify no image correctly together."""
    return UserError(
        f"no image is classified correctly by {' and '.join(dict.fromkeys((a, b)))}: their "
        "similarity is undefined; check the models' clean accuracy, labels and preprocessing, or "
        "use more images"
    )


def strangers(
    correct: NDArray[np.bool_], landmarks: Sequence[int] | None = None
) -> dict[int, list[int]]:
    """The models without which any two have an image that both classify correctly, [N, I] given:
    those with most of the empty pairs first, of equals the less accurate. Each with the models that
    it has no image in common with; with itself where it is never correct. Of pairs, only those with
    one of the landmarks count where these are given.
    """
    single = correct.astype(np.float32)
    empty, found = single @ single.T == 0, dict[int, list[int]]()
    if landmarks is not None:
        counts = np.isin(np.arange(len(empty)), landmarks)
        empty &= counts | counts[:, None]
    while empty.any():
        worst = max(range(len(empty)), key=lambda i: (empty[i].sum(), -single[i].sum(), i))
        found[worst] = np.flatnonzero(empty[worst]).tolist()
        empty[worst] = empty[:, worst] = False
    return found


def score(p: float | NDArray, eps_s: float = EPS_S) -> NDArray[np.float64]:
    """ln max(eps_s, 100 p) for a fooling rate p in [0, 1] (a number or an array)."""
    if not eps_s > 0:
        raise UserError(f"eps_s must be above 0, got {eps_s}")
    return np.log(np.maximum(eps_s, 100.0 * np.asarray(p, dtype=float)))


def smoothed(k: float | NDArray, n: float | NDArray) -> NDArray[np.float64]:
    """ln(100 (k + 1/2) / (n + 1)) for k of n images, in nats; NaN where n = 0.

    k may be a multiple of 1/2: an image that transfers in one direction counts half.
    """
    k, n = np.asarray(k, dtype=float), np.asarray(n, dtype=float)
    return np.where(n > 0, np.log(100.0 * (k + 0.5) / (n + 1.0)), np.nan)


def with_intervals(
    always: NDArray, half: NDArray, n: NDArray, eps_s: float = EPS_S, alpha: float = ALPHA
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores of pairs and the ends of their intervals, in nats, [P] each, by how many of the n > 0
    values z of a pair are 1 and 1/2. An interval misses with a probability of alpha.

    The exact limits of a binomial (Clopper and Pearson 1934) for the number of independent draws
    that would have the variance of z, n p (1 - p) / var(z) (Korn and Graubard 1998). The variance
    is that of z and one more image at each of 0 and 1, so that equal values do not count as
    certain: p = 0 has the upper limit ln(100 (1 - 0.025^(1/n))), about ln(370 / n). Measured
    coverage is 94.8 % or more at any p and n (experiments/results/statistics.md).
    """
    p = (always + half / 2) / n
    mean = (always + half / 2 + 1) / (n + 2)
    variance = (always + half / 4 + 1) / (n + 2) - mean**2
    low, high = exact_limits(p, n * mean * (1 - mean) / variance, alpha)
    return score(p, eps_s), score(low, eps_s), score(high, eps_s)


def exact_limits(
    p: NDArray[np.float64], draws: NDArray[np.float64], alpha: float = ALPHA
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Clopper and Pearson's limits of rates p in [0, 1] of so many draws, whole or not."""
    from scipy.stats import beta  # half a second

    x = p * draws
    with np.errstate(invalid="ignore"):
        low = np.where(x > 0, beta.ppf(alpha / 2, x, draws - x + 1), 0.0)
        high = np.where(p < 1, beta.ppf(1 - alpha / 2, x + 1, draws - x), 1.0)
    return low, high


def both_correct(outcomes: Outcomes, a: int, others: slice) -> NDArray[np.bool_]:
    """X of a model with each of some others, [P, I]. Raises UserError, with the pair, for an empty
    one."""
    both = outcomes.correct[a] & outcomes.correct[others]
    found = both.any(axis=1)
    if not found.all():
        outcomes.both_correct(a, range(len(outcomes.members))[others][int(np.argmin(found))])
    return both


def matrix(outcomes: Outcomes, eps_s: float = EPS_S) -> NDArray[np.float64]:
    """All scores of Eq. 1, [N, N], symmetric; the diagonal is ln(100 x white-box success)."""
    n = len(outcomes.members)
    s = np.empty((n, n))
    for a in range(n):
        images, there, back, _ = _counts(outcomes, a, slice(0, a + 1))
        s[a, : a + 1] = s[: a + 1, a] = score((there + back) / 2 / images, eps_s)
    return s


def _counts(outcomes: Outcomes, a: int, others: slice) -> tuple[NDArray[np.intp], ...]:
    """Of a model and each of some others, [P] each: |X|, images of a that fool the other, images of
    the other that fool a, and those whose adversarial images fool in both directions."""
    both = both_correct(outcomes, a, others)
    there, back = outcomes.fooled[a, others] & both, outcomes.fooled[others, a] & both
    return tuple(mask.sum(axis=1) for mask in (both, there, back, there & back))


def smoothed_matrix(outcomes: Outcomes) -> NDArray[np.float64]:
    """All smoothed scores, [N, N], symmetric: what is computed from many scores takes these."""
    return bootstrap(outcomes, counts=np.ones((1, len(outcomes.image_ids))))[0]


def one_sided(outcomes: Outcomes, counts: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Smoothed one-sided scores, [N, N] (Appendix G): entry [a, b] is of how often a's adversarial
    images fool b, over the images that both classify correctly.

    With counts [draws, I] of `resample`: [draws, N, N], NaN where a draw leaves a pair without
    images.
    """
    n, images = len(outcomes.members), len(outcomes.image_ids)
    weights = np.ones((1, images)) if counts is None else counts
    result = np.empty((len(weights), n, n))
    for a in range(n):
        both = both_correct(outcomes, a, slice(0, n)).astype(float)
        result[:, a] = smoothed(weights @ (both * outcomes.fooled[a]).T, weights @ both.T)
    return result[0] if counts is None else result


def pair_rows(
    outcomes: Outcomes, columns: Callable[[int, slice], Mapping[str, NDArray]]
) -> pl.DataFrame:
    """A row a pair: a, b, and the columns of each model's pairs with the models after it."""
    names = outcomes.members
    tables = [
        {"a": [name] * len(names[a:-1]), "b": names[a + 1 :], **columns(a, slice(a + 1, None))}
        for a, name in enumerate(names[:-1])
    ]
    return pl.concat(map(pl.DataFrame, tables)) if tables else pl.DataFrame()


def pairs(outcomes: Outcomes, eps_s: float = EPS_S, alpha: float = ALPHA) -> pl.DataFrame:
    """One row per pair: a, b, n, a_fools_b, b_fools_a (rates over X), score, low, high.

    An interval, low to high, misses with a probability of alpha: 5 % unless given.
    """

    def columns(a: int, others: slice) -> dict[str, NDArray]:
        n, there, back, always = _counts(outcomes, a, others)
        values, low, high = with_intervals(always, there + back - 2 * always, n, eps_s, alpha)
        rates = {"a_fools_b": there / n, "b_fools_a": back / n}
        return {"n": n, **rates, "score": values, "low": low, "high": high}

    return pair_rows(outcomes, columns)


WEAK_ATTACK = 0.95
"""White-box success below which the attack, rather than the models, determines the scores."""


def models(
    outcomes: Outcomes,
    scores: NDArray[np.float64],
    families: Sequence[str],
    params: Sequence[int],
    input_sizes: Sequence[int],
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


def row_draws(
    outcomes: Outcomes, counts: NDArray[np.float64]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each model a, and its smoothed scores with the models up to itself in each draw,
    [draws, a + 1]; see `bootstrap`."""
    single = counts.astype(np.float32)  # exact: sums of halves, far below 2^23
    for a in range(len(outcomes.members)):
        others = slice(0, a + 1)
        both = both_correct(outcomes, a, others).astype(np.float32)
        z = (outcomes.fooled[a, others].astype(np.float32) + outcomes.fooled[others, a]) / 2 * both
        yield a, smoothed(single @ z.T, single @ both.T)


def bootstrap(
    outcomes: Outcomes,
    draws: int = 1000,
    seed: int = 0,
    counts: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Matrices of smoothed scores of resampled images, [draws, N, N]; pairs share the draws.

    Whatever is computed from a matrix (a cluster, a family mean, a correlation) thereby gets an
    interval that accounts for the images that pairs share. NaN where a draw leaves a pair without
    images. `counts`, [draws, I], are the draws themselves, instead of `resample`'s.
    """
    n = len(outcomes.members)
    if counts is None:
        counts = resample(len(outcomes.image_ids), draws, seed)
    result = np.empty((len(counts), n, n))
    for a, scores in row_draws(outcomes, counts):
        result[:, a, : a + 1] = result[:, : a + 1, a] = scores
    return result


def resample(n: int, draws: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """How often each of n observations is in each bootstrap draw, [draws, n]; rows sum to n.

    The same n, draws and seed give the same draws, so that two statistics of the same images can
    be compared draw by draw.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), draws).astype(float)


def leave_out(n: int, parts: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Weights of n observations without one of them at a time, or without one of so many random
    parts where n is more: [min(n, parts), n] in {0, 1}."""
    parts = min(n, max(parts, 2))
    part = np.random.default_rng(seed).permutation(n) % parts
    return (part != np.arange(parts)[:, None]).astype(float)


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap draws [draws], ignoring NaN.

    (NaN, NaN) where all draws are NaN.
    """
    if np.isnan(draws).all():
        return np.nan, np.nan
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return float(low), float(high)
