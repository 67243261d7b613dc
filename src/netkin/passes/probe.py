"""What a member costs: one small batch of its craft and transfer steps, timed on this device."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from netkin.attacks import Attack
from netkin.attacks.base import frozen
from netkin.data import views
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.results import Results
from netkin.runner import Batches, Runner
from netkin.zoo.build import Classifier, build
from netkin.zoo.execution import Prepared, exact_float32

FIRST_BATCH = 2
STEPS = 2
"""Steps of an iterative attack that are timed, for all of them."""


@dataclass(frozen=True, kw_only=True)
class Cost(Result):
    """A member's cost.

    Attributes:
        params: number of parameters.
        input_size: pixels a side.
        craft: seconds to attack an image.
        transfer: seconds to classify another source's image.
        memory: bytes at the peak: of the device's memory on a GPU, of the process's on a CPU; None
            where that cannot be read.
        batch: images at once in these measurements.
        uncrafted: images still to be attacked; the most there can be, before the clean pass.
    """

    params: int
    input_size: int
    craft: float
    transfer: float
    memory: int | None
    batch: int
    uncrafted: int


def probe(results: Results, runner: Runner, model: Model, seconds: float, advance: Advance) -> Cost:
    """Time a member on the first images of the subset, with its weights where there are any.

    The batch grows from two images until attacking it takes `seconds`, memory runs out, or it has
    `runner.batch_size`: a small network's time in a small batch is mostly overhead.
    """
    start, evaluation, device = time.perf_counter(), results.evaluation, runner.device
    trained, subset, precision = model.has_weights, evaluation.subset, evaluation.craft_precision
    classifier = build(model.member, model.task, model.weights if trained else None)
    classifier.eval().to(device)

    def first(images: int) -> Tensor:
        pixels = views.load(evaluation.images, subset.positions[:images], model.view)
        return pixels.to(device).float() / 255

    execution = replace(runner.execution, precision=precision, compile=False)
    source = Prepared(classifier, execution, first(FIRST_BATCH))
    predictor = runner.predictor(classifier, evaluation.target_precision)
    shortened = evaluation.attack.shortened(STEPS)

    def timed(size: int) -> tuple[float, float, int | None, int]:
        """Seconds an image of the shortened attack and of classifying, peak bytes, and images at
        once: on the first `size` images, up to three times or for about `seconds`."""
        pixels, labels = first(size), evaluation.labels[:size].to(device)
        keys, batches = evaluation.keys(model.name, range(size)), Batches(size, model.name)

        def classify(batch: slice) -> None:
            with torch.no_grad():  # as in the pass; only the predictor's own test needs gradients
                predictor(pixels[batch])

        def attack(batch: slice) -> None:
            with frozen(source) as network, exact_float32(execution.precision):
                shortened.perturb(network, pixels[batch], labels[batch], keys[batch])

        list(batches.run(size, classify))  # the first pass of a size also sets up kernels
        is_reset = _reset_peak(device)
        craft = fastest(lambda: list(batches.run(size, attack)), device, seconds)
        memory = _peak(device) if is_reset else None
        transfer = fastest(lambda: list(batches.run(size, classify)), device, seconds / 10)
        return craft / size, transfer / size, memory, batches.size

    missing = results.missing_shards(model) if trained else []
    left = sum(len(evaluation.shards[shard]) for shard in missing) if trained else len(subset)
    most = min(runner.batch_size, len(subset))
    size = min(FIRST_BATCH, most)
    while True:
        craft, transfer, memory, batch = timed(size)
        if size == most or craft * size > seconds or batch < size:
            break
        size = min(4 * size, most)
    advance(1)
    return Cost(
        params=sum(parameter.numel() for parameter in classifier.parameters()),
        input_size=model.view.input_size,
        craft=craft * times_longer(evaluation.attack, classifier, evaluation.task.num_classes),
        transfer=transfer,
        memory=memory,
        batch=batch,
        uncrafted=results.attackable(model, missing) if trained and results.has(model) else left,
        seconds=time.perf_counter() - start,
    )


def times_longer(attack: Attack, classifier: Classifier, classes: int) -> float:
    """How many times longer the full attack takes than the shortened one that is timed."""
    full = attack.passes(classifier, classes)
    short = attack.shortened(STEPS).passes(classifier, classes)
    return full.total / short.total if full and short and short.total else 1.0


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, until the device has finished what it was given."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fastest(
    work: Callable[[], object], device: torch.device, enough: float = float("inf"), runs: int = 3
) -> float:
    """Seconds of the fastest of up to `runs` calls, fewer once they add up to `enough` seconds."""
    taken: list[float] = []
    while len(taken) < runs and sum(taken) < enough:
        taken.append(seconds_of(work, device))
    return min(taken)


def _reset_peak(device: torch.device) -> bool:
    """Reset the peak of memory; whether that is possible here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    except OSError:  # not Linux, or not allowed
        return False
    return True


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(peak.split()[1]) * 1024
