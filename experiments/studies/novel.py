"""Where does a new model belong, without attacking all the others again? (App. G, Fig. G.2.)

Crafts on the candidate alone and runs the members on its images: N + 1 passes instead of 2N + 1,
and one attack instead of N + 1. The score is one-sided: candidate fools member, not the way back.

    s1(candidate, B) = ln max(eps_s, 100 p1),   p1 = how often the candidate's images fool B

over the images that both classify correctly. It is not symmetric and holds B's own robustness: it
ranks the members, and does not compare with the two-sided scores of experiment=pairwise.
"""

from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from sklearn.cluster import SpectralClustering

from experiments.common.devices import build_jobs
from experiments.common.members import build_member, build_members, build_training
from experiments.common.runs import run_info
from experiments.common.setting import build_setting, prepare
from experiments.common.values import resolved
from netkin import similarity
from netkin.analysis.summary import WEAK_ATTACK
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.pipeline import Incomplete, Pipeline
from netkin.store.files import write
from netkin.tracking import track
from netkin.transfer.setting import Setting
from netkin.transfer.stored import (
    correct,
    fooled_by,
    missing_shards,
    missing_sources,
    outcomes,
)
from netkin.zoo.member import Member

NEAREST = 3
COLOURS = (  # no cluster, then Okabe and Ito's palette, then some of Tol's
    *("#444444", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"),
    *("#332288", "#999933", "#882255", "#999999"),
)


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    setting = build_setting(config)
    members = build_members(config, at_least=1)
    candidate = build_member(config, config.model.candidate)
    members = [member for member in members if member.name != candidate.name]
    if not members:
        raise UserError(
            "model.members holds nobody but model.candidate; add who to compare it with"
        )
    k = _clusters_wanted(config.novel.clusters, len(members))
    everyone = [*members, candidate]
    info = run_info(config, setting, len(everyone), [candidate.name])
    console = Console(soft_wrap=True)
    with track(resolved(config.logger), info) as tracker:
        with Bars(console) as bars:
            setting = prepare(config, setting, everyone, bars)
            training = build_training(config, setting, everyone, bars)
            with build_jobs(config, (setting, training), bars) as jobs:
                pipeline = Pipeline(setting, training, jobs, tracker)
                pipeline.craft([m for m in pipeline.clean(everyone) if m.name == candidate.name])
                if any(f.member.name == candidate.name for f in pipeline.failures):
                    raise Incomplete(pipeline.failures, None, len(everyone))
                failed = {failure.member.name for failure in pipeline.failures}
                left = [member for member in everyone if member.name not in failed]
                well = pipeline.transfer(left, [candidate])
        members = [member for member in well if member.name != candidate.name]
        clusters = stored_clusters(setting, members, k, config.score.eps_s)
        table = one_sided(setting, candidate, members, clusters, config.score.eps_s)
        success = float(
            fooled_by(setting, candidate, [candidate])[0][correct(setting, candidate)].mean()
        )
        write(info.folder / "novel.csv", table.write_csv)
        tracker.table("tables/novel", table)
        png = _figure(table, candidate.name, info.folder / "novel")
        tracker.figure("figures/novel", png)
        tracker.metrics({f"white_box_success/{candidate.name}": success})
        for paragraph in answer(table, candidate.name, success):
            console.print(f"\n{paragraph}", highlight=False)
        console.print(f"\nTable    {info.folder / 'novel.csv'}", highlight=False)
        console.print(f"Figure   {info.folder}/novel.png, .pdf", highlight=False)
        if pipeline.failures:
            raise Incomplete(pipeline.failures, None, len(everyone))


def _clusters_wanted(k: int | None, members: int) -> int:
    if k is None:
        return min(10, max(2, members // 3), members)
    if not isinstance(k, int) or not 1 <= k <= members:
        raise UserError(f"novel.clusters must be in 1..{members} (the members), got {k!r}")
    return k


def stored_clusters(
    setting: Setting, members: list[Member], k: int, eps_s: float
) -> list[int] | None:
    """Each member's cluster, 1..k, by spectral clustering of the stored two-sided matrix (App. C).

    None where the store does not hold all of that matrix.
    """
    if any(missing_shards(setting, member) for member in members):
        return None
    if missing_sources(setting, members):
        return None
    if k in (1, len(members)):
        return [1] * len(members) if k == 1 else list(range(1, k + 1))
    scores = similarity.matrix(outcomes(setting, members), eps_s)
    graph = scores - min(0.0, float(scores.min()))  # of a small eps, scores may be negative
    np.fill_diagonal(graph, 0.0)
    spectral = SpectralClustering(k, affinity="precomputed", n_init=100, random_state=0)
    return [int(number) + 1 for number in spectral.fit_predict(graph)]


def one_sided(
    setting: Setting,
    candidate: Member,
    members: list[Member],
    clusters: list[int] | None,
    eps_s: float,
) -> pl.DataFrame:
    """One row a member, the most alike first.

    Columns: model, family, cluster (null where unknown), n (images that both classify correctly),
    fooled (rate over these), score, low, high (95 % interval, nats).
    """
    right = correct(setting, candidate).numpy()
    fooled = fooled_by(setting, candidate, members)
    rows = []
    for i, member in enumerate(members):
        both: NDArray[np.bool_] = right & correct(setting, member).numpy()
        if not both.any():
            raise UserError(
                f"no image is classified correctly by {candidate.name} and {member.name}: their "
                "similarity is undefined; check the models' clean accuracy, or use more images"
            )
        score = similarity.with_interval(fooled[i, both].astype(float), eps_s)
        rows.append(
            {
                "model": member.name,
                "family": member.family,
                "cluster": clusters[i] if clusters else None,
                "n": score.n,
                "fooled": float(fooled[i, both].mean()),
                "score": score.score,
                "low": score.low,
                "high": score.high,
            }
        )
    schema = {"cluster": pl.Int64}
    return pl.DataFrame(rows, schema_overrides=schema).sort(
        ["score", "model"], descending=[True, False]
    )


def answer(table: pl.DataFrame, candidate: str, success: float) -> list[str]:
    """The findings in words, a paragraph each."""
    nearest = ", ".join(
        f"{r['model']} (s1 = {r['score']:.2f}, 95% interval {r['low']:.2f} to {r['high']:.2f})"
        for r in table.head(NEAREST).to_dicts()
    )
    said = [f"The nearest relatives of {candidate} are {nearest}."]
    if table["cluster"].null_count():
        said.append(
            "The members' own scores are not all in the store, so there are no clusters yet to "
            "place it in: run experiment=pairwise on them first."
        )
    else:
        means = (
            table.group_by("cluster")
            .agg(pl.col("score").mean(), pl.col("model").sort())
            .sort("score", descending=True)
        )
        best = means.row(0, named=True)
        said.append(
            f"It falls in the cluster of {', '.join(best['model'])} (mean s1 = {best['score']:.2f}"
            + (f"; the next has {means['score'][1]:.2f}" if means.height > 1 else "")
            + f"), one of {means.height} by spectral clustering of the members' two-sided scores."
        )
    said.append(
        f"These scores are one-sided: {candidate} was attacked and the members were shown the "
        "images, but not the other way round. They rank members; do not compare them with the "
        "two-sided scores of experiment=pairwise, which needs every member's images shown to "
        f"{candidate}, too."
    )
    if success < WEAK_ATTACK:
        said.append(
            f"The attack is weak on {candidate} itself (white-box success {success:.1%}), so all "
            "scores are low. Use more steps or a larger eps."
        )
    return said


def _figure(table: pl.DataFrame, candidate: str, base: Path) -> Path:
    """Members by score, with intervals, coloured by cluster; PNG and PDF, returns the PNG."""
    rows = table.reverse().to_dicts()
    size = 9 if len(rows) <= 30 else 6
    figure = Figure(figsize=(6.5, 1.2 + len(rows) * size * 0.026), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for y, row in enumerate(rows):
        colour = COLOURS[(row["cluster"] or 0) % len(COLOURS)]
        ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=size / 5)
        ax.plot(row["score"], y, "o", color=colour, ms=size / 1.8)
    ax.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=size)
    ax.set_ylim(-0.8, len(rows) - 0.2)
    ax.set_xlabel(f"one-sided similarity to {candidate}, $s_1$ = ln(100 $p_1$), 95% interval")
    ax.grid(axis="x", color="#e5e5e5")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    clusters = sorted({row["cluster"] for row in rows if row["cluster"]})
    if clusters:
        dots = [
            Line2D([], [], marker="o", ls="", color=COLOURS[c % len(COLOURS)]) for c in clusters
        ]
        labels = [f"cluster {c}" for c in clusters]
        figure.legend(dots, labels, fontsize=8, frameon=False, loc="outside right upper")
    png, pdf = base.with_suffix(".png"), base.with_suffix(".pdf")
    figure.savefig(png, dpi=200)
    figure.savefig(pdf, metadata={"CreationDate": None})
    return png
