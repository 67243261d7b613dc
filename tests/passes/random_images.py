"""Images of noise, and members with random weights that share them, for tests of the passes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from netkin.attacks import Clean, as_attack
from netkin.data.subset import draw
from netkin.evaluation import Evaluation
from netkin.model import Model
from netkin.results import Results
from netkin.runner import Runner
from netkin.store.files import write_tensors
from netkin.store.layout import Store, shard_file
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member, Task


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


def write_shards(results: Results, sources: Sequence[Model], pixels: Tensor) -> None:
    """Store the same pixels [I, 3, H, W] uint8 as the adversarial images of each source."""
    for source in sources:
        folder = results.adversarial_folder(source).claim()
        for i, positions in enumerate(results.evaluation.shards):
            index = torch.tensor(positions)
            write_tensors(shard_file(folder, i), {"images": pixels[index], "index": index})


def evaluation(
    folder: Path, classifier: Classifier, images: RandomImages, batch: int
) -> tuple[Results, Runner, Model, list[Model]]:
    """An evaluation of a target and three sources, which share a classifier's weights."""
    weights = folder / "weights.safetensors"
    state = {k: v.cpu().clone() for k, v in classifier.net.state_dict().items()}
    save_file(state, weights)
    name = classifier.name
    task = Task("random", 1000, input_size=images.size)
    target, *sources = (
        Model(Member(n, name, checkpoint=str(weights)), task, weights) for n in "tabc"
    )
    evaluation = Evaluation(
        images=images,
        subset=draw(images, "random"),
        task=task,
        attack=as_attack(Clean(), "clean"),
        shard_size=2 * batch,
    )
    runner = Runner("gpu" if classifier.mean.device.type == "cuda" else "cpu", batch)
    return Results(Store(folder / "store"), evaluation), runner, target, sources


def with_random_weights(name: str) -> Classifier:
    """A timm model with random weights."""
    torch.manual_seed(0)
    net: Any = timm.create_model(name, num_classes=1000)
    half = (0.5, 0.5, 0.5)
    return Classifier(net, name, half, half).eval().requires_grad_(False)
