"""How a source's shards are crafted: decided once, kept with them, and used again on resume.

What `auto` finds depends on the day's timings, and all of it moves the last bits of a float. So
that an interrupted run still ends in the same bytes, the decision lies in the entry's folder, in
execution.json, and holds for all its shards, whoever makes them. The defaults decide nothing by
timing.
"""

import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from netkin.errors import StoreError
from netkin.store.files import create_json
from netkin.store.layout import Entry
from netkin.transfer.batches import out_of_memory
from netkin.zoo.build import Classifier
from netkin.zoo.execution import MEMORY_FORMATS, Execution, prepare

log = logging.getLogger(__name__)

AUTO = "auto"
SMALLEST = 8
"""Images in the first batch that is timed."""
BEFORE = Execution(fuse=False, memory_format="contiguous")
"""How all was crafted before there was a choice."""
GAIN = 0.98
"""A larger batch has to take at most this part of the time an image."""
ROUNDS = 3


@dataclass(frozen=True)
class Choice:
    """What a config asks for.

    Attributes:
        execution: how a source is run.
        time_formats: whether it is timed in each of MEMORY_FORMATS for the faster one, whichever
            `execution` says.
        batch_size: images at once, or "auto", which times batches of more and more.
    """

    execution: Execution = field(default_factory=Execution)
    time_formats: bool = False
    batch_size: int | str = 100


def decided(
    entry: Entry, choice: Choice, classifier: Classifier, pixels: Tensor, shard_size: int
) -> tuple[Execution, int]:
    """How the entry's shards are crafted, and how many images at once.

    The first to ask decides, by `choice`; what was begun otherwise goes on as it was begun.

    Args:
        entry: of the source's adversarial images, claimed.
        choice: what the config asks for.
        classifier: the source, on its device.
        pixels: [n, 3, H, W] in [0, 1], n > 0: the images that are timed, if any need be.
        shard_size: images in a shard, which no batch exceeds.
    """
    file = entry.path / "execution.json"
    if not file.is_file():
        if any(entry.path.glob("*.safetensors")):  # begun before there was a choice
            found: dict[str, Any] = {**asdict(BEFORE), "batch_size": None}
        else:
            found = _decide(choice, classifier, pixels, shard_size)
        create_json(file, found)
    try:
        kept = json.loads(file.read_text())
        fixed = Execution(
            choice.execution.precision, kept["fuse"], kept["memory_format"], kept["compile"]
        )
        size = kept["batch_size"] if choice.batch_size == AUTO else int(choice.batch_size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file} cannot be read ({type(error).__name__}: {error}); remove {entry.path}"
        ) from None
    asked = choice.execution
    if choice.time_formats:
        asked = replace(asked, memory_format=fixed.memory_format)
    if fixed != asked:
        log.warning(
            "%s goes on as it was begun, with %s: so its bytes do not depend on where it stopped",
            classifier.name,
            ", ".join(f"{key}={kept[key]}" for key in ("fuse", "memory_format", "compile")),
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
    found: dict[str, Any] = {"timed": []}
    best, size = formats[0], sizes[0]
    if len(formats) > 1 or len(sizes) > 1:
        timed = _timed(choice, classifier, pixels, formats, sizes)
        best, size, _ = min(timed, key=lambda row: row[2])
        rows = [{"memory_format": f, "batch_size": n, "ms_per_image": 1e3 * s} for f, n, s in timed]
        found["timed"] = rows
    execution = replace(choice.execution, memory_format=best)
    return {
        **found,
        **asdict(execution),
        "batch_size": size if choice.batch_size == AUTO else None,
    }


def _timed(
    choice: Choice, classifier: Classifier, pixels: Tensor, formats: list[str], sizes: list[int]
) -> list[tuple[str, int, float]]:
    """(memory format, batch size, seconds an image of one step): formats in turn, batches growing
    until that no longer gains or does not fit. Nothing is compiled for this."""
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
                    seconds = _step(model, images)
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


def _step(model: Classifier, images: Tensor) -> float:
    """Seconds of a forward pass and the gradient to the input."""
    start = time.perf_counter()
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
