"""The pass behind `netkin.transfer.resize`: a member's predictions on others' views."""

import time
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.jobs.pool import Advance
from netkin.store.files import write_tensors
from netkin.store.lease import lease
from netkin.transfer.batches import Batches
from netkin.transfer.engine import Work, predict
from netkin.transfer.evaluator import Evaluator
from netkin.transfer.resize import Visitor, seen_path
from netkin.transfer.setting import Setting
from netkin.transfer.transfer import resized
from netkin.zoo.member import Member


class ResizePass(pl.LightningModule):
    """One member's predictions on the clean images through another view, [I] int64."""

    def __init__(self, evaluator: Evaluator, setting: Setting, member: Member):
        super().__init__()
        self.evaluator, self.setting = evaluator, setting
        self.size = setting.view(member).input_size
        self.batches = Batches(setting.batch_size, member.name)
        self.predictions: list[Tensor] = []

    def predict_step(self, batch: dict) -> None:
        images = batch["images"]
        for found in self.batches.run(len(images), lambda b: self._predict(images[b])):
            self.predictions.append(found.cpu())

    def _predict(self, images: Tensor) -> Tensor:
        pixels = resized(images, self.size, self.setting.interpolation)
        return self.evaluator(pixels).argmax(dim=1)


def resize_pass(setting: Setting, visitor: Visitor, advance: Advance) -> dict[str, Any]:
    """Store a member's predictions on views that it lacks; returns images and seconds, and what is
    `busy`."""
    start = time.perf_counter()
    evaluator = setting.evaluator(setting.build(visitor.member))
    done, left = 0, []
    for view in visitor.views:
        path = seen_path(setting, visitor.member, view)
        with lease(setting.store.root, path) as mine:
            if not mine:
                left.append(view)
                continue
            if not path.is_file():
                module = ResizePass(evaluator, setting, visitor.member)
                shards = list(range(len(setting.shards)))
                work = Work(shards, lambda s, view=view: {"images": setting.pixels(view, s)})
                predict(setting, module, work)
                write_tensors(path, {"predictions": torch.cat(module.predictions)})
                done += 1
            advance(1)
    result = {"images": len(setting.subset) * done, "seconds": time.perf_counter() - start}
    return {**result, "busy": replace(visitor, views=tuple(left))} if left else result
