"""Crafting: a source's adversarial images, shard by shard."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.attacks.frozen import frozen
from netkin.attacks.grid import to_grid
from netkin.errors import UserError
from netkin.jobs import Advance
from netkin.lease import is_held, lease
from netkin.store import Entry, shard_path, write_tensors
from netkin.transfer.batches import Batches
from netkin.transfer.engine import Work, predict
from netkin.transfer.setting import Setting, names
from netkin.transfer.stored import Source, correct
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member


class Craft(pl.LightningModule):
    """One source's attack on the images that it classifies correctly.

    A shard is stored as `images` [n, 3, H, W] and `index` [n], the images' positions in the
    subset; n is the number of correct ones.
    """

    def __init__(
        self,
        classifier: Classifier,
        setting: Setting,
        member: Member,
        entry: Entry,
        advance: Advance,
    ):
        super().__init__()
        self.classifier, self.setting, self.member = classifier, setting, member
        self.entry, self.advance = entry, advance
        self.batches = Batches(setting.batch_size, member.name)
        self.made: list[int] = []
        self.storing = 0.0  # seconds in the store: leases, checksums, writes

    def predict_step(self, shard: dict) -> None:
        """Attack a shard and store it, unless another process does that, or has done it."""
        start, made = time.perf_counter(), 0.0
        file = shard_path(self.entry, shard["shard"])
        with lease(self.setting.store.root, file) as mine:
            if mine and not file.is_file():
                made = self._make(shard, file)
        self.storing += time.perf_counter() - start - made

    def _make(self, shard: dict, file: Path) -> float:
        """Attack and store a shard; returns the seconds that the attack took."""
        start = time.perf_counter()
        images = []
        index, pixels, labels = shard["index"], shard["pixels"], shard["labels"]
        for made in self.batches.run(
            len(index), lambda b: self._perturb(index[b], pixels[b], labels[b])
        ):
            images.append(made.cpu())
            self.advance(len(made))
        stored = torch.cat(images) if images else shard["pixels"]
        seconds = time.perf_counter() - start
        write_tensors(file, {"images": stored, "index": shard["index"]})
        self.made.append(shard["shard"])
        return seconds

    def _perturb(self, index: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images of a batch as they are stored: uint8, or float32 in [0, 1]."""
        setting = self.setting
        attack = setting.attack.attack
        pixels = clean.float() / 255
        keys = [f"{self.member.name}\n{setting.subset.ids[i]}" for i in index.tolist()]
        with frozen(self.classifier) as model:
            adversarial = attack.perturb(model, pixels, labels, keys).detach()
        if adversarial.shape != pixels.shape:
            raise UserError(
                f"attack {setting.attack.name} returned shape {tuple(adversarial.shape)} for "
                f"images of shape {tuple(pixels.shape)}; they must be the same"
            )
        bad = ~((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(dim=1)  # NaN is bad, too
        if bad.any():
            raise UserError(
                f"attack {setting.attack.name} on {self.member.name} left [0, 1] or gave NaN on "
                f"{names(setting, index[bad].tolist())}; are the model's gradients finite?"
            )
        eps = getattr(attack, "eps", None)
        if setting.dtype == "uint8":
            return to_grid(adversarial, clean, eps)
        if eps is None:
            return adversarial
        return (pixels + (adversarial - pixels).clamp(-eps, eps)).clamp(0, 1)


def craft(setting: Setting, source: Source, advance: Advance) -> dict[str, Any]:
    """Craft and store a source's shards; returns images, shards and seconds, and what is `busy`."""
    start = time.perf_counter()
    member = source.member
    entry = setting.adversarial_entry(member).claim()
    view, labels = setting.view(member), setting.labels
    attackable = correct(setting, member)

    def load(shard: int) -> dict:
        positions = torch.tensor(setting.shards[shard])
        right = attackable[positions]
        index = positions[right]
        pixels = setting.pixels(view, shard)[right]
        return {"shard": shard, "index": index, "pixels": pixels, "labels": labels[index]}

    def images(shards: Sequence[int]) -> int:
        return sum(int(attackable[list(setting.shards[shard])].sum()) for shard in shards)

    lacking = [shard for shard in source.shards if not shard_path(entry, shard).is_file()]
    free = [s for s in lacking if not is_held(setting.store.root, shard_path(entry, s))]
    made, storing = list[int](), 0.0
    if free:
        module = Craft(setting.build(member), setting, member, entry, advance)
        predict(setting, module, Work(free, load))
        made, storing = module.made, module.storing
    left = tuple(shard for shard in lacking if not shard_path(entry, shard).is_file())
    advance(images([s for s in source.shards if s not in made and s not in left]))
    result = {
        "images": images(made),
        "shards": len(made),
        "storing": storing,
        "seconds": time.perf_counter() - start,
    }
    return {**result, "busy": replace(source, shards=left)} if left else result
