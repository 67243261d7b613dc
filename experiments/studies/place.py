"""Where does a model belong among others, without attacking all of these again? (App. G, Fig. G.2.)

Its one-sided scores with the members rank its relatives, and it belongs to the cluster of the
highest mean score, with a probability over draws of images. The same rule tried on each member in
turn shows how far to trust that. Scores of one direction depend on how strong a source or how
brittle a target is, and cannot be compared with those of experiment=pairwise.

- experiment=novel: the candidate is attacked, and the members are evaluated on its images:
  s1(candidate, B) = ln max(eps_s, 100 p1), p1 = how often the candidate's images fool B. N + 1
  passes instead of 2N + 1, and one attack instead of N + 1.
- experiment=probe: a classifier that is known by its predictions alone. `probe.export=DIR` writes a
  pack of the landmarks' images for it (`netkin.passes.pack`), in any framework or behind an
  interface; `predictions=FILE` reads its answers. Strong landmarks fool every model, so relatives
  are ranked by the excess of a score over the other members' mean with the same landmark, and
  scores with members that are no landmarks are predicted (`netkin.analysis.landmarks`).

Writes novel or probe (figure and table) and report.html. An SVM and an ONNX export on the digits
members: experiments/results/landmarks.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.landmarks import choose, pass_landmarks
from experiments.cli.members import build_member, build_members
from experiments.cli.runs import command, eps_advice
from experiments.cli.setting import Opened, build_evaluation, opened
from experiments.cli.study import attacked, describe
from experiments.cli.values import naming
from netkin import similarity
from netkin.analysis import clusters
from netkin.analysis.landmarks import FEWEST, complete
from netkin.analysis.placing import Answers, cluster_shares, drawn_rows, excess
from netkin.analysis.statistics import CERTAIN, NEAREST
from netkin.analysis.suspect import CHANCE, RELABELLED, suspicions
from netkin.analysis.verdict import verdict
from netkin.errors import UserError
from netkin.model import Model
from netkin.passes import pack
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import INK, PALETTE, SMALL, legend_above, panels, style
from netkin.report.text import size
from netkin.results import Results

SHOWN = 40
"""Members in the figure of a probe."""
text = Sentences(Path(__file__).with_suffix(".toml"))


@dataclass(frozen=True)
class Clusters:
    """The clusters of N members, and where a classifier belongs among them.

    Attributes:
        labels: [N] from 0; None where there are no clusters.
        reason: for their number, or why there are none.
        shares: [k] of the draws of images that put the classifier in each cluster.
        record: how many members the same rule puts into their own cluster.
    """

    labels: NDArray[np.intp] | None
    reason: str
    shares: NDArray[np.float64]
    record: int


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    (novel if config.experiment.name == "novel" else probe)(config)


# A new model: it alone is attacked


def novel(config: DictConfig) -> None:
    """The members on the candidate's adversarial images."""
    candidate = build_member(config, config.model.candidate)
    members = [m for m in build_members(config, at_least=1) if m.name != candidate.name]
    if not members:
        raise UserError(
            "model.members names no model besides model.candidate; add models to compare it with"
        )
    if len(members) > 1:
        with naming({"k": "novel.clusters"}):
            clusters.check_k(config.novel.clusters, len(members))
    name = candidate.name
    with opened(config, [*members, candidate], sources=[name], named=[name]) as o:
        results, evaluation = o.run.results, o.run.evaluation
        *models, new = pass_landmarks(o.run, [name], one_sided=True)
        right = results.correct(new).numpy()
        success = float(results.fooled([new], [new])[0, 0][right].mean())
        o.tracker.summary({"candidate": name, "white_box_success/candidate": success})
        answers = Answers(
            right & np.stack([results.correct(model).numpy() for model in models]),
            results.fooled([new], models)[0],
            None,
        )
        check_common(answers, [m.name for m in models], name)
        found = novel_clusters(results, models, config.novel.clusters, answers, config)
        table = novel_table(models, answers, found, config.score.eps_s)
        first = table.row(0, named=True)
        answer = [
            *belongs(name, found, table, "score"),
            text(
                "novel.relatives",
                name=name,
                nearest=nearest(table),
                **{k: first[k] for k in ("model", "fooled")},
            ),
            text("novel.one_sided", name=name),
        ]
        if success < similarity.WEAK_ATTACK:
            answer.append(text("novel.weak", name=name, success=success))
            if evaluation.attack.eps is not None:
                answer.append(eps_advice())
        label = f"one-sided similarity to {name}, s1 = ln(100 p1) (nats)"
        picture = o.outputs.figure(
            "novel",
            figure(table, table.select("score", "low", "high"), label),
            table,
            f"One-sided similarity of the members to {name}, with 95% intervals over images; "
            "colours are clusters of the members.",
        )
        images = f"{evaluation.task.dataset} ({len(evaluation.subset)} in all)"
        o.finish(
            f"Where does {name} belong among {len(models)} models?",
            f"{name} was attacked with {attacked(evaluation)} on the images of {images} that it "
            "classifies correctly, and every member that classifies them correctly was evaluated "
            "on the result.",
            answer,
            [Section("Members by one-sided similarity", (), {"": table}, [picture])],
        )
        o.run.raise_failures()


def novel_clusters(
    results: Results,
    members: list[Model],
    k: int | str | None,
    answers: Answers,
    config: DictConfig,
) -> Clusters:
    """The members' clusters, and the candidate's among them."""
    labels, reason = stored_clusters(results, members, k)
    if labels is None:
        return Clusters(None, reason, np.empty(0), 0)
    counts = similarity.resample(len(results.evaluation.subset), config.score.bootstrap)
    _, shares = cluster_shares(answers.smoothed(counts), labels)
    one_sided = similarity.one_sided(results.outcomes(members))
    np.fill_diagonal(one_sided, np.nan)
    chosen, _ = cluster_shares(one_sided, labels)
    return Clusters(labels, reason, shares, int((chosen == labels).sum()))


def stored_clusters(
    results: Results, members: list[Model], k: int | str | None
) -> tuple[NDArray[np.intp] | None, str]:
    """The cluster of each member, [N] from 0, from the stored two-sided matrix (App. C), and the
    reason for their number; None where there are no clusters, with the reason."""
    if len(members) < 2:
        return None, "there is only one member"
    crafted = not any(results.missing_shards(member) for member in members)
    if not crafted or any(results.missing_sources(members).values()):
        return None, text("novel.no_scores")
    scores = similarity.smoothed_matrix(results.outcomes(members))
    try:
        number, reason = clusters.choose_k(k, scores)
        return clusters.spectral(scores, number), reason
    except UserError as error:
        return None, str(error)


def novel_table(
    members: list[Model], answers: Answers, found: Clusters, eps_s: float
) -> pl.DataFrame:
    """A row a member, the most similar first: model, family, cluster (from 1; null where unknown),
    n (images that both classify correctly), fooled (rate over these), score, low, high (95 %
    interval, nats)."""
    rows = []
    for i, member in enumerate(members):
        score = answers.score(i, eps_s)
        rows.append(
            {
                "model": member.name,
                "family": member.family,
                "cluster": None if found.labels is None else int(found.labels[i]) + 1,
                "n": score.n,
                "fooled": float(answers.fooled[i, answers.both[i]].mean()),
                "score": score.score,
                "low": score.low,
                "high": score.high,
            }
        )
    table = pl.DataFrame(rows, schema_overrides={"cluster": pl.Int64})
    return table.sort(["score", "model"], descending=[True, False])


# A classifier that is known by its predictions


def probe(config: DictConfig) -> None:
    """Write a pack of the landmarks' images, or read the predictions on it."""
    if (config.predictions is None) == (config.probe.export is None):
        raise UserError(
            "experiment=probe takes either probe.export=DIR, to write a pack of images, or "
            "predictions=FILE, to read what a classifier answered on it"
        )
    members = build_members(config)
    names = [member.name for member in members]
    chosen = choose(config.landmarks, names, config.seed, all_allowed=True)
    landmarks = [names[i] for i in chosen]
    exporting = config.probe.export is not None
    if exporting:
        members = [members[i] for i in chosen]  # no other member is needed for the images
    else:
        with naming({"k": "probe.clusters"}):
            clusters.check_k(config.probe.clusters, len(members))
        # mistakes, before any work
        pack.read_table(config.predictions, build_evaluation(config).images.classes)
    with opened(config, members, sources=landmarks) as o:
        done = pass_landmarks(o.run, landmarks, one_sided=True)
        (exported if exporting else answered)(o, done, [m for m in done if m.name in landmarks])
        o.run.raise_failures()


def exported(o: Opened, _: list[Model], landmarks: list[Model]) -> None:
    """Write the pack: what it holds, and what to do with it."""
    folder, evaluation = Path(o.config.probe.export).expanduser(), o.run.evaluation
    table = pack.export(o.run.results, landmarks, folder)
    o.outputs.table("pack", table)
    total, number = size(float(table["file_bytes"].sum())), int(table["images"].sum())
    names = ",".join(member.name for member in landmarks)
    then = command("experiment=probe", f"landmarks=[{names}]", "predictions=FILE")
    values = {"number": number, "total": total, "n": len(landmarks)}
    o.finish(
        f"A pack of {number} images of {evaluation.task.dataset}",
        f"The images of {describe(evaluation, len(landmarks))}, for a classifier to be run on.",
        [
            text("probe.exported", folder=folder, **values),
            text("probe.then", command=then),
        ],
        [Section("Folders", (), {"": table})],
    )


def answered(o: Opened, members: list[Model], landmarks: list[Model]) -> None:
    """Where the classifier belongs."""
    config, results, name = o.config, o.run.results, o.config.probe.name
    evaluation = o.run.evaluation
    chosen = [members.index(landmark) for landmark in landmarks]
    given = pack.read_predictions(results, landmarks, config.predictions)
    labels = evaluation.labels.numpy()
    for suspicion in suspicions(labels, given.clean[0], evaluation.images.classes):
        if suspicion.kind in (CHANCE, RELABELLED):
            raise UserError(
                f"predictions={config.predictions} cannot be used: {suspicion.finding}; are rows "
                "shuffled against their image_ids, or the classes in another order than in "
                "manifest.json?"
            )
    measured, _ = results.landmark_scores(members, chosen, True, config.score.eps_s)
    right = given.clean == labels
    answers = Answers(
        right & np.stack([results.correct(landmark).numpy() for landmark in landmarks]),
        given.attacked != labels,
        None if given.noise is None else given.noise != labels,
    )
    check_common(answers, [landmark.name for landmark in landmarks], name)
    n = len(members)
    scores = np.full((n + 1, n + 1), np.nan)
    scores[:n, :n] = measured
    scores[chosen, n] = scores[n, chosen] = answers.smoothed()
    half = np.zeros(n)
    if predicted := FEWEST <= len(chosen) < n:
        completed = complete(scores, chosen, one_sided=True)
        scores, half = completed.scores, (completed.high - completed.low)[:n, n] / 2
    found = probe_clusters(config, results, members, answers, chosen, scores, half, predicted)
    table = probe_table(config, members, chosen, answers, scores, half, found.labels)
    shown = table.head(SHOWN)
    picture = o.outputs.figure(
        "probe",
        figure(
            shown.with_columns(
                pl.when(kind="measured")
                .then("model")
                .otherwise(pl.format("{} (predicted)", "model"))
                .alias("model")
            ),
            shown.select("excess", "low_excess", "high_excess"),
            "one-sided score less other members' mean (nats)",
        ),
        table,
        f"How much more {name} is fooled by each model's images than the other members are. "
        "Intervals are over images (95%) for landmarks, and of predictions (90%) for others; "
        "colours are clusters of the members.",
    )
    o.finish(
        f"Where does {name} belong among {n} models?",
        f"{name} was given {len(landmarks)} landmarks' images: its predictions are compared with "
        f"those of {describe(evaluation, n)}.",
        [
            *probe_answer(name, table, found),
            text("probe.accuracy", accuracy=right.mean(), n=len(labels)),
        ],
        [Section("Members by excess of the score", (), {"": table}, [picture])],
    )


def probe_clusters(
    config: DictConfig,
    results: Results,
    members: list[Model],
    answers: Answers,
    chosen: list[int],
    scores: NDArray[np.float64],
    half: NDArray[np.float64],
    predicted: bool,
) -> Clusters:
    """The members' clusters, of stored scores or else of predicted ones, and the classifier's.

    Args:
        config, results, members, answers: of the run.
        chosen: positions of the landmarks.
        scores: [N + 1, N + 1], the classifier's last; NaN where unknown.
        half: [N] half-widths of 90 % intervals of its predicted scores.
        predicted: whether scores without a landmark are.
    """
    n = len(members)
    labels, reason = stored_clusters(results, members, config.probe.clusters)
    own, with_it = scores[:n, :n], scores[:n, n]
    if labels is None and predicted:
        symmetric = (own + own.T) / 2
        number, reason = clusters.choose_k(config.probe.clusters, symmetric)
        labels = clusters.spectral(symmetric, number)
        reason = text("probe.partly", reason=reason)
    if labels is None:
        return Clusters(None, reason, np.empty(0), 0)
    counts = similarity.resample(answers.both.shape[1], config.score.bootstrap)
    draws = drawn_rows(answers, chosen, with_it, half, counts)
    turned = np.where(np.eye(n, dtype=bool), np.nan, own.T)
    # Predicted scores are less certain: they count in clusters without a landmark alone.
    unused = np.isin(labels, labels[chosen])
    unused[chosen] = False
    draws[:, unused] = turned[:, unused] = np.nan
    _, shares = cluster_shares(excess(draws, own.T), labels)
    of_members, _ = cluster_shares(excess(turned, own.T), labels)
    return Clusters(labels, reason, shares, int((of_members == labels).sum()))


def probe_table(
    config: DictConfig,
    members: list[Model],
    chosen: list[int],
    answers: Answers,
    scores: NDArray[np.float64],
    half: NDArray[np.float64],
    labels: NDArray[np.intp] | None,
) -> pl.DataFrame:
    """A row a member, the nearest relative first; see `probe_clusters` for the arguments."""
    n, table = len(members), []
    row_of, more = scores[:n, n], excess(scores[:n, n], scores[:n, :n].T)
    for i, member in enumerate(members):
        if np.isnan(row_of[i]):
            continue
        row: dict = {"model": member.name, "family": member.family}
        row["cluster"] = None if labels is None else int(labels[i]) + 1
        if i in chosen:
            k = chosen.index(i)
            s = answers.score(k, config.score.eps_s)
            score, low, high = s.score, s.low, s.high
            row |= {"kind": "measured", "level": 0.95, "n": s.n}
            row |= {"noise_rate": answers.noise_rate(k), "above_noise": answers.above_noise(k)}
        else:
            score, low, high = row_of[i], row_of[i] - half[i], row_of[i] + half[i]
            row |= {"kind": "predicted", "level": 0.9}
        mean = row_of[i] - more[i]
        row |= {"score": score, "low": low, "high": high, "excess": more[i]}
        table.append(row | {"low_excess": low - mean, "high_excess": high - mean})
    return pl.DataFrame(table, infer_schema_length=None).sort(
        ["excess", "model"], descending=[True, False]
    )


def probe_answer(name: str, table: pl.DataFrame, found: Clusters) -> list[str]:
    """The findings, the verdict first."""
    measured = table.filter(kind="measured")
    noise = []
    if not measured["above_noise"].null_count():
        above, n = int(measured["above_noise"].sum()), measured.height
        if not above:
            return [text("probe.No", name=name, n=n)]
        noise = [text("probe.noise", above=above, n=n)]
    relatives = text("probe.relatives", nearest=nearest(measured))
    for row in table.filter(kind="predicted").head(1).to_dicts():
        relatives += text("probe.predicted", **row)
    return [*belongs(name, found, table, "excess"), relatives, *noise]


# Both


def check_common(answers: Answers, names: Sequence[str], classifier: str) -> None:
    """Raises UserError where the classifier has no correct image in common with a member."""
    for name, both in zip(names, answers.both, strict=True):
        if not both.any():
            raise UserError(
                f"no image is classified correctly by {classifier} and {name}: their similarity is "
                "undefined; check the models' clean accuracy, or use more images"
            )


def nearest(table: pl.DataFrame) -> str:
    """The nearest relatives with their scores."""
    return ", ".join(
        text("nearest", more=text("excess", **row) if "excess" in row else "", **row)
        for row in table.head(NEAREST).to_dicts()
    )


def belongs(name: str, found: Clusters, table: pl.DataFrame, column: str) -> list[str]:
    """The cluster of the classifier, the verdict first.

    Args:
        name: of the classifier.
        found: the clusters.
        table: a row a member.
        column: of the scores whose means decide.
    """
    if found.labels is None:
        return [text("cluster.none", name=name, reason=found.reason)]
    best = int(found.shares.argmax())
    share, k = float(found.shares[best]), len(found.shares)
    decision = "Yes" if verdict(share, threshold=CERTAIN) == "Yes" else "Not certain"
    values = {"cluster": best + 1, "k": k, "name": name, "share": share}
    listed = ", ".join(table.filter(cluster=best + 1)["model"].sort())
    predicted = " and errors of predictions" if column == "excess" else ""
    means = table.group_by("cluster").agg(pl.col(column).mean()).sort(column, descending=True)
    following = means.filter(pl.col("cluster") != best + 1)[column].to_list()
    mean = means.filter(cluster=best + 1)[column].item()
    sentences = [
        text("cluster.means", column=column, mean=mean, next=max(following, default=np.nan)),
        text("cluster.reason", reason=found.reason),
        text("record", record=found.record, n=len(found.labels)),
    ]
    return [
        text("cluster", decision, models=listed, predicted=predicted, **values),
        " ".join(sentences),
    ]


@style()
def figure(table: pl.DataFrame, intervals: pl.DataFrame, label: str) -> Figure:
    """Members by score, the highest at the top, with intervals, coloured by cluster.

    Args:
        table: a row a member: model and cluster.
        intervals: the score, its low and its high end.
        label: of the axis.
    """
    n = table.height
    pt = 8 if n <= 30 else SMALL
    drawing, (ax,) = panels(1, 5.2, 0.8 + n * pt * 0.026)
    for y, (cluster, ends) in enumerate(zip(table["cluster"], intervals.rows(), strict=True)):
        colour = INK if cluster is None else PALETTE[(cluster - 1) % len(PALETTE)]
        ax.plot(ends[1:], [y, y], color=colour, lw=pt / 5)
        ax.plot(ends[0], y, "o", color=colour, ms=pt / 1.8)
    ax.set_yticks(range(n), table["model"].to_list(), fontsize=pt)
    ax.set(ylim=(n - 0.4, -0.6), xlabel=label)
    ax.grid(axis="y", visible=False)
    if numbers := sorted(table["cluster"].drop_nulls().unique()):
        dots = [
            Line2D([], [], marker="o", ls="", color=PALETTE[(c - 1) % len(PALETTE)])
            for c in numbers
        ]
        legend_above(drawing, dots, [f"cluster {c}" for c in numbers])
    return drawing
