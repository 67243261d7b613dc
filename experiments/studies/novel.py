"""Where does a new model belong, without attacking all the others again? (App. G, Fig. G.2.)

Attacks the candidate alone and evaluates the members on its adversarial images: N + 1 passes
instead of 2N + 1, and one attack instead of N + 1. The score is one-sided:

    s1(candidate, B) = ln max(eps_s, 100 p1),   p1 = how often the candidate's images fool B

over the images that both classify correctly. It is not symmetric and depends on B's own robustness:
it ranks the members, and cannot be compared with the two-sided scores of experiment=pairwise.

Where the store has the members' own scores, the clusters are those of experiment=clusters, under
the same numbers. The candidate belongs to the cluster of the highest mean s1. How certain that is
follows from draws of images, and from the record of the same rule on each member in turn.

Writes novel as PNG, PDF, SVG and CSV, and report.html.
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.keys import naming
from experiments.cli.landmarks import pass_landmarks
from experiments.cli.members import build_member, build_members
from experiments.cli.runs import eps_advice
from experiments.cli.setting import opened
from experiments.cli.study import attacked
from netkin import similarity
from netkin.analysis import clusters
from netkin.analysis.summary import WEAK_ATTACK
from netkin.errors import UserError
from netkin.model import Model
from netkin.report.study import Section
from netkin.report.style import INK, PALETTE, SMALL, legend_above, panels, style
from netkin.results import Results

NEAREST = 3
"""Members that the answer names."""
NO_SCORES = (
    "the members' own scores are not all in the store; run experiment=pairwise on them first"
)

CERTAIN = 0.95
"""Share of draws of images from which a cluster counts as certain."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    members = build_members(config, at_least=1)
    candidate = build_member(config, config.model.candidate)
    members = [member for member in members if member.name != candidate.name]
    if not members:
        raise UserError(
            "model.members names no model besides model.candidate; add models to compare it with"
        )
    k = config.novel.clusters
    if len(members) > 1:
        with naming({"k": "novel.clusters"}):
            clusters.check_k(k, len(members))
    name = candidate.name
    with opened(config, [*members, candidate], sources=[name], named=[name]) as o:
        results, evaluation = o.run.results, o.run.evaluation
        *models, new = pass_landmarks(o.run, [name], one_sided=True)
        labels, reason, record = stored_clusters(results, models, k)
        table = one_sided(results, new, models, labels, config.score.eps_s)
        counts = similarity.resample(len(evaluation.subset), config.score.bootstrap)
        shares = assignments(results, new, models, labels, counts)
        right = results.correct(new)
        success = float(results.fooled([new], [new])[0, 0][right].mean())
        o.tracker.summary({"candidate": name, "white_box_success/candidate": success})
        picture = o.outputs.figure(
            "novel",
            figure(table, name),
            table,
            f"One-sided similarity of the members to {name}, with 95% intervals over "
            "images; colours are clusters of the members.",
        )
        paragraphs = answer(table, name, success, reason, shares, record)
        if success < WEAK_ATTACK and evaluation.attack.eps is not None:
            paragraphs.append(eps_advice())
        o.finish(
            f"Where does {name} belong among {len(models)} models?",
            f"{name} was attacked with {attacked(evaluation)} on the images of "
            f"{evaluation.task.dataset} ({len(evaluation.subset)} in all) that it classifies "
            "correctly, and every member that classifies them correctly was evaluated on the "
            "result.",
            paragraphs,
            [Section("Members by one-sided similarity", (), {"": table}, [picture])],
        )
        o.run.raise_failures()


def stored_clusters(
    results: Results, members: list[Model], k: int | str | None
) -> tuple[NDArray[np.intp] | None, str, int]:
    """The cluster of each member, [N] from 0, from the stored two-sided matrix (App. C).

    None where there are no clusters, with the reason. Then the number of members that the study's
    rule puts into their own cluster, from their images and the clusters of the others.
    """
    if len(members) < 2:
        return None, "there is only one member", 0
    if any(results.missing_shards(member) for member in members):
        return None, NO_SCORES, 0
    if any(results.missing_sources(members).values()):
        return None, NO_SCORES, 0
    stored = results.outcomes(members)
    scores = similarity.smoothed_matrix(stored)
    try:
        number, reason = clusters.choose_k(k, scores)
        labels = clusters.spectral(scores, number)
    except UserError as error:
        return None, str(error), 0
    one_sided = similarity.one_sided(stored)
    np.fill_diagonal(one_sided, np.nan)
    return labels, reason, int((nearest_cluster(one_sided, labels) == labels).sum())


def nearest_cluster(one_sided: NDArray[np.float64], labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """The cluster with the highest mean of each row of scores [..., N], leaving out NaN."""
    means = []
    for cluster in range(int(labels.max()) + 1):
        of_cluster = one_sided[..., labels == cluster]
        known = ~np.isnan(of_cluster)
        total = np.where(known, of_cluster, 0).sum(axis=-1)
        with np.errstate(invalid="ignore"):
            means.append(total / known.sum(axis=-1))
    return np.nan_to_num(np.stack(means, axis=-1), nan=-np.inf).argmax(axis=-1)


def assignments(
    results: Results,
    candidate: Model,
    members: list[Model],
    labels: NDArray[np.intp] | None,
    counts: NDArray[np.float64],
) -> dict[int, float]:
    """The share of draws of images, [draws, I], that put the candidate in each cluster, from 1.

    Empty where there are no clusters.
    """
    if labels is None:
        return {}
    right = results.correct(candidate).numpy()
    both = np.stack([right & results.correct(member).numpy() for member in members])
    fooled = results.fooled([candidate], members)[0] & both
    draws = similarity.smoothed(counts @ fooled.T, counts @ both.T)
    chosen = nearest_cluster(draws, labels)
    return {c + 1: float((chosen == c).mean()) for c in range(int(labels.max()) + 1)}


def one_sided(
    results: Results,
    candidate: Model,
    members: list[Model],
    labels: NDArray[np.intp] | None,
    eps_s: float,
) -> pl.DataFrame:
    """One row per member, the most similar first.

    Columns: model, family, cluster (from 1; null where unknown), n (images that both classify
    correctly), fooled (rate over these), score, low, high (95 % interval, nats).
    """
    right = results.correct(candidate).numpy()
    fooled = results.fooled([candidate], members)[0]
    rows = []
    for i, member in enumerate(members):
        both: NDArray[np.bool_] = right & results.correct(member).numpy()
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
                "cluster": None if labels is None else int(labels[i]) + 1,
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


def answer(
    table: pl.DataFrame,
    candidate: str,
    success: float,
    reason: str,
    shares: dict[int, float],
    record: int,
) -> list[str]:
    """The findings in words, a paragraph each.

    `reason` is why there are no clusters, `shares` and `record` are of `assignments` and
    `stored_clusters`.
    """
    nearest = ", ".join(
        f"{r['model']} (s1 = {r['score']:.2f}, 95% interval {r['low']:.2f} to {r['high']:.2f})"
        for r in table.head(NEAREST).to_dicts()
    )
    paragraphs = [f"The nearest relatives of {candidate} are {nearest}."]
    verdict = f"Not certain: {candidate} cannot be placed in a cluster"
    if table["cluster"].null_count():
        paragraphs.append(f"It cannot be placed in a cluster: {reason}.")
    else:
        means = (
            table.group_by("cluster")
            .agg(pl.col("score").mean(), pl.col("model").sort())
            .sort(["score", "cluster"], descending=[True, False])
        )
        best = means.row(0, named=True)
        paragraphs.append(
            f"It belongs to cluster {best['cluster']} ({', '.join(best['model'])}; mean s1 = "
            f"{best['score']:.2f}"
            + (f", the next cluster has {means['score'][1]:.2f}" if means.height > 1 else "")
            + f"), one of {means.height} spectral clusters of the members' two-sided scores, "
            f"numbered as by experiment=clusters. {shares[best['cluster']]:.0%} of draws of images "
            f"give this cluster. The same rule puts {record} of {table.height} members, each left "
            "out in turn, into their own cluster."
        )
        share = shares[best["cluster"]]
        verdict = (
            f"{'Yes' if share >= CERTAIN else 'Not certain'}: {candidate} is closest to cluster "
            f"{best['cluster']} in {share:.0%} of draws of images"
        )
    first = table.row(0, named=True)
    paragraphs.insert(
        0,
        f"{verdict}; its images fool {first['model']} most, on {first['fooled']:.1%} of those that "
        "both classify correctly.",
    )
    paragraphs.append(
        f"These scores are one-sided: the members were evaluated on the adversarial images of "
        f"{candidate}, but {candidate} was not evaluated on theirs. They rank members; do not "
        "compare them with the two-sided scores of experiment=pairwise."
    )
    if success < WEAK_ATTACK:
        paragraphs.append(
            f"The attack is weak on {candidate} itself (white-box success {success:.1%}), so all "
            "scores are low. Use more steps or a larger eps."
        )
    return paragraphs


@style()
def figure(table: pl.DataFrame, candidate: str) -> Figure:
    """Members by score, the highest at the top, with intervals, coloured by cluster."""
    n = table.height
    size = 8 if n <= 30 else SMALL
    drawing, (ax,) = panels(1, 5.2, 0.8 + n * size * 0.026)
    for y, row in enumerate(table.to_dicts()):
        colour = INK if row["cluster"] is None else PALETTE[(row["cluster"] - 1) % len(PALETTE)]
        ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=size / 5)
        ax.plot(row["score"], y, "o", color=colour, ms=size / 1.8)
    ax.set_yticks(range(n), table["model"].to_list(), fontsize=size)
    ax.set(
        ylim=(n - 0.4, -0.6),
        xlabel=f"one-sided similarity to {candidate}, s1 = ln(100 p1) (nats)",
    )
    ax.grid(axis="y", visible=False)
    if numbers := sorted(table["cluster"].drop_nulls().unique()):
        dots = [
            Line2D([], [], marker="o", ls="", color=PALETTE[(c - 1) % len(PALETTE)])
            for c in numbers
        ]
        legend_above(drawing, dots, [f"cluster {c}" for c in numbers])
    return drawing
