"""What does the target pass cost, against a bare forward loop?

The pass is timed by what two more sources cost it, so that building the model, which is done once
for all sources, does not count. The bare loop is a forward pass in the same precision and memory
format, of pixels that are floats already, and nothing else.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors.torch import save_file

from experiments.checks.speed import STEPS
from netkin.attacks import Clean
from netkin.data import views
from netkin.data.subset import draw
from netkin.data.views import View
from netkin.jobs.devices import device_of, seconds_of
from netkin.store.files import read_tensors, write_tensors
from netkin.store.layout import Store, shard_path
from netkin.transfer.clean import clean_pass
from netkin.transfer.setting import AttackSpec, Setting
from netkin.transfer.stored import Target, outcome_store
from netkin.transfer.transfer import resized, transfer
from netkin.zoo.build import Classifier, Task
from netkin.zoo.execution import MEMORY_FORMATS, Execution
from netkin.zoo.member import Member

OTHER_SIZE = 288
"""Pixels a side to which images are resized on the way to a target of another size."""


class RandomImages:
    """Images of noise, for models with random weights."""

    def __init__(self, number: int, size: int, labels: Sequence[int] | None = None):
        self.size, self.classes = size, [str(i) for i in range(1000)]
        self.notes = ()
        self.ids = [f"{i:06d}" for i in range(number)]
        self.labels = [0] * number if labels is None else list(labels)

    def stamp(self, index: int) -> str:
        return self.ids[index]

    def load(self, index: int) -> Image.Image:
        drawn = np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3))
        return Image.fromarray(drawn.astype(np.uint8))


def target_pass(
    classifier: Classifier, size: int, batch: int, rounds: int, step: float
) -> pl.DataFrame:
    """The target pass against a bare forward loop, and what else a shard costs: one row.

    `plain_ms_per_image` is the loop of the model as it comes, contiguous; `once_seconds` what the
    pass takes before its first image.

    Args:
        classifier: a timm model of its name, on its device.
        size: pixels a side.
        batch: images at once; a shard has two batches, the images fill three.
        rounds: median of how many.
        step: seconds of an attack's step on a batch, to set the shard's other costs against.
    """
    device = classifier.mean.device
    number = 6 * batch
    classifier.eval().requires_grad_(False)
    memory_format = MEMORY_FORMATS[Execution.memory_format]
    same = copy.deepcopy(classifier).to(memory_format=memory_format)
    pixels = views.load(RandomImages(number, size), range(number), View(size)).contiguous()
    parts = [part.to(device).float() / 255 for part in pixels.split(batch)]
    formatted = [part.contiguous(memory_format=memory_format) for part in parts]
    with tempfile.TemporaryDirectory(prefix="netkin-passes-") as scratch, torch.no_grad():
        said = torch.cat([classifier(part) for part in parts]).argmax(dim=1).tolist()
        images = RandomImages(number, size, said)  # so that all are classified correctly
        setting, target, sources = evaluation(Path(scratch), classifier, images, batch)
        clean_pass(setting, target, lambda _n: None)
        for source in sources:
            entry = setting.adversarial_entry(source).claim()
            for i, positions in enumerate(setting.shards):
                index = torch.tensor(positions)
                content = {"images": pixels[index], "index": index}
                write_tensors(shard_path(entry, i), content)
        file = shard_path(setting.adversarial_entry(sources[0]), 0)
        write = _median(lambda: write_tensors(file, read_tensors(file)), 3)
        read = _median(lambda: read_tensors(file), 3)
        some = pixels[: setting.shard_size].to(device)
        resize = _median(lambda: resized(some, OTHER_SIZE, "bilinear"), 3)

        def see(chosen: Sequence[Member]) -> None:
            outcomes = outcome_store(setting)
            for source in chosen:
                outcomes.file(source.name, target.name).unlink(missing_ok=True)
            transfer(setting, Target(target, tuple(chosen)), lambda _n: None)

        def bare() -> None:
            for part in formatted:
                same(part)

        def plain() -> None:
            for part in parts:
                classifier(part)

        works = (lambda: see(sources[:1]), bare, lambda: see(sources), plain)
        taken: list[list[float]] = [[] for _ in works]
        for round_ in range(rounds + 1):
            for work, mine in zip(works, taken, strict=True):
                seconds = seconds_of(work, device)
                if round_:  # the first one sets up kernels
                    mine.append(seconds)
    one, loop, three, as_it_comes = map(statistics.median, taken)
    each = (three - one) / 2
    crafting = 2 * STEPS * step  # a shard has two batches
    a_shard = each * setting.shard_size / number
    return pl.DataFrame(
        [
            {
                "model": classifier.name,
                "images": number,
                "plain_ms_per_image": 1e3 * as_it_comes / number,
                "forward_ms_per_image": 1e3 * loop / number,
                "transfer_ms_per_image": 1e3 * each / number,
                "times_forward_loop": loop / each,
                "once_seconds": one - each,
                "read_share_of_transfer": read / a_shard,
                "resize_share_of_transfer": resize / (a_shard + resize),
                "read_share_of_craft": read / crafting,
                "write_share_of_craft": write / crafting,
            }
        ]
    )


def evaluation(
    folder: Path, classifier: Classifier, images: RandomImages, batch: int
) -> tuple[Setting, Member, list[Member]]:
    """A setting in which a classifier's weights are four members: a target and its sources."""
    weights = folder / "weights.safetensors"
    state = {k: v.cpu().clone() for k, v in classifier.net.state_dict().items()}
    save_file(state, weights)
    name = classifier.name
    target, *sources = (Member(n, name, checkpoint=str(weights)) for n in "tabc")
    setting = Setting(
        images=images,
        subset=draw(images, "random"),
        task=Task("random", 1000, input_size=images.size),
        attack=AttackSpec("clean", Clean(), {}),
        store=Store(folder / "store"),
        shard_size=2 * batch,
        batch_size=batch,
        accelerator="gpu" if classifier.mean.device.type == "cuda" else "cpu",
    )
    return setting, target, sources


def _median(work: Callable[[], Any], rounds: int) -> float:
    return statistics.median(seconds_of(work, device_of("auto")) for _ in range(rounds))
