"""What a member costs: one small batch of its craft and transfer steps, timed on this device."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from netkin.attacks import Attack
from netkin.attacks.frozen import frozen
from netkin.data import views
from netkin.jobs.devices import fastest
from netkin.jobs.pool import Advance
from netkin.passes.batches import Batches
from netkin.passes.setting import Setting
from netkin.passes.stored import correct, is_clean, missing_shards
from netkin.zoo.build import Classifier, build
from netkin.zoo.execution import exact_float32, prepare
from netkin.zoo.member import Member

FIRST_BATCH = 2
STEPS = 2
"""Steps of an iterative attack that are timed, for all of them."""


@dataclass(frozen=True)
class Cost:
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


def probe(setting: Setting, member: Member, seconds: float, advance: Advance) -> Cost:
    """Time a member on the first images of the subset, with its weights where there are any.

    The batch grows from two images until attacking it takes `seconds`, memory runs out, or it has
    `setting.batch_size`: a small network's time in a small batch is mostly overhead.
    """
    weights, trained = setting.weights(member), setting.has_weights(member)
    classifier = build(member, setting.task, weights if trained else None)
    trial = _Trial(setting, member, classifier.eval().to(setting.device))
    most = min(setting.batch_size, len(setting.subset))
    size = min(FIRST_BATCH, most)
    while True:
        timing = trial.run(size, seconds)
        if size == most or timing.craft * size > seconds or timing.batch < size:
            break
        size = min(4 * size, most)
    advance(1)
    return Cost(
        params=sum(parameter.numel() for parameter in classifier.parameters()),
        input_size=setting.view(member).input_size,
        craft=timing.craft * times_longer(setting.attack, classifier, setting),
        transfer=timing.transfer,
        memory=timing.memory,
        batch=timing.batch,
        uncrafted=uncrafted(setting, member) if trained else len(setting.subset),
    )


@dataclass(frozen=True)
class _Timing:
    """Seconds an image of a shortened attack and of classifying, peak bytes, images at once."""

    craft: float
    transfer: float
    memory: int | None
    batch: int


class _Trial:
    """A member with a shortened attack, to be timed on batches of any size."""

    def __init__(self, setting: Setting, member: Member, classifier: Classifier):
        self.setting, self.member = setting, member
        self.execution = replace(setting.choice.execution, compile=False)
        self.model = prepare(classifier, self.execution, self._first(FIRST_BATCH))
        self.evaluator = setting.evaluator(classifier, setting.precision)
        self.attack = setting.attack.shortened(STEPS)

    def run(self, size: int, seconds: float) -> _Timing:
        """Time the first `size` images, up to three times or for about `seconds`."""
        device = self.setting.device
        pixels, labels = self._first(size), self.setting.labels[:size].to(device)
        keys = self.setting.keys(self.member, range(size))
        batches = Batches(size, self.member.name)

        def classify(batch: slice) -> None:
            with torch.no_grad():  # as in the pass; only the evaluator's own test needs gradients
                self.evaluator(pixels[batch])

        def attack(batch: slice) -> None:
            with frozen(self.model) as model, exact_float32(self.execution.precision):
                self.attack.perturb(model, pixels[batch], labels[batch], keys[batch])

        list(batches.run(size, classify))  # the first pass of a size also sets up kernels
        is_reset = _reset_peak(device)
        craft = fastest(lambda: list(batches.run(size, attack)), device, seconds)
        memory = _peak(device) if is_reset else None
        transfer = fastest(lambda: list(batches.run(size, classify)), device, seconds / 10)
        return _Timing(craft / size, transfer / size, memory, batches.size)

    def _first(self, images: int) -> Tensor:
        """The first images in the member's view, [n, 3, H, W] in [0, 1]."""
        positions, view = self.setting.subset.positions[:images], self.setting.view(self.member)
        pixels = views.load(self.setting.images, positions, view)
        return pixels.to(self.setting.device).float() / 255


def times_longer(attack: Attack, classifier: Classifier, setting: Setting) -> float:
    """How many times longer the full attack takes than the shortened one that is timed."""
    classes = setting.task.num_classes
    full = attack.passes(classifier, classes)
    short = attack.shortened(STEPS).passes(classifier, classes)
    return full.total / short.total if full and short and short.total else 1.0


def uncrafted(setting: Setting, member: Member) -> int:
    """Number of images that are still to be attacked on the member."""
    shards = missing_shards(setting, member)
    positions = [i for shard in shards for i in setting.shards[shard]]
    if not is_clean(setting, member):
        return len(positions)
    return int(correct(setting, member)[positions].sum())


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
