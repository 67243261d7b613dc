"""What similarity by transfer is compared with: five other measures of the same models and images.

Prediction agreement, error consistency (Cohen's kappa; Geirhos et al. 2020), the cosine of input
gradients, linear CKA of penultimate features (Kornblith et al. 2019) and decision-boundary
agreement on planes through triplets (Somepalli et al. 2022). Writes a matrix each
(measure_<name>.csv), measures.csv (stability and costs), the correlations of every two, and
report.html. What is expensive is kept in the store by model and shard: a run goes on where it
stopped.

On the 12 digits members (500 images, PGD-50, 66 pairs) s goes with the cosine of input gradients
(r = 0.57, Mantel p <= 0.0001) and linear CKA (0.48, 0.0009); with the others |r| < 0.25, p > 0.05.
"""

import time
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch.nn.functional import interpolate

from experiments.common.devices import build_jobs
from experiments.common.study import Measured, Study, study
from experiments.common.values import positive_int
from netkin import similarity
from netkin.analysis import measures, statistics
from netkin.analysis.matrix import Matrix
from netkin.analysis.measures import Matrices
from netkin.analysis.statistics import associate, correlations, trend
from netkin.jobs.pool import Advance
from netkin.jobs.progress import Bars
from netkin.jobs.results import Result
from netkin.report.scatter import scatter
from netkin.report.study import Section
from netkin.report.style import INK, panels, style
from netkin.similarity import Outcomes, interval
from netkin.transfer.features import (
    Kind,
    Sample,
    draw_sample,
    kinds,
    missing,
    read,
    read_some,
    shards,
)
from netkin.transfer.setting import Setting
from netkin.transfer.stored import logits
from netkin.zoo.member import Member

PRELOAD = ("netkin.transfer.features",)
AT_ONCE = 10
"""Images whose gradients are compared at once: 415 MB for 69 models of 224 x 224 pixels."""
TITLES = {
    "similarity": "similarity s (nats)",
    "prediction_agreement": "prediction agreement",
    "error_consistency": "error consistency (kappa)",
    "gradient_cosine": "cosine of input gradients",
    "linear_cka": "linear CKA of features",
    "boundary_agreement": "decision-boundary agreement",
}
"""The measures in their order, and what axes call them."""


@dataclass(frozen=True)
class Measure:
    """A matrix [N, N], its bootstrap draws [draws, N, N], and its cost in seconds for all models.

    `paired` is the part of the cost that grows with the square of the number of models.
    """

    name: str
    matrix: NDArray[np.float64]
    draws: Matrices
    seconds: float
    paired: float = 0.0


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    options = config.measures
    for name in ("images", "triplets", "grid", "bootstrap", "permutations"):
        positive_int(options[name], f"measures.{name}")
    with study(config) as s:
        assert s.measured is not None
        setting, members = s.measured.setting, s.measured.members
        sample = draw_sample(
            len(setting.subset), options.images, options.triplets, options.grid, options.seed
        )
        costs = gather(config, s, setting, members, sample)
        with s.console.status("comparing") if s.console.is_terminal else Bars(s.console):
            found = all_measures(s, s.measured, sample, costs)
        report(s, found, sample)


def gather(
    config: DictConfig, s: Study, setting: Setting, members: list[Member], sample: Sample
) -> dict[str, float]:
    """Make what the store lacks, and time a batch of each member; returns the sums over members of
    the seconds an image of a forward pass, an attack (craft), features and gradients."""
    with Bars(s.console) as bars:
        context = (setting, sample, config.measures.seconds)
        with build_jobs(config, context, bars, PRELOAD) as jobs:
            for kind in kinds(sample):
                todo = [
                    Todo(member, kind, tuple(lacking))
                    for member in members
                    if (lacking := missing(setting, sample, member, kind))
                ]
                units = sum(item.units(setting, sample) for item in todo)
                start = time.perf_counter()
                for item, result in jobs.run(kind.name, _measure, todo, units):
                    s.tracker.metrics({f"{kind.name}/seconds/{item.name}": result.seconds})
                if todo:
                    s.tracker.metrics({f"{kind.name}/seconds": time.perf_counter() - start})
            timed = jobs.run("cost", _cost, members, len(members))
            costs = [result.cost for _, result in timed]
            return {name: sum(cost[name] for cost in costs) for name in costs[0]}


@dataclass(frozen=True)
class Todo:
    """A member, and the shards of a kind that the store lacks."""

    member: Member
    kind: Kind
    shards: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.member.name

    def units(self, setting: Setting, sample: Sample) -> int:
        parts = shards(setting, sample, self.kind)
        return sum(len(parts[i]) for i in self.shards)


def _measure(context: tuple, item: Todo, advance: Advance) -> Result:
    from netkin.transfer.features import measure_pass

    return measure_pass(context[0], context[1], item.member, item.kind, advance)


@dataclass(frozen=True, kw_only=True)
class Timed(Result):
    """Seconds an image of each kind of pass."""

    cost: dict[str, float]


def _cost(context: tuple, member: Member, advance: Advance) -> Timed:
    from netkin.transfer.features import time_passes
    from netkin.transfer.probe import probe

    start = time.perf_counter()
    found = probe(context[0], member, context[2], advance)
    cost = {"craft": found.craft, "forward": found.transfer}
    cost |= time_passes(context[0], member, found.batch)
    return Timed(cost=cost, seconds=time.perf_counter() - start)


def all_measures(
    s: Study, measured: Measured, sample: Sample, costs: dict[str, float]
) -> list[Measure]:
    """The six matrices with their draws, of the same models and images."""
    setting, members = measured.setting, measured.members
    chosen, eps_s = list(sample.positions), s.config.score.eps_s
    n, images = len(members), len(chosen)
    outcomes = on_images(measured.outcomes, chosen)
    weights = np.vstack([np.ones(images), similarity.resample(images, s.config.measures.bootstrap)])
    planes = np.vstack(
        [
            np.ones(len(sample.triplets)),
            similarity.resample(len(sample.triplets), s.config.measures.bootstrap),
        ]
    )
    features_of, gradients_of, planes_of = kinds(sample)
    forward = costs["forward"] * images
    points = len(sample.triplets) * sample.grid**2

    predictions = np.stack([logits(setting, m).argmax(1).numpy() for m in members])[:, chosen]
    found = [
        Measure(
            "similarity",
            similarity.matrix(outcomes, eps_s),
            similarity.bootstrap(outcomes, s.config.measures.bootstrap, eps_s=eps_s),
            forward + costs["craft"] * images + n * forward,
            n * forward,
        ),
        measure(
            "prediction_agreement", measures.prediction_agreement(predictions, weights), forward
        ),
        measure(
            "error_consistency", measures.error_consistency(outcomes.correct, weights), forward
        ),
    ]
    cosines = gradient_cosines(setting, members, sample, gradients_of)
    grams = np.stack(
        [measures.gram(read(setting, sample, m, features_of).numpy()) for m in members]
    )
    planes_seen = np.stack([read(setting, sample, m, planes_of).numpy() for m in members])
    for name, with_draws, taken in (
        ("gradient_cosine", measures.mean_cosine(cosines, weights), costs["gradients"] * images),
        ("linear_cka", measures.linear_cka(grams, weights), costs["features"] * images),
        (
            "boundary_agreement",
            measures.boundary_agreement(planes_seen, planes),
            costs["forward"] * points,
        ),
    ):
        found.append(measure(name, with_draws, taken))
    return found


def measure(name: str, with_draws: Matrices, seconds: float) -> Measure:
    """A measure from its matrix and, after it, its draws."""
    return Measure(name, with_draws[0], with_draws[1:], seconds)


def on_images(outcomes: Outcomes, images: list[int]) -> Outcomes:
    """The outcomes on some of the images."""
    return Outcomes(
        outcomes.members,
        tuple(outcomes.image_ids[i] for i in images),
        outcomes.correct[:, images],
        outcomes.fooled[:, :, images],
    )


def gradient_cosines(
    setting: Setting, members: list[Member], sample: Sample, kind: Kind
) -> NDArray[np.float32]:
    """Cosines of the members' gradients at each image, [I, N, N].

    Gradients of members of larger inputs are resized to the smallest input size first. A few
    images are in memory at a time.
    """
    size = min(setting.view(member).input_size for member in members)
    cosines = []
    for shard, images in enumerate(shards(setting, sample, kind)):
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            rows = []
            for member in members:
                found = read_some(setting, member, kind, shard, part).float()
                if found.shape[-1] != size:
                    found = interpolate(found, (size, size), mode="bilinear", antialias=True)
                rows.append(torch.nn.functional.normalize(found.flatten(1), eps=1e-20))
            x = torch.stack(rows, dim=1)  # [images, N, 3 * size * size]
            cosines.append((x @ x.mT).numpy())
    return np.concatenate(cosines)


def report(s: Study, found: list[Measure], sample: Sample) -> None:
    """Tables, figures and the page."""
    names, n = s.names, len(s.names)
    for one in found:
        s.outputs.table(f"measure_{one.name}", Matrix(names, one.matrix).table())
    table = s.outputs.table("measures", pl.DataFrame([row(one, n) for one in found]))
    links = pl.DataFrame(
        [link(a, b, s.config.measures.permutations) for a, b in combinations(found, 2)],
        infer_schema_length=None,
    )
    known = links.filter(a="similarity").drop_nulls("r").drop_nans("r")
    s.tracker.metrics({f"measures/r/{r['b']}": r["r"] for r in known.iter_rows(named=True)})
    rows, columns = np.tril_indices(n, k=-1)
    pairs = pl.DataFrame(
        {
            "a": [names[i] for i in rows],
            "b": [names[i] for i in columns],
            **{one.name: one.matrix[rows, columns] for one in found},
        }
    )
    pictures = [
        s.outputs.figure(
            "measures_scatter",
            scatter_figure(found, links),
            pairs,
            "Each measure against the similarity by transfer, a point a pair of models.",
        ),
        s.outputs.figure(
            "measures_correlations",
            correlation_figure(found, links),
            links,
            "Pearson's r between every two measures over the pairs of models.",
        ),
    ]
    said = answer(found, table, links, s.config.measures.permutations)
    planes = f"{len(sample.triplets)} planes of {sample.grid} x {sample.grid} points"
    s.finish(
        f"Six ways to say how alike {n} models are",
        f"Measured on {len(sample.positions)} images of {s.source}; decision boundaries on "
        f"{planes}.",
        said,
        [
            Section("Against similarity by transfer", (), {}, pictures[:1]),
            Section("Every two measures", (), {"Correlations over pairs": links}, pictures[1:]),
            Section(
                "Stability and cost",
                [
                    "Noise is the standard deviation of a pair over bootstrap draws of images (of "
                    "triplets, for boundaries), spread that over the pairs; agreement is the mean "
                    "correlation of a draw's matrix with the whole one's. Seconds are for all "
                    "models on this device, one after another, worked out from a timed batch of "
                    "each; similarity counts its attacks, and a pass of every model over every "
                    "other's images (seconds for pairs)."
                ],
                {"Measures": table},
                (),
            ),
        ],
    )


def row(one: Measure, n: int) -> dict[str, Any]:
    """A measure's stability and cost."""
    stable = measures.stability(one.matrix, one.draws)
    return {
        "measure": one.name,
        "mean": stable.mean,
        "spread": stable.spread,
        "noise": stable.noise,
        "noise_to_spread": stable.noise / stable.spread if stable.spread else None,
        "agreement": stable.agreement,
        "seconds": one.seconds,
        "seconds_for_pairs": one.paired,
        "seconds_a_model": one.seconds / n,
        "undefined_pairs": int(np.isnan(one.matrix[np.tril_indices(n, k=-1)]).sum()),
    }


def link(a: Measure, b: Measure, permutations: int) -> dict[str, Any]:
    """The correlation of two measures, with its interval over draws and its Mantel p.

    Boundaries draw triplets, the others images: draws of the two are taken for independent.
    """
    found = associate(a.matrix, b.matrix, permutations)
    rows, columns = np.tril_indices(len(a.matrix), k=-1)
    low, high = interval(correlations(a.draws[:, rows, columns], b.draws[:, rows, columns]))
    return {
        "a": a.name,
        "b": b.name,
        "r": found.pairs.r,
        "images_low": low,
        "images_high": high,
        "mantel_p": found.p,
        "pairs": found.pairs.n,
        "p_taking_pairs_for_independent": found.pairs.p,
    }


@style()
def scatter_figure(found: list[Measure], links: pl.DataFrame) -> Figure:
    """Each other measure against s."""
    figure, axes = panels(3, 2.7, 2.6, rows=2)
    s = found[0]
    rows, columns = np.tril_indices(len(s.matrix), k=-1)
    x = s.matrix[rows, columns]
    for ax, one in zip(axes, found[1:], strict=False):
        y = one.matrix[rows, columns]
        r = links.filter(a=s.name, b=one.name)["r"][0]
        known = ~np.isnan(y)
        text = "" if r is None or np.isnan(r) else f"r = {r:.2f}"
        line = trend(x, y)
        scatter(ax, x[known], y[known], TITLES[s.name], TITLES[one.name], trend=line, text=text)
    for ax in axes[len(found) - 1 :]:
        ax.set_axis_off()
    return figure


@style()
def correlation_figure(found: list[Measure], links: pl.DataFrame) -> Figure:
    """r between every two measures, as a matrix with its numbers."""
    n = len(found)
    values = np.eye(n)
    place = {one.name: i for i, one in enumerate(found)}
    for r in links.iter_rows(named=True):
        i, j = place[r["a"]], place[r["b"]]
        values[i, j] = values[j, i] = np.nan if r["r"] is None else r["r"]
    figure, (ax,) = panels(1, 4.8, 3.4)
    ax.grid(visible=False)
    ax.set_facecolor("#d9d9d9")
    image = ax.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1)
    for (y, x), value in zip(np.ndindex(n, n), values.flat, strict=True):
        text = "–" if np.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # noqa: RUF001
        ink = "white" if abs(value) > 0.65 else INK
        ax.text(x, y, text, color=ink, ha="center", va="center", fontsize=7.5)
    labels = [TITLES[one.name].split(" (")[0] for one in found]
    ax.set_xticks(range(n), labels, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), labels)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("Pearson's r over pairs")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def answer(
    found: list[Measure], table: pl.DataFrame, links: pl.DataFrame, permutations: int
) -> list[str]:
    """The findings in words."""
    mine = links.filter(a="similarity").drop_nulls("r").drop_nans("r").sort("r", descending=True)
    said = []
    if mine.height:
        words = [
            f"{TITLES[r['b']].split(' (')[0]} r = {r['r']:.2f} (95% interval over images "
            f"{r['images_low']:.2f} to {r['images_high']:.2f}; Mantel p "
            f"{statistics.p_text(r['mantel_p'], permutations)})"
            for r in mine.iter_rows(named=True)
        ]
        said.append(f"Similarity by transfer goes with {'; '.join(words)}.")
    else:
        said.append(f"{len(found[0].matrix)} models are too few for correlations.")
    ranked = table.drop_nulls("agreement").drop_nans("agreement").sort("agreement")
    if ranked.height:
        last, first = ranked.row(0, named=True), ranked.row(-1, named=True)
        said.append(
            f"Most stable over draws is {TITLES[first['measure']].split(' (')[0]} (a draw's matrix "
            f"agrees with the whole with r = {first['agreement']:.3f}), least "
            f"{TITLES[last['measure']].split(' (')[0]} ({last['agreement']:.3f})."
        )
    cost = ", ".join(
        f"{TITLES[r['measure']].split(' (')[0]} {r['seconds']:.1f} s"
        for r in table.sort("seconds").iter_rows(named=True)
    )
    said.append(f"For all models, one after another: {cost}.")
    undefined = table.filter(pl.col("undefined_pairs") > 0)
    for r in undefined.iter_rows(named=True):
        said.append(
            f"{TITLES[r['measure']]} is undefined for {r['undefined_pairs']} pairs: neither model "
            "errs on these images."
        )
    return said
