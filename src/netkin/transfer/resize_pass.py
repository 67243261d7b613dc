"""The pass behind `netkin.transfer.resize`: a member's predictions on others' views."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.jobs import Advance
from netkin.store import write_tensors
from netkin.transfer.batches import Batches
from netkin.transfer.engine import Work, predict
from netkin.transfer.resize import Visitor, seen_path
from netkin.transfer.setting import Setting
from netkin.transfer.transfer import resized
from netkin.zoo.build import Classifier


class ResizePass(pl.LightningModule):
    """One member's predictions on the clean images through another view, [I] int64."""

    def __init__(self, classifier: Classifier, setting: Setting, size: int):
        super().__init__()
        self.classifier, self.setting, self.size = classifier.eval(), setting, size
        self.batches = Batches(setting.batch_size, classifier.name)
        self.predictions: list[Tensor] = []

    def predict_step(self, batch: dict) -> None:
        images = batch["images"]
        for found in self.batches.run(len(images), lambda b: self._predict(images[b])):
            self.predictions.append(found.cpu())

    def _predict(self, images: Tensor) -> Tensor:
        pixels = resized(images, self.size, self.setting.interpolation)
        return self.classifier(pixels).argmax(dim=1)


def resize_pass(setting: Setting, visitor: Visitor, advance: Advance) -> dict[str, Any]:
    """Store a member's predictions on views that it lacks; returns images and seconds."""
    start = time.perf_counter()
    classifier = setting.build(visitor.member)
    size = setting.view(visitor.member).input_size
    for view in visitor.views:
        module = ResizePass(classifier, setting, size)
        shards = [[shard] for shard in range(len(setting.shards))]
        work = Work(shards, lambda s, view=view: {"images": setting.pixels(view, s)})
        predict(setting, module, work)
        path = seen_path(setting, visitor.member, view)
        write_tensors(path, {"predictions": torch.cat(module.predictions)})
        advance(1)
    images = len(setting.subset) * len(visitor.views)
    return {"images": images, "seconds": time.perf_counter() - start}
