"""What the studies of train.py do with trained models: predictions, curves and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from experiments.cli.devices import BATCH_SIZE, on_cpu
from experiments.cli.finish import finish
from experiments.cli.session import Run, Session, open_run, train_member
from netkin.report.plots import curves_figure
from netkin.report.study import Outputs, Picture, Section
from netkin.report.text import percent
from netkin.training import weights
from netkin.zoo.build import Classifier, build
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Answer:
    """The result of a run of train.py in words, and as a row of numbers.

    Attributes:
        title: the question in one line.
        question: the question and how it was answered, in a sentence or two.
        paragraphs: the answer in words.
        result: one row of result.csv, which is also the run's summary.
        accuracy: of the run's own model on the test images, in [0, 1].
    """

    title: str
    question: str
    paragraphs: Sequence[str]
    result: Mapping[str, Any]
    accuracy: float


def train_alone(session: Session, member: Member) -> None:
    """Train one member from the labels alone, and write its accuracy, curves and page."""
    with open_run(session, member.name) as run:
        stored = train_member(session, member, run)
        recipe, images = session.training.recipe, session.training.images
        accuracy, tested = stored["test_accuracy"], stored["test_images"]
        answer = Answer(
            f"How accurate is {member.name} on {session.dataset}?",
            f"{member.name} ({member.timm}) was trained from the labels alone on {len(images.ids)} "
            f"images for {recipe.epochs} epochs (seed {recipe.seed}), and tested on {tested} other "
            "images.",
            [
                f"{member.name} classifies {percent(accuracy)} of {tested} test images correctly, "
                f"after {stored['seconds']:.0f} s of training."
            ],
            {
                "model": member.name,
                "seed": recipe.seed,
                "test_accuracy": accuracy,
                "test_images": tested,
                "seconds": stored["seconds"],
            },
            accuracy,
        )
        report(session, member, run, answer)


def report(session: Session, member: Member, run: Run, answer: Answer) -> None:
    """Write curves, result.csv and report.html; print the answer and where the files are.

    Args:
        session: of the run.
        member: the trained model, whose curves are drawn.
        run: its outputs and tracker.
        answer: the result.
    """
    table = run.outputs.table("result", pl.DataFrame([answer.result]))
    run.tracker.summary({"accuracy": answer.accuracy, **answer.result})
    sections = [
        Section("Training", figures=[curves(session, member, run.outputs)]),
        Section("Result", tables={"Result": table}),
    ]
    config = OmegaConf.to_yaml(session.config, resolve=True)
    finish(
        *(run.outputs, session.console, answer.title, answer.question),
        *(answer.paragraphs, sections, config),
    )
    lines = [f"Weights  {session.training.file(member)}"]
    if session.hardware.fast_dev_run:
        lines.append("This was a fast_dev_run: the store is unchanged.")
    else:
        lines.append(f"Member   {session.dataset}/{member.name} of evaluate.py")
    for line in lines:
        session.console.print(line)


def curves(session: Session, member: Member, outputs: Outputs) -> Picture:
    """Draw the losses and accuracies of a member's training into the run's folder."""
    table = weights.curves(session.training.file(member))
    caption = f"Training of {member.name}: losses and accuracies over the epochs."
    return outputs.figure("curves", curves_figure(table), table, caption)


def predictions(session: Session, classifier: Classifier, member: Member) -> NDArray[np.intp]:
    """The classes that a classifier predicts for the test images, [I].

    Args:
        session: that has the test images.
        classifier: of the member.
        member: its resize and crop are applied to the images.
    """
    results = session.results
    device = torch.device("cpu" if on_cpu(session.config) else "cuda")
    classifier = classifier.eval().to(device)
    view, predicted = session.open(member).view, []
    for shard in range(len(results.evaluation.shards)):
        for batch in results.pixels(view, shard).split(BATCH_SIZE):
            with torch.inference_mode():
                predicted.append(classifier(batch.to(device).float() / 255).argmax(dim=1).cpu())
    return torch.cat(predicted).numpy()


def trained_classifier(session: Session, member: Member) -> Classifier:
    """A member with the weights that the store has under its name."""
    file = session.training.file(member)
    return build(replace(member, checkpoint=str(file)), session.training.task, file)
