"""What a member costs: one small batch of its craft and transfer steps, timed on this device."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netkin.attacks.frozen import frozen
from netkin.jobs.pool import Advance
from netkin.transfer.batches import Batches
from netkin.transfer.setting import Setting
from netkin.transfer.stored import correct, is_clean, missing_shards
from netkin.zoo.build import build
from netkin.zoo.execution import exact_float32, prepare
from netkin.zoo.member import Member

FIRST_BATCH = 2
STEPS = 2
"""Steps of an iterative attack that are timed, of which the others are multiples."""


@dataclass(frozen=True)
class Cost:
    """One member's cost.

    Attributes:
        params: number of parameters.
        input_size: pixels a side.
        craft: seconds to attack an image.
        transfer: seconds to classify another source's image.
        memory: bytes at the peak: of the device's memory on a GPU, of the process's on a CPU; None
            where that cannot be read.
        batch: images at once in these measurements.
        uncrafted: images still to be attacked; at most, where the clean pass has not been made.
    """

    params: int
    input_size: int
    craft: float
    transfer: float
    memory: int | None
    batch: int
    uncrafted: int


def probe(setting: Setting, member: Member, seconds: float, advance: Advance) -> Cost:
    """Measure a member on the first images of the subset, with the weights it has, if any.

    The batch grows from two images until attacking it takes `seconds`, memory runs out, or it has
    `setting.batch_size`: a small network's time in a small batch is mostly overhead.
    """
    weights, trained = setting.weights(member), setting.has_weights(member)
    classifier = build(member, setting.task, weights if trained else None)
    device = _device(setting)
    classifier.eval().to(device)
    execution = replace(setting.choice.execution, compile=False)
    prepared = prepare(classifier, execution, _first(setting, member, FIRST_BATCH).to(device))
    judge = setting.judge(classifier)
    attack, scale = _few_steps(setting.attack.attack)
    most = min(setting.batch_size, len(setting.subset))
    size, craft, transfer, memory = min(FIRST_BATCH, most), 0.0, 0.0, None
    while True:
        pixels = _first(setting, member, size).to(device)
        labels = setting.labels[:size].to(device)
        keys = [f"{member.name}\n{image}" for image in setting.subset.ids[:size]]
        batches = Batches(size, member.name)

        def classified(batch: slice, pixels: Tensor = pixels) -> None:
            with torch.no_grad():  # as the pass itself; to be tried, a model needs gradients
                judge(pixels[batch])

        def attacked(
            batch: slice, pixels: Tensor = pixels, labels: Tensor = labels, keys: list[str] = keys
        ) -> None:
            with frozen(prepared) as model, exact_float32(execution.precision):
                attack.perturb(model, pixels[batch], labels[batch], keys[batch])

        list(batches.run(size, classified))  # the first pass of a size also sets up kernels
        measured = _reset_peak(device)
        craft = _seconds(lambda b=batches, n=size, f=attacked: list(b.run(n, f)), device, seconds)
        memory = _peak(device) if measured else None
        transfer = _seconds(
            lambda b=batches, n=size, f=classified: list(b.run(n, f)), device, seconds / 10
        )
        if size == most or craft > seconds or batches.size < size:
            break
        size = min(4 * size, most)
    advance(1)
    return Cost(
        params=sum(parameter.numel() for parameter in classifier.parameters()),
        input_size=setting.view(member).input_size,
        craft=craft / size * scale,
        transfer=transfer / size,
        memory=memory,
        batch=batches.size,
        uncrafted=uncrafted(setting, member) if trained else len(setting.subset),
    )


def _few_steps(attack: Any) -> tuple[Any, float]:
    """An attack of a few of its steps, and how many times longer the whole one takes."""
    steps = getattr(attack, "steps", None)
    if not steps:
        return attack, 1.0
    few = copy.copy(attack)
    few.steps = min(STEPS, steps)
    return few, steps / few.steps


def uncrafted(setting: Setting, member: Member) -> int:
    """Images that the member has still to be attacked on."""
    shards = missing_shards(setting, member)
    positions = [i for shard in shards for i in setting.shards[shard]]
    if not is_clean(setting, member):
        return len(positions)
    return int(correct(setting, member)[positions].sum())


def _first(setting: Setting, member: Member, images: int) -> Tensor:
    """The first images as the member sees them, [n, 3, H, W] in [0, 1]."""
    from netkin.data.views import load

    positions = setting.subset.positions[:images]
    return load(setting.images, positions, setting.view(member)).float() / 255


def _device(setting: Setting) -> torch.device:
    gpu = setting.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _seconds(work: Callable[[], object], device: torch.device, enough: float) -> float:
    """The shortest of up to three runs, fewer when they come to `enough` seconds."""
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < enough:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _reset_peak(device: torch.device) -> bool:
    """Forget the peak so far; whether that is possible here."""
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
