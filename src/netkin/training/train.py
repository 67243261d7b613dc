"""Train a member and store its weights."""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import torch
from torch.utils.data import TensorDataset

from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.store.files import read_tensors, write, write_json, write_tensors
from netkin.store.layout import owner, weights_owner
from netkin.training import checkpoint
from netkin.training.distillation import Teacher
from netkin.training.fit import Job, Report, fit
from netkin.training.weights import Teaching, Training, identity
from netkin.zoo.build import build
from netkin.zoo.member import Member
from netkin.zoo.preprocessing import preprocessing


def train(
    training: Training,
    member: Member,
    advance: Advance,
    teaching: Teaching | None = None,
    report: Report | None = None,
    start: Path | None = None,
) -> Result:
    """Train a member, from its checkpoint if there is one, and store its weights.

    Beside the weights it writes `<member>.curves.csv` and `<member>.json` (see
    `netkin.training.weights.notes`). The JSON is written last: with it, the member is complete.

    Args:
        training: the images, the recipe and where it runs.
        member: the model; its `name` is that of the weights.
        advance: called with the number of epochs done, as they are done.
        teaching: of a distillation; the teacher's weights must exist.
        report: called with each epoch's row of the curves, those of earlier runs first, and in long
            epochs with rows of steps; see `netkin.training.fit.Fit`.
        start: a checkpoint of this training to continue from, instead of the one in the store.

    Raises UserError where `start` does not exist, a checkpoint is damaged, an epoch does not fill a
    batch or a loss is not finite, and OtherTraining where a checkpoint is of another training.
    """
    began = time.perf_counter()
    job = make_job(training, member, teaching)
    if start is not None:
        if not start.is_file():
            raise UserError(f"there is no checkpoint {start} to resume from")
        checkpoint.load(start, job.identity)  # raises
        if start.resolve() != job.last.resolve():
            write(job.last, lambda temporary: shutil.copyfile(start, temporary))

    def done(row: Mapping[str, float]) -> None:
        if "epoch" in row:
            advance(1)
        if report is not None:
            report(row)

    if job.last.is_file():
        for row in checkpoint.load(job.last, job.identity).curves:
            done(row)
    kwargs = {**member.kwargs, **training.recipe.model_args}
    untrained = replace(member, kwargs=kwargs, checkpoint=None, pretrained=False)
    classifier = build(untrained, training.task, seed=training.recipe.seed)
    if job.hardware.devices == 1:
        end = fit(classifier, job, done)
    else:
        job.rows.unlink(missing_ok=True)
        with _following(job.rows, done):
            end = fit(classifier, job)
    accuracy = _store(training, member, teaching, job, end)
    for file in (job.last, job.best, job.rows):  # of use while it goes on only
        file.unlink(missing_ok=True)
    with suppress(OSError):  # another training of this name goes on
        job.folder.rmdir()
    elapsed = time.perf_counter() - began
    return Result(curves=end.curves, test_accuracy=accuracy, seconds=elapsed)


def make_job(training: Training, member: Member, teaching: Teaching | None) -> Job:
    """The training of a member, with its teacher's weights loaded."""
    teacher, store = None, training.results.store
    if teaching is not None:
        size = teaching.teacher.view.input_size
        teacher = Teacher(teaching.teacher.build(), size, teaching.distillation)
    return Job(
        identity={"name": member.name, **identity(training, member, teaching)},
        recipe=training.recipe,
        images=training.images,
        test=pixels_and_labels(training, member),
        folder=store.training(training.task.dataset, member.name),
        hardware=training.hardware,
        teacher=teacher,
    )


def _store(
    training: Training,
    member: Member,
    teaching: Teaching | None,
    job: Job,
    end: checkpoint.Checkpoint,
) -> float:
    """Write the weights that the recipe keeps, the curves and the notes; returns the accuracy."""
    file, recipe, final = training.file(member), training.recipe, end.curves[-1]
    weights, accuracy = {
        "last": (end.model, final.get("test_accuracy")),
        "best": (None, checkpoint.best(end.curves)),
        "ema": (end.ema, final.get("test_accuracy_ema")),
    }[recipe.keep]
    assert accuracy is not None
    if weights is None:
        weights = read_tensors(job.best, owner(job.best, job.identity))
    made_of = {key: value for key, value in job.identity.items() if key != "name"}
    write_tensors(file, weights, weights_owner(made_of))
    table = pl.DataFrame(end.curves, infer_schema_length=None)
    write(file.with_suffix(".curves.csv"), table.write_csv)
    write_json(
        file.with_suffix(".json"),
        {
            "made_of": made_of,
            "member": asdict(member),
            **({"teacher": asdict(teaching.teacher.member)} if teaching else {}),
            "test_accuracy": accuracy,
            "test_images": len(job.test),
            "test_subset": training.results.evaluation.subset.name,
            "seconds": sum(row["seconds"] for row in end.curves),
        },
    )
    return accuracy


def pixels_and_labels(training: Training, member: Member) -> TensorDataset:
    """The test images through the member's view: pixels [I, 3, H, W] uint8, labels [I] int64."""
    results, view = training.results, preprocessing(member, training.task).view
    shards = range(len(results.evaluation.shards))
    pixels = torch.cat([results.pixels(view, shard) for shard in shards])
    return TensorDataset(pixels, results.evaluation.labels)


@contextmanager
def _following(file: Path, done: Report) -> Iterator[None]:
    """Report the rows that another process appends to a file, as they come."""
    stop = threading.Event()

    def follow() -> None:
        read, last = 0, False
        while not last:
            last = stop.wait(1.0)
            text = file.read_text() if file.is_file() else ""
            lines = text.split("\n")[read:-1]  # the last may be half written
            read += len(lines)
            for line in lines:
                done(json.loads(line))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
