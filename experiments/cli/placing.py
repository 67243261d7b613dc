"""Where a classifier belongs that was run on a pack of landmarks' images."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig

from netkin import similarity
from netkin.analysis import clusters
from netkin.analysis.landmarks import FEWEST, Completed, complete
from netkin.analysis.placing import Answers, cluster_shares, drawn_rows, excess
from netkin.passes.rows import Rows
from netkin.zoo.member import Member


class Placed(NamedTuple):
    """The members, their clusters and the classifier's row.

    `labels` is None, with the reason, where the members have no clusters; `shares` and `record` are
    then empty and 0. `record` is how many members the same rule puts into their own cluster.
    """

    table: pl.DataFrame
    labels: NDArray[np.intp] | None
    reason: str
    shares: NDArray[np.float64]
    record: int


def place(
    config: DictConfig,
    members: list[Member],
    measured: Rows,
    answers: Answers,
    labels: NDArray[np.intp] | None,
    reason: str,
) -> Placed:
    """The classifier's row, measured and predicted, its relatives and its cluster.

    Args:
        config: as composed, of experiment=probe.
        members: the N models.
        measured: their scores with the landmarks.
        answers: of the classifier.
        labels: [N] clusters of the models from all their scores; None where these are not stored,
            and they are clustered by their predicted scores.
        reason: for the number of clusters, or why there are none.
    """
    n, marks = len(members), measured.marks
    scores = np.full((n + 1, n + 1), np.nan)
    scores[:n, :n] = measured.scores
    scores[marks, n] = scores[n, marks] = answers.smoothed()
    found: Completed | None = None
    if FEWEST <= len(marks) < n:
        found = complete(scores, marks.tolist(), one_sided=True)
    full = scores if found is None else found.scores
    half = np.zeros(n) if found is None else (found.high - found.low)[:n, n] / 2
    if labels is None and found is not None:
        symmetric = (full[:n, :n] + full[:n, :n].T) / 2
        number, reason = clusters.choose_k(config.probe.clusters, symmetric)
        labels = clusters.spectral(symmetric, number)
        reason += "; of scores that were predicted in part"
    shares, record = np.empty(0), 0
    if labels is not None:
        counts = similarity.resample(answers.both.shape[1], config.score.bootstrap)
        draws = drawn_rows(answers, marks.tolist(), full[:n, n], half, counts)
        # Predicted scores are less certain: they count in clusters without a landmark alone.
        unused = np.isin(labels, labels[marks])
        unused[marks] = False
        draws[:, unused] = np.nan
        _, shares = cluster_shares(excess(draws, full[:n, :n].T), labels)
        own = np.where(np.eye(n, dtype=bool), np.nan, full[:n, :n].T)
        own[:, unused] = np.nan
        chosen, _ = cluster_shares(excess(own, full[:n, :n].T), labels)
        record = int((chosen == labels).sum())
    table = row_table(config, members, measured, answers, full, half, labels)
    return Placed(table, labels, reason, shares, record)


def row_table(
    config: DictConfig,
    members: list[Member],
    measured: Rows,
    answers: Answers,
    full: NDArray[np.float64],
    half: NDArray[np.float64],
    labels: NDArray[np.intp] | None,
) -> pl.DataFrame:
    """A row a member, the nearest relative first."""
    n, place = len(members), {int(mark): k for k, mark in enumerate(measured.marks)}
    more = excess(full[:n, n], full[:n, :n].T)
    table = []
    for i, member in enumerate(members):
        row: dict = {"model": member.name, "family": member.family}
        row["cluster"] = None if labels is None else int(labels[i]) + 1
        k = place.get(i)
        if k is None:
            if np.isnan(full[i, n]):
                continue
            score, low, high = full[i, n], full[i, n] - half[i], full[i, n] + half[i]
            row |= {"kind": "predicted", "level": 0.9}
        else:
            s = answers.score(k, config.score.eps_s)
            score, low, high = s.score, s.low, s.high
            row |= {"kind": "measured", "level": 0.95, "n": s.n}
            row |= {"noise_rate": answers.noise_rate(k), "above_noise": answers.above_noise(k)}
        mean = full[i, n] - more[i]
        row |= {"score": score, "low": low, "high": high, "excess": more[i]}
        table.append(row | {"low_excess": low - mean, "high_excess": high - mean})
    return pl.DataFrame(table, infer_schema_length=None).sort(
        ["excess", "model"], descending=[True, False]
    )
