"""Train a member and keep its weights."""

import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.utils.data import TensorDataset

from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.store.layout import read_tensors, write, write_json, write_tensors
from netkin.training import checkpoint
from netkin.training.distillation import Teacher
from netkin.training.fit import Hardware, Job, Report, fit, own_checkpoint
from netkin.training.weights import Teaching, Training, made_of
from netkin.zoo.build import Classifier, build
from netkin.zoo.member import Member, noted


def train(
    training: Training,
    member: Member,
    advance: Advance,
    teaching: Teaching | None = None,
    hardware: Hardware | None = None,
    report: Report | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train a member, or go on where its training stopped, and keep its weights.

    Beside the weights lie `<member>.json` (what they are made of, the member, and the accuracy)
    and `<member>.curves.csv`. The JSON is written last: with it, the member is complete.

    Args:
        training: on what and how.
        member: what; its `name` is what the weights go by.
        advance: called with the number of epochs done, as they are.
        teaching: a teacher, whose weights are there, and how it teaches.
        hardware: where; by default one device of the setting's accelerator.
        report: called with each epoch's row of the curves, those of earlier runs first.
        start: a checkpoint of this training to go on from, instead of the one that is kept.

    Returns curves, test_accuracy (in [0, 1]) and seconds.
    """
    began = time.perf_counter()
    setting, recipe = training.setting, training.recipe
    hardware = hardware or Hardware(setting.accelerator)
    file = training.file(member)
    made = made_of(training, member, teaching, hardware.precision)
    teacher = None
    if teaching is not None:
        seen = setting.view(teaching.teacher).input_size
        teacher = Teacher(setting.build(teaching.teacher), seen, teaching.distillation)
    job = Job(
        identity={"name": member.name, **made},
        recipe=recipe,
        images=training.images,
        test=test_images(training, member),
        folder=setting.store.training(setting.task.dataset, member.name),
        hardware=hardware,
        teacher=teacher,
    )
    if start is not None:
        if own_checkpoint(start, job.identity) is None:
            raise UserError(f"there is no checkpoint {start} to resume from")
        if start.resolve() != job.last.resolve():
            write(job.last, lambda temporary: shutil.copyfile(start, temporary))
    end = _fit(initial(training, member), job, advance, report)
    weights = {"last": end.model, "ema": end.ema}.get(recipe.keep)
    if end.ema:
        write_tensors(job.folder / "ema.safetensors", end.ema)
    write_tensors(file, read_tensors(job.best) if weights is None else weights)
    table = pl.DataFrame(end.curves, infer_schema_length=None)
    write(file.with_suffix(".curves.csv"), table.write_csv)
    accuracy = end.best if recipe.keep == "best" else end.curves[-1].get("test_accuracy")
    if recipe.keep == "ema":
        accuracy = end.curves[-1]["test_accuracy_ema"]
    seconds = sum(row["seconds"] for row in end.curves)
    write_json(
        file.with_suffix(".json"),
        {
            "made_of": made,
            "member": noted(member),
            **({"teacher": noted(teaching.teacher)} if teaching else {}),
            "test_accuracy": accuracy,
            "test_images": len(job.test),
            "test_subset": setting.subset.name,
            "seconds": seconds,
        },
    )
    job.last.unlink(missing_ok=True)
    elapsed = time.perf_counter() - began
    return {"curves": end.curves, "test_accuracy": accuracy, "seconds": elapsed}


def initial(training: Training, member: Member) -> Classifier:
    """The member as training begins: drawn from the recipe's seed, with its `model_args`."""
    kwargs = {**member.kwargs, **training.recipe.model_args}
    drawn = replace(member, kwargs=kwargs, checkpoint=None, pretrained=False)
    return build(drawn, training.setting.task, seed=training.recipe.seed)


def test_images(training: Training, member: Member) -> TensorDataset:
    """The setting's subset as the member sees it: pixels [I, 3, H, W] uint8, labels [I]."""
    setting = training.setting
    view = setting.view(member)
    seen = torch.cat([setting.pixels(view, shard) for shard in range(len(setting.shards))])
    return TensorDataset(seen, setting.labels)


def _fit(
    classifier: Classifier, job: Job, advance: Advance, report: Report | None
) -> checkpoint.Checkpoint:
    """`fit`, told of as it goes, also where other processes train."""
    done = checkpoint.epochs_done(job.last)
    for row in checkpoint.load(job.last).curves if done else []:
        advance(1)
        if report is not None:
            report(row)

    def tell(row: Mapping[str, float]) -> None:
        advance(1)
        if report is not None:
            report(row)

    if job.hardware.devices == 1:
        return fit(classifier, job, tell)
    with _watching(job.last, done, tell):
        return fit(classifier, job)


@contextmanager
def _watching(last: Path, done: int, tell: Report) -> Iterator[None]:
    """Tell of the epochs that other processes finish, as their checkpoints appear."""
    stop = threading.Event()

    def look() -> None:
        nonlocal done
        if checkpoint.epochs_done(last) > done:
            for row in checkpoint.load(last).curves[done:]:
                tell(row)
                done += 1

    def watch() -> None:
        while not stop.wait(1.0):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
