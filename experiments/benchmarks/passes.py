"""What does the target pass cost, against a bare forward loop?

The time of the pass is that of two further sources: the model is built once for all sources, which
does not count. The bare loop is a forward pass in the same precision and memory format, of pixels
that are floats already, and nothing else.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from experiments.benchmarks.speed import STEPS
from netkin.attacks import Clean, as_attack
from netkin.data import views
from netkin.data.subset import draw
from netkin.data.views import View
from netkin.jobs.devices import device_of, seconds_of
from netkin.passes.clean import clean_pass
from netkin.passes.setting import Setting
from netkin.passes.stored import Target, outcome_store
from netkin.passes.transfer import resized, transfer
from netkin.store.files import read_tensors, write_tensors
from netkin.store.layout import Store, shard_path
from netkin.zoo.build import Classifier, Task
from netkin.zoo.execution import MEMORY_FORMATS, Execution
from netkin.zoo.member import Member

OTHER_SIZE = 288
"""Pixels a side of a target of another input size."""


class RandomImages:
    """Images of noise, for models with random weights."""

    def __init__(self, number: int, size: int, labels: Sequence[int] | None = None):
        self.size, self.classes = size, [str(i) for i in range(1000)]
        self.notes = ()
        self.ids = [f"{i:06d}" for i in range(number)]
        self.labels = [0] * number if labels is None else list(labels)

    def stamp(self, index: int) -> str:
        """The id, since the id determines the pixels."""
        return self.ids[index]

    def load(self, index: int) -> Image.Image:
        """An RGB image of uniform noise, [size, size], the same at each call."""
        drawn = np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3))
        return Image.fromarray(drawn.astype(np.uint8))


@dataclass(frozen=True)
class Costs:
    """Median seconds of what a shard costs.

    Attributes:
        read, write, resize: of one shard of adversarial images.
        one, three: the target pass over one source, and over three.
        formatted, plain: the bare forward loop over all images, in the target pass's memory format
            and contiguous.
    """

    read: float
    write: float
    resize: float
    one: float
    three: float
    formatted: float
    plain: float


def target_pass(
    classifier: Classifier, size: int, batch: int, rounds: int, step: float
) -> pl.DataFrame:
    """The target pass against a bare forward loop, and what else a shard costs: one row.

    `plain_ms_per_image` is the contiguous loop of the unchanged model; `once_seconds` is the time
    of the pass before its first image.

    Args:
        classifier: a timm model of its name, on its device.
        size: pixels a side.
        batch: images at once; a shard has two batches, the images fill three.
        rounds: the number of rounds of which the median counts.
        step: seconds of an attack's step on a batch, to set the shard's other costs against.
    """
    number, shard = 6 * batch, 2 * batch
    costs = measure_costs(classifier, size, batch, rounds)
    each = (costs.three - costs.one) / 2
    crafting = 2 * STEPS * step  # a shard has two batches
    of_shard = each * shard / number
    return pl.DataFrame(
        [
            {
                "model": classifier.name,
                "images": number,
                "plain_ms_per_image": 1e3 * costs.plain / number,
                "forward_ms_per_image": 1e3 * costs.formatted / number,
                "transfer_ms_per_image": 1e3 * each / number,
                "times_forward_loop": costs.formatted / each,
                "once_seconds": costs.one - each,
                "read_share_of_transfer": costs.read / of_shard,
                "resize_share_of_transfer": costs.resize / (of_shard + costs.resize),
                "read_share_of_craft": costs.read / crafting,
                "write_share_of_craft": costs.write / crafting,
            }
        ]
    )


def measure_costs(classifier: Classifier, size: int, batch: int, rounds: int) -> Costs:
    """The costs of a target pass over 6 batches of random images; see `target_pass`."""
    device, number = classifier.mean.device, 6 * batch
    classifier.eval().requires_grad_(False)
    pixels = views.load(RandomImages(number, size), range(number), View(size)).contiguous()
    parts = [part.to(device).float() / 255 for part in pixels.split(batch)]
    with tempfile.TemporaryDirectory(prefix="netkin-passes-") as scratch, torch.no_grad():
        labels = torch.cat([classifier(part) for part in parts]).argmax(dim=1).tolist()
        images = RandomImages(number, size, labels)  # so that all are classified correctly
        setting, target, sources = evaluation(Path(scratch), classifier, images, batch)
        clean_pass(setting, target, lambda _n: None)
        write_shards(setting, sources, pixels)
        file = shard_path(setting.adversarial_entry(sources[0]), 0)
        write = _median(lambda: write_tensors(file, read_tensors(file)), 3)
        read = _median(lambda: read_tensors(file), 3)
        shard = pixels[: setting.shard_size].to(device)
        resize = _median(lambda: resized(shard, OTHER_SIZE, "bilinear"), 3)
        one, formatted, three, plain = _time_passes(
            classifier, parts, setting, target, sources, rounds
        )
    return Costs(read, write, resize, one, three, formatted, plain)


def write_shards(setting: Setting, sources: Sequence[Member], pixels: Tensor) -> None:
    """Store the same pixels [I, 3, H, W] uint8 as the adversarial images of each source."""
    for source in sources:
        entry = setting.adversarial_entry(source).claim()
        for i, positions in enumerate(setting.shards):
            index = torch.tensor(positions)
            write_tensors(shard_path(entry, i), {"images": pixels[index], "index": index})


def _time_passes(
    classifier: Classifier,
    parts: Sequence[Tensor],
    setting: Setting,
    target: Member,
    sources: Sequence[Member],
    rounds: int,
) -> list[float]:
    """Median seconds of the pass over one source, the loop in the pass's memory format, the pass
    over all sources, and the contiguous loop: in turn, after a warm-up."""
    memory_format = MEMORY_FORMATS[Execution.memory_format]
    same = copy.deepcopy(classifier).to(memory_format=memory_format)
    formatted = [part.contiguous(memory_format=memory_format) for part in parts]

    def evaluate(chosen: Sequence[Member]) -> None:
        for file in outcome_store(setting).files(target.name):
            file.unlink()
        transfer(setting, Target(target, tuple(chosen)), lambda _n: None)

    def loop(model: Classifier, batches: Sequence[Tensor]) -> None:
        for part in batches:
            model(part)

    works = (
        lambda: evaluate(sources[:1]),
        lambda: loop(same, formatted),
        lambda: evaluate(sources),
        lambda: loop(classifier, parts),
    )
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(rounds + 1):
        for work, seconds in zip(works, times, strict=True):
            elapsed = seconds_of(work, classifier.mean.device)
            if round_:  # the first one sets up kernels
                seconds.append(elapsed)
    return list(map(statistics.median, times))


def evaluation(
    folder: Path, classifier: Classifier, images: RandomImages, batch: int
) -> tuple[Setting, Member, list[Member]]:
    """A setting with four members that share a classifier's weights: a target and three sources."""
    weights = folder / "weights.safetensors"
    state = {k: v.cpu().clone() for k, v in classifier.net.state_dict().items()}
    save_file(state, weights)
    name = classifier.name
    target, *sources = (Member(n, name, checkpoint=str(weights)) for n in "tabc")
    setting = Setting(
        images=images,
        subset=draw(images, "random"),
        task=Task("random", 1000, input_size=images.size),
        attack=as_attack(Clean(), "clean"),
        store=Store(folder / "store"),
        shard_size=2 * batch,
        batch_size=batch,
        accelerator="gpu" if classifier.mean.device.type == "cuda" else "cpu",
    )
    return setting, target, sources


def _median(work: Callable[[], Any], rounds: int) -> float:
    return statistics.median(seconds_of(work, device_of("auto")) for _ in range(rounds))
