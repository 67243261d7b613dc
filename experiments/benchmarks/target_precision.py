"""The target pass in several precisions: what it takes, and which outcomes differ."""

from collections.abc import Sequence
from functools import partial

import polars as pl
import torch
from torch import Tensor

from experiments.benchmarks.batch import correct_batch
from netkin.jobs.devices import seconds_of
from netkin.model import Model
from netkin.results import Results
from netkin.run import Run
from netkin.runner import Predictor
from netkin.zoo.execution import TARGET_PRECISIONS, precisions

ROUNDS = 3
KEY = ("source", "target", "image_id")


def in_turn(r: Run, members: Sequence[Model], threads: int) -> pl.DataFrame:
    """Milliseconds an image of each member in each of TARGET_PRECISIONS that the device has.

    The fastest of three rounds, in which the precisions take turns, on one batch of clean images:
    columns model, precision, transfer_ms_per_image. Members' clean pass is done.
    """
    device, rows = r.runner.device, []
    names = [name for name in precisions(device.type == "cuda") if name in TARGET_PRECISIONS]
    torch.set_num_threads(threads)
    for member in members:
        batch = correct_batch(r.results, member, r.runner.batch_size, device)
        runs = {name: r.runner.predictor(batch.classifier, name) for name in names}
        seconds = {name: float("inf") for name in names}
        for round_ in range(ROUNDS + 1):  # the first one prepares the models
            for name, evaluator in runs.items():
                taken = seconds_of(partial(_classify, evaluator, batch.pixels), device)
                seconds[name] = min(seconds[name], taken) if round_ else seconds[name]
        rows += [
            {
                "model": member.name,
                "precision": n,
                "transfer_ms_per_image": 1e3 * s / len(batch.keys),
            }
            for n, s in seconds.items()
        ]
    return pl.DataFrame(rows)


def _classify(predictor: Predictor, pixels: Tensor) -> None:
    with torch.no_grad():
        predictor(pixels)


def speed_sentence(table: pl.DataFrame) -> str:
    """A table of `in_turn` in words: the mean over models, and each precision's gain."""
    means = table.group_by("precision", maintain_order=True).agg(pl.mean("transfer_ms_per_image"))
    (own, first), *others = means.rows()
    gains = [f", {ms:.3g} ms in {name} ({first / ms:.2f} times as fast)" for name, ms in others]
    models = table["model"].n_unique()
    return (
        f"A target takes {first:.3g} ms an image in {own}{''.join(gains)}: mean of {models} models."
    )


def differing(ours: Results, theirs: Results, members: Sequence[Model]) -> dict[str, float]:
    """The shares of predictions on adversarial images, and of outcomes, that differ.

    Over all pairs of members and the images that both classify correctly, which are the same in
    both.
    """
    names, counts = [member.name for member in members], pl.Series([0, 0, 0])
    tables = ours.outcome_store, theirs.outcome_store
    for name in names:  # one target at a time: all rows of a large zoo fill the memory
        one, other = (table.read(name, names) for table in tables)
        both = one.join(other, on=list(KEY), suffix="_other", validate="1:1")
        assert both.height == one.height == other.height
        counts += pl.Series(
            [
                both.height,
                (both["prediction"] != both["prediction_other"]).sum(),
                (both["fooled"] != both["fooled_other"]).sum(),
            ]
        )
    total, predictions, fooled = counts.to_list()
    return {"differing_predictions": predictions / total, "differing_outcomes": fooled / total}
