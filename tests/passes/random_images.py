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
from netkin.passes.setting import Setting
from netkin.store.files import write_tensors
from netkin.store.layout import Store, shard_path
from netkin.zoo.build import Classifier, Task
from netkin.zoo.member import Member


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


def write_shards(setting: Setting, sources: Sequence[Member], pixels: Tensor) -> None:
    """Store the same pixels [I, 3, H, W] uint8 as the adversarial images of each source."""
    for source in sources:
        entry = setting.adversarial_entry(source).claim()
        for i, positions in enumerate(setting.shards):
            index = torch.tensor(positions)
            write_tensors(shard_path(entry, i), {"images": pixels[index], "index": index})


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


def with_random_weights(name: str) -> Classifier:
    """A timm model with random weights."""
    torch.manual_seed(0)
    net: Any = timm.create_model(name, num_classes=1000)
    half = (0.5, 0.5, 0.5)
    return Classifier(net, name, half, half).eval().requires_grad_(False)
