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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.measured import describe
from experiments.cli.members import build_members, one_member
from experiments.cli.runs import command, eps_advice
from experiments.cli.setting import Opened, build_evaluation, opened
from experiments.cli.values import naming
from experiments.studies.landmarks import choose, pass_landmarks
from netkin import similarity
from netkin.analysis import clusters
from netkin.analysis.landmarks import FEWEST, complete
from netkin.analysis.statistics import CERTAIN, NEAREST, mean_known
from netkin.analysis.suspect import CHANCE, RELABELLED, suspicions
from netkin.analysis.verdict import verdict
from netkin.comparison import attacked
from netkin.errors import UserError
from netkin.model import Model
from netkin.passes import pack
from netkin.report.plots import ranked_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.text import size
from netkin.results import Results

SHOWN = 40  # members in the figure of a probe
Z_90 = 1.6448536269514722
text = Sentences(Path(__file__).with_suffix(".toml"))


class Answers(NamedTuple):
    """What a classifier and m members answer on one's adversarial images, over I images: those that
    both classify correctly, whose adversarial image fools the other one, and, with this control,
    those that the classifier misclassifies under noise; [m, I] each."""

    both: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    noise: NDArray[np.bool_] | None = None

    def table(self, eps_s: float) -> pl.DataFrame:
        """s1 of each member with its 95% interval: n, fooled (rate), score, low, high (nats); under
        noise noise_rate and above_noise: whether s1's rate is above it (95% interval)."""
        n, fooled = self.both.sum(axis=1), self.fooled & self.both
        k = fooled.sum(axis=1)
        columns = {"n": n, "fooled": k / n}
        if self.noise is not None:
            noise = self.noise & self.both
            more = fooled.astype(float) - noise
            mean, square = more.sum(axis=1) / n, (more**2).sum(axis=1) / n
            half = similarity.Z_95 * np.sqrt(np.maximum(square - mean**2, 0) / n)
            columns |= {"noise_rate": noise.sum(axis=1) / n, "above_noise": mean > half}
        ends = similarity.with_intervals(k, np.zeros(len(k)), n, eps_s)
        return pl.DataFrame(columns | dict(zip(("score", "low", "high"), ends, strict=True)))

    def smoothed(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Smoothed s1 of each member over draws of images, counts [draws, I] -> [draws, m]."""
        fooled = (self.fooled & self.both).astype(float)
        return similarity.smoothed(counts @ fooled.T, counts @ self.both.T.astype(float))


class Placed(NamedTuple):
    """The clusters of N members, from 0 (None where there are none), the reason for their number,
    the shares [k] of the draws of images that put a classifier in each, and how many members the
    same rule puts into their own."""

    labels: NDArray[np.intp] | None
    reason: str
    shares: Sequence[float] = ()
    record: int = 0

    def table(self, members: Sequence[Model]) -> pl.DataFrame:
        """The first columns of a table: model, family, cluster (from 1; null if unknown)."""
        cluster = [None] * len(members) if self.labels is None else (self.labels + 1).tolist()
        names, families = [m.name for m in members], [m.family for m in members]
        columns = {"model": names, "family": families, "cluster": cluster}
        return pl.DataFrame(columns, schema_overrides={"cluster": pl.Int64})


def placed(
    labels: NDArray[np.intp], reason: str, draws: NDArray[np.float64], theirs: NDArray[np.float64]
) -> Placed:
    """By the classifier's scores over draws, [draws, N], and the members' own, [N, N]; NaN where
    unknown: the cluster of the highest mean score."""
    k = int(labels.max()) + 1

    def highest(scores: NDArray[np.float64]) -> NDArray[np.intp]:
        means = np.stack([mean_known(scores[:, labels == c]) for c in range(k)], axis=1)
        return np.nan_to_num(means, nan=-np.inf).argmax(axis=1)

    shares = np.bincount(highest(draws), minlength=k) / len(draws)
    return Placed(labels, reason, shares.tolist(), int((highest(theirs) == labels).sum()))


def run(config: DictConfig) -> None:
    (novel if config.experiment.name == "novel" else probe)(config)


# A new model: it alone is attacked


def novel(config: DictConfig) -> None:
    """The members on the candidate's adversarial images."""
    candidate = one_member(config, config.model.candidate, "model.candidate")
    members = [m for m in build_members(config, at_least=1) if m.name != candidate.name]
    if not members:
        raise UserError(
            "model.members names no model besides model.candidate; add models to compare it with"
        )
    if len(members) > 1:
        with naming({"k": "novel.clusters"}):
            clusters.check_k(config.novel.clusters, len(members))
    name, eps_s = candidate.name, config.score.eps_s
    with opened(config, [*members, candidate], sources=[name], named=[name]) as o:
        results, evaluation = o.run.results, o.run.evaluation
        *models, new = pass_landmarks(o.run, [name], one_sided=True)
        right = results.correct(new).numpy()
        success = float(results.fooled([new], [new])[0, 0][right].mean())
        o.tracker.summary({"candidate": name, "white_box_success/candidate": success})
        both = right & np.stack([results.correct(model).numpy() for model in models])
        answers = Answers(both, results.fooled([new], models)[0])
        labels, reason = stored_clusters(results, models, config.novel.clusters)
        found = Placed(labels, reason)
        if labels is not None:
            draws = answers.smoothed(similarity.resample(both.shape[1], config.score.bootstrap))
            theirs = similarity.one_sided(results.outcomes(models))
            np.fill_diagonal(theirs, np.nan)
            found = placed(labels, reason, draws, theirs)
        table = found.table(models).hstack(answers.table(eps_s))
        table = table.sort(["score", "model"], descending=[True, False])
        relatives = {"nearest": nearest(table), **table.row(0, named=True)}
        answer = [
            *belongs(name, found, table, "score"),
            text("novel.relatives", name=name, **relatives),
            text("novel.one_sided", name=name),
        ]
        if success < similarity.WEAK_ATTACK:
            answer.append(text("novel.weak", name=name, success=success))
            if evaluation.attack.eps is not None:
                answer.append(eps_advice())
        label = f"one-sided similarity to {name}, s1 = ln(100 p1) (nats)"
        drawing = figure(table, table.select("score", "low", "high"), label)
        picture = o.outputs.figure("novel", drawing, table, text("novel.caption", name=name))
        images = f"{evaluation.task.dataset} ({len(evaluation.subset)} in all)"
        o.finish(
            f"Where does {name} belong among {len(models)} models?",
            text("novel.question", name=name, attack=attacked(evaluation), images=images),
            answer,
            [Section("Members by one-sided similarity", (), {"": table}, [picture])],
        )
        o.run.raise_failures()


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
    landmarks, exporting = [names[i] for i in chosen], config.probe.export is not None
    if exporting:
        members = [members[i] for i in chosen]  # no other member is needed for the images
    else:
        with naming({"k": "probe.clusters"}):
            clusters.check_k(config.probe.clusters, len(members))
        # mistakes, before any work
        pack.read_table(config.predictions, build_evaluation(config).images.classes)
    with opened(config, members, sources=landmarks) as o:
        done = pass_landmarks(o.run, landmarks, one_sided=True)
        if exporting:
            export(o, [m for m in done if m.name in landmarks])
        else:
            answered(o, done, [i for i, m in enumerate(done) if m.name in landmarks])
        o.run.raise_failures()


def export(o: Opened, landmarks: list[Model]) -> None:
    """Write the pack: what it holds, and what to do with it."""
    folder, evaluation = Path(o.config.probe.export).expanduser(), o.run.evaluation
    table = o.outputs.table("pack", pack.export(o.run.results, landmarks, folder))
    total, number = size(float(table["file_bytes"].sum())), int(table["images"].sum())
    names = ",".join(member.name for member in landmarks)
    then = command("experiment=probe", f"landmarks=[{names}]", "predictions=FILE")
    values = {"number": number, "total": total, "n": len(landmarks)}
    o.finish(
        f"A pack of {number} images of {evaluation.task.dataset}",
        f"The images of {describe(evaluation, len(landmarks))}, for a classifier to be run on.",
        [text("probe.exported", folder=folder, **values), text("probe.then", command=then)],
        [Section("Folders", (), {"": table})],
    )


def answered(o: Opened, members: list[Model], chosen: list[int]) -> None:
    """Where the classifier belongs, by its predictions on the images of the chosen landmarks."""
    config, results, name, n = o.config, o.run.results, o.config.probe.name, len(members)
    landmarks, labels = [members[i] for i in chosen], o.run.evaluation.labels.numpy()
    given = pack.read_predictions(results, landmarks, config.predictions)
    for suspicion in suspicions(labels, given.clean[0], o.run.evaluation.images.classes):
        if suspicion.kind in (CHANCE, RELABELLED):
            raise UserError(
                f"predictions={config.predictions} cannot be used: {suspicion.finding}; are rows "
                "shuffled against their image_ids, or the classes in another order than in "
                "manifest.json?"
            )
    measured, _ = results.landmark_scores(members, chosen, True, config.score.eps_s)
    right, noise = given.clean == labels, None if given.noise is None else given.noise != labels
    both = right & np.stack([results.correct(landmark).numpy() for landmark in landmarks])
    for landmark, common in zip(landmarks, both.any(axis=1), strict=True):
        if not common:
            raise similarity.nothing_common(name, landmark.name)
    answers = Answers(both, given.attacked != labels, noise)
    scores = np.full((n + 1, n + 1), np.nan)  # the classifier's last
    scores[:n, :n] = measured
    scores[chosen, n] = scores[n, chosen] = answers.smoothed(np.ones((1, len(labels))))[0]
    half = np.zeros(n)  # of the 90% intervals of its predicted scores; NaN where there are none
    if FEWEST <= len(chosen) < n:
        completed = complete(scores, chosen, one_sided=True)
        scores, half = completed.scores, (completed.high - completed.low)[:n, n] / 2
    found = probe_clusters(o, members, answers, chosen, scores, half)
    table = probe_table(config, members, chosen, answers, scores, half, found)
    predicted = pl.when(kind="measured").then("model").otherwise(pl.col("model") + " (predicted)")
    shown = table.head(SHOWN).with_columns(predicted.alias("model"))
    ends = shown.select("excess", "low_excess", "high_excess")
    drawing = figure(shown, ends, "one-sided score less other members' mean (nats)")
    picture = o.outputs.figure("probe", drawing, table, text("probe.caption", name=name))
    source, accuracy = describe(o.run.evaluation, n), right.mean()
    o.finish(
        f"Where does {name} belong among {n} models?",
        text("probe.question", name=name, n=len(chosen), source=source),
        [
            *probe_answer(name, table, found),
            text("probe.accuracy", accuracy=accuracy, n=len(labels)),
        ],
        [Section("Members by excess of the score", (), {"": table}, [picture])],
    )


def excess(row: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """A classifier's scores with N models, [..., N], less the mean of each model's other scores, a
    column of [N, N]; NaN where unknown. Some landmarks fool every model, so this tells relatives.
    """
    return row - mean_known(np.where(np.eye(len(scores), dtype=bool), np.nan, scores), axis=0)


def probe_clusters(
    o: Opened,
    members: list[Model],
    answers: Answers,
    chosen: list[int],
    scores: NDArray[np.float64],
    half: NDArray[np.float64],
) -> Placed:
    """The members' clusters, of stored scores or else of predicted ones, and the classifier's.

    `chosen` are positions of the landmarks; scores are [N + 1, N + 1], the classifier's last, NaN
    where unknown; `half` are the half-widths [N] of 90 % intervals of its predicted scores.
    """
    n, config = len(members), o.config
    labels, reason = stored_clusters(o.run.results, members, config.probe.clusters)
    theirs, row = scores[:n, :n], scores[:n, n]
    if labels is None and half.any():
        symmetric = (theirs + theirs.T) / 2
        number, reason = clusters.choose_k(config.probe.clusters, symmetric)
        labels = clusters.spectral(symmetric, number)
        reason = text("probe.partly", reason=reason)
    if labels is None:
        return Placed(None, reason)
    # Over draws of images, in which a predicted score has a normal error with its interval's width.
    counts = similarity.resample(answers.both.shape[1], config.score.bootstrap)
    noise = np.random.default_rng(0).standard_normal((len(counts), n))
    draws = row + noise * half / Z_90
    draws[:, chosen] = answers.smoothed(counts)
    turned = np.where(np.eye(n, dtype=bool), np.nan, theirs.T)
    # Predicted scores are less certain: they count in clusters without a landmark alone.
    unused = np.isin(labels, labels[chosen])
    unused[chosen] = False
    draws[:, unused] = turned[:, unused] = np.nan
    return placed(labels, reason, excess(draws, theirs.T), excess(turned, theirs.T))


def probe_table(
    config: DictConfig,
    members: list[Model],
    chosen: list[int],
    answers: Answers,
    scores: NDArray[np.float64],
    half: NDArray[np.float64],
    found: Placed,
) -> pl.DataFrame:
    """A row a member, the nearest relative first; see `probe_clusters` for the arguments."""
    n, kinds = len(members), found.table(members)
    row, more = scores[:n, n], excess(scores[:n, n], scores[:n, :n].T)
    rest = [i for i in np.flatnonzero(~np.isnan(row)).tolist() if i not in chosen]
    measured = kinds[chosen].with_columns(kind=pl.lit("measured"), level=0.95)
    predicted = kinds[rest].with_columns(kind=pl.lit("predicted"), level=0.9, score=row[rest])
    ends = {
        end: pl.Series(e[rest]).fill_nan(None)
        for end, e in (("low", row - half), ("high", row + half))
    }
    measured = measured.hstack(answers.table(config.score.eps_s))
    table = pl.concat([measured, predicted.with_columns(**ends)], how="diagonal")
    mean = pl.Series((row - more)[chosen + rest])
    ends = {f"{end}_excess": table[end] - mean for end in ("low", "high")}
    table = table.with_columns(excess=more[chosen + rest], **ends)
    return table.sort(["excess", "model"], descending=[True, False])


def probe_answer(name: str, table: pl.DataFrame, found: Placed) -> list[str]:
    """The findings, the verdict first."""
    measured, noise = table.filter(kind="measured"), []
    if "above_noise" in measured.columns:
        above, n = int(measured["above_noise"].sum()), measured.height
        if not above:
            return [text("probe.No", name=name, n=n)]
        noise = [text("probe.noise", above=above, n=n)]
    relatives = text("probe.relatives", nearest=nearest(measured))
    for row in table.filter(pl.col("low").is_not_null(), kind="predicted").head(1).to_dicts():
        relatives += text("probe.predicted", **row)
    return [*belongs(name, found, table, "excess"), relatives, *noise]


# Both


def nearest(table: pl.DataFrame) -> str:
    """The nearest relatives with their scores."""
    return ", ".join(
        text("nearest", more=text("excess", **row) if "excess" in row else "", **row)
        for row in table.head(NEAREST).to_dicts()
    )


def belongs(name: str, found: Placed, table: pl.DataFrame, column: str) -> list[str]:
    """The cluster of the classifier, the verdict first, by the means of a column of the table."""
    if found.labels is None:
        return [text("cluster.none", name=name, reason=found.reason)]
    best, k = int(np.argmax(found.shares)), len(found.shares)
    share = found.shares[best]
    decision = "Yes" if verdict(share, threshold=CERTAIN) == "Yes" else "Not certain"
    values = {"cluster": best + 1, "k": k, "name": name, "share": share}
    listed = ", ".join(table.filter(cluster=best + 1)["model"].sort())
    predicted = " and errors of predictions" if column == "excess" else ""
    means = table.group_by("cluster").agg(pl.col(column).mean())
    mean = means.filter(cluster=best + 1)[column].item()
    following = means.filter(pl.col("cluster") != best + 1)[column].to_list()
    sentences = [
        text("cluster.means", column=column, mean=mean, next=max(following, default=np.nan)),
        text("cluster.reason", reason=found.reason),
        text("record", record=found.record, n=len(found.labels)),
    ]
    return [
        text("cluster", decision, models=listed, predicted=predicted, **values),
        " ".join(sentences),
    ]


def figure(table: pl.DataFrame, intervals: pl.DataFrame, label: str) -> Figure:
    """Members by score, the highest at the top, with intervals (the score, its low and its high
    end), coloured by cluster."""
    values, names, clusters = intervals.to_numpy(), table["model"].to_list(), table["cluster"]
    groups = None if clusters.null_count() else [f"cluster {c}" for c in clusters]
    return ranked_figure(names, {"": values}, label, groups)
