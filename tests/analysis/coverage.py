"""Coverage of intervals by simulation: the tables of experiments/results/statistics.md.

python -m tests.analysis.coverage        # minutes on one core
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from netkin.analysis import clusters, confounders, ensemble, matrix, noise, sequential
from netkin.analysis.noise import Sampled, halves
from netkin.analysis.statistics import correlations, over_images, over_models
from netkin.similarity import interval, leave_out, resample, score, smoothed, with_intervals
from tests.analysis.test_matrix import PUBLISHED
from tests.conftest import ROOT

DIGITS = ROOT / "experiments" / "results" / "figures" / "digits_similarity.csv"
SPREAD = 1.5
"""Of the difficulty of images, in logits; all pairs and both matrices share it."""


def another(scores: NDArray, r: float, seed: int = 0) -> tuple[NDArray, NDArray]:
    """The pairs of a matrix [N, N], and true scores that correlate with them at about r."""
    rng = np.random.default_rng(seed)
    a, b = np.tril_indices(len(scores), k=-1)
    x = scores[a, b]
    models = rng.normal(size=len(scores))
    other = models[a] + models[b] + rng.normal(size=len(x))
    z = (x - x.mean()) / x.std()
    other = other - other.mean() - z * (other @ z) / len(z)
    y = x.mean() + x.std() * (r * z + np.sqrt(1 - r**2) * other / other.std())
    return x, np.clip(y, -1, 4.55)


def logits_of(scores: NDArray) -> NDArray:
    """The logits of pairs whose mean rate over images of all difficulties is exp(scores) / 100."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    low, high = np.full(len(scores), -15.0), np.full(len(scores), 15.0)
    for _ in range(60):
        middle = (low + high) / 2
        rates = 1 / (1 + np.exp(-(middle[:, None] + SPREAD * nodes))) @ (weights / weights.sum())
        low = np.where(rates < np.exp(scores) / 100, middle, low)
        high = np.where(rates < np.exp(scores) / 100, high, middle)
    return middle


def samples(
    x: NDArray, y: NDArray, images: int, repetitions: int, draws: int, seed: int = 0
) -> Iterator[tuple[Sampled, Sampled]]:
    """Scores of pairs with true scores x and y, measured on random images in both directions.

    With half counts, as the studies have them.
    """
    rng = np.random.default_rng(seed)
    means = [logits_of(values) for values in (x, y)]
    for _ in range(repetitions):
        difficulty = SPREAD * rng.normal(size=images)
        counts = resample(images, draws, int(rng.integers(2**31))).astype(np.float32)
        parts = halves(images).astype(np.float32)
        both = []
        for mean in means:
            rate = 1 / (1 + np.exp(-(mean[:, None] + difficulty)))
            z = rng.binomial(2, rate).astype(np.float32) / 2  # [pairs, images]
            half = images // 2
            totals = (z.sum(axis=1), images), (counts @ z.T, images), (parts @ z.T, half)
            whole, drawn, halved = (np.log(100 * (k + 0.5) / (n + 1)) for k, n in totals)
            both.append(Sampled(whole, drawn, halved))
        yield both[0], both[1]


def plain(values: NDArray, images: int) -> NDArray:
    """s itself of scores with half counts."""
    return score(((images + 1) * np.exp(values) / 100 - 0.5) / images)


def of_r(
    scores: NDArray, r: float, images: int, repetitions: int = 300, draws: int = 200
) -> dict[str, float]:
    """Simulated correlations: the true r, means, and the coverage of two 95 % intervals, the
    percentiles of r of s over draws of images, and that of `noise.over_images`."""
    x, y = another(scores, r)
    true, rows = float(np.corrcoef(x, y)[0, 1]), []
    for a, b in samples(x, y, images, repetitions, draws):
        found = noise.over_images(a, b, len(scores))
        low, high = interval(correlations(plain(a.draws, images), plain(b.draws, images)))
        measured = np.corrcoef(plain(a.values, images), plain(b.values, images))[0, 1]
        held = low <= true <= high, found.low <= true <= found.high
        rows.append((measured, found.r, found.ceiling, *held))
    names = ("measured", "without_noise", "ceiling", "percentile", "corrected")
    return {"true": true, **dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))}


def of_pairs(n: int, p: float, repetitions: int = 10_000) -> float:
    """Coverage of the interval of a pair of n images and a fooling rate p: the least of directions
    that are independent, of which one is 6 times the other, that are equal, and never equal."""
    rng, larger, found = np.random.default_rng(0), min(12 / 7 * p, 1), []
    for both in (p * p, larger * (2 * p - larger), p, max(2 * p - 1, 0)):
        chances = np.clip([both, 2 * (p - both), 1 - 2 * p + both], 0, 1)
        drawn = rng.multinomial(n, chances, repetitions)
        _, low, high = with_intervals(drawn[:, 0], drawn[:, 1], np.full(repetitions, n))
        found.append(((low <= score(p) + 1e-12) & (score(p) <= high + 1e-12)).mean())
    return float(min(found))


def of_means(scores: NDArray, images: int, repetitions: int = 400) -> tuple[float, float]:
    """Coverage of the mean within 4 clusters less that between them: by percentiles of bootstrap
    draws, and as reported."""
    rng, rows, columns = np.random.default_rng(0), *np.tril_indices(len(scores), k=-1)
    labels, x = clusters.spectral(scores, 4), np.clip(scores[rows, columns], -1, 4.55)
    same, mean, held = labels[rows] == labels[columns], logits_of(x), []
    weight = same / same.sum() - ~same / (~same).sum()
    samples = resample(images, 400), leave_out(images)
    for _ in range(repetitions):
        difficulty = SPREAD * rng.normal(size=images)
        z = rng.binomial(2, 1 / (1 + np.exp(-(mean[:, None] + difficulty)))) / 2
        drawn, without = (smoothed(w @ z.T, w.sum(axis=1)[:, None]) @ weight for w in samples)
        ends = interval(drawn), over_images(smoothed(z.sum(axis=1), images) @ weight, without)
        held.append([low <= x @ weight <= high for low, high in ends])
    percentiles, reported = np.mean(held, axis=0)
    return float(percentiles), float(reported)


def of_corrected(q: float, images: int, repetitions: int = 3000) -> tuple[float, float]:
    """Coverage of the chance-corrected rate of a pair whose targets noise fools at q: the least of
    true rates of 0, 0.3 and 0.8, and the share of pairs that have an interval."""
    rng, found = np.random.default_rng(0), []
    for true in (0.0, 0.3, 0.8):
        p = q + (1 - q) * true
        middle = logits_of(np.log(100 * np.array([p, p, q, q])))
        difficulty = SPREAD * rng.normal(size=(repetitions, images, 1))
        wrong = rng.random((repetitions, images, 4)) < 1 / (1 + np.exp(-(middle + difficulty)))
        cells = wrong @ np.array([8, 4, 2, 1]) + 16 * np.arange(repetitions)[:, None]
        counts = np.bincount(cells.ravel(), minlength=16 * repetitions).reshape(-1, 16)
        _, low, high = confounders._rates(counts.astype(float))
        known = ~np.isnan(low)
        held = ((low <= true) & (true <= high))[known]
        found.append((held.mean() if known.mean() > 0.01 else np.nan, known.mean()))
    covers = [share for share, _ in found if not np.isnan(share)]
    return float(min(covers, default=np.nan)), float(min(known for _, known in found))


def of_models(n: int, r: float, repetitions: int = 400) -> float:
    """Coverage of `over_models` for n models: scores u_i + u_j + pair, u and pairs correlated."""
    rng, held = np.random.default_rng(0), 0
    cov = [[1, r], [r, 1]]
    for _ in range(repetitions):
        u = rng.multivariate_normal([0, 0], cov, n).T
        e = rng.multivariate_normal([0, 0], cov, (n, n))
        lower = [np.tril(v[:, None] + v + e[:, :, i], -1) for i, v in enumerate(u)]
        low, high = over_models(*(m + m.T for m in lower))
        held += low <= r <= high
    return held / repetitions


def of_reduction(expected: float, images: int, repetitions: int = 1000) -> tuple[float, float]:
    """Coverage of ERR of two models that both err on so many images: by bootstrap, as reported.

    40 % of the images that a model misclassifies the other does, too. The pair errs on 90 % of
    these and on 30 % of the others. Samples without an error are left out.
    """
    rng, counts = np.random.default_rng(0), resample(images, 400)
    p = expected / images
    shared, single = 0.4 * p, 0.6 * p
    true = 1 - (0.9 * shared + 2 * 0.3 * single) / p
    held = []
    while len(held) < repetitions:
        kind = rng.choice(4, images, p=[1 - shared - 2 * single, single, single, shared])
        wrong = np.stack([(kind == 1) | (kind == 3), (kind == 2) | (kind == 3)])
        together = (rng.random(images) < np.array([0, 0.3, 0.3, 0.9])[kind])[None]
        if wrong.any():
            drawn = ensemble.reduction_draws(wrong, [(0, 1)], together, counts)
            found = ensemble.metrics(wrong, [(0, 1)], together, counts)
            ends = interval(drawn[:, 0]), (found["err_low"], found["err_high"])
            held.append([low <= true <= high for low, high in ends])
    bootstrap, reported = np.mean(held, axis=0)
    return float(bootstrap), float(reported)


def of_stops(
    p: float, together: float, half_width: float, total: int = 5000, runs: int = 10_000
) -> tuple[float, float]:
    """Runs of one pair with a fooling rate of p in both directions, in shards of 100 images.

    Of independent directions `together` is 0, of directions that agree on every image 1. Returns
    the coverage where they stop at a half-width, and the mean number of images.
    """
    rng, found = np.random.default_rng(0), sequential.stops(total, 100)
    both = p * p + together * (p - p * p)
    chances = [both, 2 * (p - both), 1 - 2 * p + both]
    steps = [rng.multinomial(n, chances, runs) for n in np.diff([0, *found])]
    counts = np.stack(steps).cumsum(axis=0)  # [stops, runs, 3]
    ends = [
        with_intervals(c[:, 0], c[:, 1], np.full(runs, n))[1:]
        for c, n in zip(counts, found, strict=True)
    ]
    low, high = np.moveaxis(np.array(ends), 1, 0)  # [stops, runs] each
    held = (low <= score(p)) & (score(p) <= high)
    enough = (high - low) / 2 <= half_width
    enough[-1] = True
    last = enough.argmax(axis=0)
    return float(held[last, range(runs)].mean()), float(np.array(found)[last].mean())


def of_zoo(
    scores: NDArray, half_width: float, share: float = 0.95, total: int = 5000, runs: int = 100
) -> tuple[float, float]:
    """Runs of all pairs of a matrix, whose images' difficulty the pairs share, that stop together.

    Returns the coverage of pairs where they stop, and the mean number of images.
    """
    rng, found = np.random.default_rng(0), sequential.stops(total, 100)
    x = np.clip(scores[np.tril_indices(len(scores), k=-1)], -1, 4.55)
    mean, rows = logits_of(x), []
    for _ in range(runs):
        difficulty = SPREAD * rng.normal(size=total)
        twice = rng.binomial(2, 1 / (1 + np.exp(-(mean[:, None] + difficulty))))
        always, half = ((twice == k).cumsum(axis=1) for k in (2, 1))
        for n in found:
            pair = always[:, n - 1], half[:, n - 1], np.full(len(x), n)
            _, low, high = with_intervals(*pair)
            if ((high - low) / 2 <= half_width).mean() >= share or n == total:
                rows.append((((low <= x) & (x <= high)).mean(), n))
                break
    stopped, images = np.mean(rows, axis=0).tolist()
    return stopped, images


def table(names: str, function: Callable[..., Any], *axes: Iterable[Any]) -> pl.DataFrame:
    """A row for each combination of arguments: names of the arguments, then of the results."""
    columns = names.split(", ")
    rows = [(*some, *np.atleast_1d(function(*some)).tolist()) for some in product(*axes)]
    return pl.DataFrame(rows, schema=columns, orient="row")


def main() -> None:
    """Print the tables."""
    some = np.random.default_rng(1).permutation(69)[:12]
    matrices = {
        "published, 12 models": matrix.read(PUBLISHED).scores[np.ix_(some, some)],
        "digits, 12 models": matrix.read(DIGITS).scores,
    }

    def named(of: Callable, name: str, *arguments: float) -> Any:
        found = of(matrices[name], *arguments)
        return list(found.values()) if isinstance(found, dict) else found

    of_correlations, of_zoos = partial(named, of_r), partial(named, of_zoo)
    means = "measured, without noise, ceiling, percentile, corrected"
    errors, p, stopped = (1, 3, 10, 30), (0.02, 0.1, 0.3, 0.6, 0.95), "covers, mean images"
    r, many = (0, 0.5, 0.9, 0.98), (100, 200, 500)
    widths, equal = (0.3, 0.1), (0, 0.5, 1)
    with pl.Config(tbl_formatting="MARKDOWN", tbl_hide_column_data_types=True, tbl_rows=-1):
        rates = (0.001, 0.01, 0.1, 0.5, 0.9, 0.98, 0.995)
        print(table("images, p, covers", of_pairs, (20, 30, 50, 100, 500, 5000), rates))
        few, brittle = (20, 50, 100, 500), (0.02, 0.5, 0.9)
        print(table("matrix, images, bootstrap, reported", partial(named, of_means), matrices, few))
        print(table("noise, images, covers, known", of_corrected, brittle, few))
        print(table(f"matrix, r, images, true, {means}", of_correlations, matrices, r, many))
        print(table("models, true r, covers", of_models, (5, 8, 12, 30), (0, 0.5, 0.9, 0.9999)))
        print(table("errors, images, bootstrap, reported", of_reduction, errors, (100, 500)))
        print(table(f"p, directions equal, half-width, {stopped}", of_stops, p, equal, widths))
        print(table(f"matrix, half-width, {stopped}", of_zoos, matrices, (0.5, 0.3, 0.2)))


if __name__ == "__main__":
    main()
