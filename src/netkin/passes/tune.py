"""How a source's shards are crafted: decided once, stored with them, and used again on resume.

The result of `auto` depends on timings, and every choice changes the last bits of a float. So that
an interrupted run still ends in the same bytes, the decision is stored in the entry's folder, in
execution.json, and holds for all its shards and processes. The defaults decide nothing by timing.
"""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from netkin.errors import StoreError
from netkin.jobs.devices import seconds_of
from netkin.passes.batches import out_of_memory
from netkin.store.files import create_json
from netkin.store.layout import Entry
from netkin.zoo.build import Classifier
from netkin.zoo.execution import MEMORY_FORMATS, Execution, prepare

log = logging.getLogger(__name__)

AUTO = "auto"
SMALLEST = 8
"""Images in the first batch that is timed."""
GAIN = 0.98
"""A larger batch is used if it takes at most this part of the time an image."""
ROUNDS = 3


@dataclass(frozen=True)
class Choice:
    """How models are to be run.

    Attributes:
        execution: how a source is run.
        time_formats: whether the faster one of MEMORY_FORMATS is found by timing, and used instead
            of that of `execution`.
        batch_size: images at once, or "auto", which times larger and larger batches.
    """

    execution: Execution = field(default_factory=Execution)
    time_formats: bool = False
    batch_size: int | str = 100


def decided(
    entry: Entry, choice: Choice, classifier: Classifier, pixels: Tensor, shard_size: int
) -> tuple[Execution, int]:
    """How the entry's shards are crafted, and how many images at once.

    The first process decides, by `choice`. An entry that was begun in another way continues in
    that way, with a warning.

    Args:
        entry: of the source's adversarial images, claimed.
        choice: how models are to be run.
        classifier: the source, on its device.
        pixels: [n, 3, H, W] in [0, 1], n > 0: the images for timings.
        shard_size: images in a shard, the largest batch.

    Raises StoreError where the stored decision cannot be read.
    """
    file = entry.path / "execution.json"
    if not file.is_file():
        create_json(file, _decide(choice, classifier, pixels, shard_size))
    try:
        decision = json.loads(file.read_text())
        fixed = Execution(
            choice.execution.precision,
            decision["fuse"],
            decision["memory_format"],
            decision["compile"],
        )
        size = decision["batch_size"] if choice.batch_size == AUTO else int(choice.batch_size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file} cannot be read ({type(error).__name__}: {error}); remove {entry.path}"
        ) from None
    chosen = choice.execution
    if choice.time_formats:
        chosen = replace(chosen, memory_format=fixed.memory_format)
    if fixed != chosen:
        log.warning(
            "%s goes on as it was begun, with %s: so its bytes do not depend on where it stopped",
            classifier.name,
            ", ".join(f"{key}={decision[key]}" for key in ("fuse", "memory_format", "compile")),
        )
    return fixed, min(size or shard_size, shard_size)


def _decide(
    choice: Choice, classifier: Classifier, pixels: Tensor, shard_size: int
) -> dict[str, Any]:
    formats = list(MEMORY_FORMATS) if choice.time_formats else [choice.execution.memory_format]
    if choice.batch_size == AUTO:
        sizes = [SMALLEST * 2**i for i in range(20) if SMALLEST * 2**i < shard_size] + [shard_size]
    else:
        sizes = [min(int(choice.batch_size), shard_size)]
    rows: list[dict[str, Any]] = []
    best, size = formats[0], sizes[0]
    if len(formats) > 1 or len(sizes) > 1:
        timed = _timed(choice, classifier, pixels, formats, sizes)
        best, size, _ = min(timed, key=lambda row: row[2])
        rows = [{"memory_format": f, "batch_size": n, "ms_per_image": 1e3 * s} for f, n, s in timed]
    execution = replace(choice.execution, memory_format=best)
    return {
        "timed": rows,
        **asdict(execution),
        "batch_size": size if choice.batch_size == AUTO else None,
    }


def _timed(
    choice: Choice, classifier: Classifier, pixels: Tensor, formats: list[str], sizes: list[int]
) -> list[tuple[str, int, float]]:
    """(memory format, batch size, seconds an image of one step). Formats are timed in turn, on
    batches that grow until that gains nothing or does not fit. Nothing is compiled for this."""
    runs = {
        name: prepare(
            classifier, replace(choice.execution, memory_format=name, compile=False), pixels
        )
        for name in formats
    }
    rows: list[tuple[str, int, float]] = []
    best = float("inf")
    for size in sizes:
        images = pixels[torch.arange(size, device=pixels.device) % len(pixels)]
        try:
            taken = {name: float("inf") for name in formats}
            for round_ in range(ROUNDS + 1):  # the first one sets up kernels
                for name, model in runs.items():
                    seconds = seconds_of(partial(_step, model, images), images.device)
                    if round_:
                        taken[name] = min(taken[name], seconds / size)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error) or not rows:
                raise
            break
        rows += [(name, size, seconds) for name, seconds in taken.items()]
        if min(taken.values()) > GAIN * best:
            break
        best = min(taken.values())
    return rows


def _step(model: Classifier, images: Tensor) -> None:
    """A forward pass and the gradient to the input."""
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)
