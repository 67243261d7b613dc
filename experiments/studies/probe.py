"""Where does a classifier belong that is known by its predictions alone?

`probe.export=DIR` writes a pack of images (`netkin.passes.pack`) for a classifier in any
framework or behind an interface: no gradient, no weights and no netkin are needed to answer it.
`predictions=FILE` reads the answers: clean accuracy, one-sided scores with each landmark beside the
control of noise, the predicted scores with the other members, and the classifier's cluster.

Strong landmarks fool every model. Relatives are therefore ranked by the excess of a score over the
other members' mean with the same model (`netkin.analysis.placing`). Writes probe as PNG, PDF and
CSV, and report.html.

On the digits members, an SVM of scikit-learn and an ONNX export: experiments/results/landmarks.md.
"""

from pathlib import Path

import numpy as np
import polars as pl
from omegaconf import DictConfig

from experiments.cli.keys import naming
from experiments.cli.landmarks import choose, pass_landmarks
from experiments.cli.members import build_members
from experiments.cli.placing import Placed, place
from experiments.cli.runs import command
from experiments.cli.setting import build_evaluation, opened
from experiments.cli.study import describe
from experiments.studies.novel import stored_clusters
from netkin.analysis import clusters
from netkin.analysis.placing import Answers
from netkin.analysis.suspect import CHANCE, RELABELLED, suspicions
from netkin.errors import UserError
from netkin.evaluation import Evaluation
from netkin.model import Model
from netkin.passes import pack
from netkin.passes.pack import Predictions, export, read_predictions
from netkin.passes.rows import rows
from netkin.report.plots import intervals_figure
from netkin.report.study import Outputs, Section
from netkin.report.text import size
from netkin.results import Results

CERTAIN = 0.9
"""Share of draws from which a cluster counts as certain."""
NEAREST = 3
"""Relatives that the answer names."""


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    if (config.predictions is None) == (config.probe.export is None):
        raise UserError(
            "experiment=probe takes either probe.export=DIR, to write a pack of images, or "
            "predictions=FILE, to read what a classifier answered on it"
        )
    members = build_members(config)
    names = [member.name for member in members]
    marks = choose(config.landmarks, names, config.seed, all_allowed=True)
    chosen = [names[i] for i in marks]
    exporting = config.probe.export is not None
    if exporting:
        members = [members[i] for i in marks]  # no other member is needed for the images
    else:
        with naming({"k": "probe.clusters"}):
            clusters.check_k(config.probe.clusters, len(members))
        # mistakes, before any work
        pack.read_table(config.predictions, build_evaluation(config).images.classes)
    with opened(config, members, sources=chosen) as o:
        done = pass_landmarks(o.run, chosen, one_sided=True)
        landmarks = [model for model in done if model.name in chosen]
        if exporting:
            folder = Path(config.probe.export).expanduser()
            table = export(o.run.results, landmarks, folder)
            o.finish(*exported(folder, table, o.outputs, o.run.results, landmarks))
        else:
            o.finish(*answered(config, o.run.results, done, landmarks, o.outputs))
        o.run.raise_failures()


Report = tuple[str, str, list[str], list[Section]]
"""Title, question, answer and sections of a page."""


def exported(
    folder: Path, table: pl.DataFrame, outputs: Outputs, results: Results, landmarks: list[Model]
) -> Report:
    """What the pack holds, and what to do with it."""
    outputs.table("pack", table)
    total, number = size(float(table["file_bytes"].sum())), int(table["images"].sum())
    marks = ",".join(member.name for member in landmarks)
    return (
        f"A pack of {number} images of {results.evaluation.task.dataset}",
        f"The images of {describe(results.evaluation, len(landmarks))}, for a classifier to be run "
        "on.",
        [
            f"Yes: {folder} has {number:,} images ({total}) of {len(landmarks)} landmarks, and "
            "README.txt, which says how to run a classifier on them.",
            f"Then: {command('experiment=probe', f'landmarks=[{marks}]', 'predictions=FILE')}",
        ],
        [Section("Folders", (), {"": table})],
    )


def answered(
    config: DictConfig,
    results: Results,
    members: list[Model],
    landmarks: list[Model],
    outputs: Outputs,
) -> Report:
    """Where the classifier belongs."""
    marks = [members.index(mark) for mark in landmarks]
    given = read_predictions(results, landmarks, config.predictions)
    labels = results.evaluation.labels.numpy()
    check_answers(config, results.evaluation, given)
    measured = rows(results, members, marks, one_sided=True, eps_s=config.score.eps_s)
    right = given.clean == labels
    answers = Answers(
        right & measured.correct[marks],
        given.attacked != labels,
        None if given.noise is None else given.noise != labels,
    )
    for mark, both in zip(landmarks, answers.both, strict=True):
        if not both.any():
            raise UserError(
                f"no image is classified correctly by {mark.name} and {config.probe.name}: their "
                "similarity is undefined; use more images"
            )
    stored = stored_clusters(results, members, config.probe.clusters)[:2]
    placed = place(config, members, measured, answers, *stored)
    name, n = config.probe.name, len(members)
    shown = placed.table.head(40)
    ends = shown.select("low_excess", "high_excess").to_numpy()
    drawing = intervals_figure(
        [
            f"{r['model']}{'' if r['kind'] == 'measured' else ' (predicted)'}"
            for r in shown.to_dicts()
        ],
        [np.empty(0)] * shown.height,
        shown["excess"].to_numpy(),
        np.full_like(ends, np.nan),
        ends,
        0.0,
        "one-sided score less other members' mean (nats)",
        legend=False,
    )
    caption = (
        f"How much more {name} is fooled by each model's images than the other members are. "
        "Intervals are over images (95%) for landmarks, and of predictions (90%) for others."
    )
    picture = outputs.figure("probe", drawing, placed.table, caption)
    question = (
        f"{name} was given to {len(landmarks)} landmarks' images: its predictions are compared "
        f"with those of {describe(results.evaluation, n)}."
    )
    accuracy = f"Its clean accuracy is {right.mean():.1%} on {len(labels)} images."
    return (
        f"Where does {name} belong among {n} models?",
        question,
        [*words(name, placed), accuracy],
        [Section("Members by excess of the score", (), {"": placed.table}, [picture])],
    )


def check_answers(config: DictConfig, evaluation: Evaluation, given: Predictions) -> None:
    """Raises UserError for predictions near chance, or right but for the order of the classes."""
    found = suspicions(evaluation.labels.numpy(), given.clean[0], evaluation.images.classes)
    for suspicion in found:
        if suspicion.kind in (CHANCE, RELABELLED):
            raise UserError(
                f"predictions={config.predictions} cannot be used: {suspicion.finding}; are rows "
                "shuffled against their image_ids, or the classes in another order than in "
                "manifest.json?"
            )


def words(name: str, placed: Placed) -> list[str]:
    """The findings, the verdict first."""
    told = placed.table.filter(kind="measured")
    near = ", ".join(
        f"{r['model']} (s1 = {r['score']:.2f}, 95% interval {r['low']:.2f} to {r['high']:.2f}; "
        f"{r['excess']:+.2f} against other members' mean)"
        for r in told.head(NEAREST).to_dicts()
    )
    relatives = f"Its nearest relatives among the landmarks are {near}."
    for r in placed.table.filter(kind="predicted").head(1).to_dicts():
        relatives += (
            f" Of the others {r['model']} is predicted to be the nearest (s1 = {r['score']:.2f}, "
            f"90% interval {r['low']:.2f} to {r['high']:.2f})."
        )
    noise = []
    if not told["above_noise"].null_count():
        above = int(told["above_noise"].sum())
        if not above:
            return [
                f"No: none of {told.height} landmarks' images fool {name} more often than noise of "
                "the same size does, so it is related to none of them, and its place among the "
                "members is unknown.",
            ]
        noise = [f"{above} of {told.height} landmarks' images fool it more often than noise does."]
    if placed.labels is None:
        return [f"Not certain, for want of clusters ({placed.reason}). {relatives}", *noise]
    best = int(placed.shares.argmax())
    share, k = float(placed.shares[best]), len(placed.shares)
    listed = placed.table.filter(cluster=best + 1)["model"].sort()
    word = "Yes" if share >= CERTAIN else "Not certain"
    return [
        f"{word}: {name} belongs to cluster {best + 1} ({', '.join(listed)}) with a probability of "
        f"{share:.0%}, over draws of images and errors of predictions; there are {k} clusters "
        f"({placed.reason}). The same rule puts {placed.record} of {len(placed.labels)} members "
        "into their own cluster.",
        relatives,
        *noise,
    ]
