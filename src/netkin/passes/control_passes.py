"""The passes of the controls: a member's predictions in others' views, and under noise."""

import time
from dataclasses import replace

import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.batches import Batches
from netkin.passes.engine import Work, predict
from netkin.passes.evaluator import Evaluator
from netkin.passes.noise import noise_path, noised
from netkin.passes.resize import Unresized, resized_path
from netkin.passes.setting import Setting
from netkin.passes.transfer import resized
from netkin.store.files import write_tensors
from netkin.store.lease import lease
from netkin.zoo.member import Member


class ControlPass(pl.LightningModule):
    """One member's predictions on images of any size, [I] int64."""

    def __init__(self, evaluator: Evaluator, setting: Setting, member: Member, advance: Advance):
        super().__init__()
        self.evaluator, self.setting, self.advance = evaluator, setting, advance
        self.size = setting.view(member).input_size
        self.batches = Batches(setting.batch_size, member.name)
        self.predictions: list[Tensor] = []

    def predict_step(self, batch: dict) -> None:
        """Evaluate one shard."""
        images = batch["images"]
        for classes in self.batches.run(len(images), lambda b: self._predict(images[b])):
            self.predictions.append(classes.cpu())
        self.advance(len(images))

    def _predict(self, images: Tensor) -> Tensor:
        pixels = resized(images, self.size, self.setting.interpolation)
        return self.evaluator(pixels).argmax(dim=1)


def resize_pass(setting: Setting, item: Unresized, advance: Advance) -> Result:
    """Store a member's predictions through views, except those that another process computes."""
    start = time.perf_counter()
    evaluator = setting.evaluator(setting.build(item.member))
    done, taken = 0, []
    for view in item.views:
        path = resized_path(setting, item.member, view)
        with lease(setting.store.root, path) as held:
            if not held:
                taken.append(view)
                continue
            if not path.is_file():
                module = ControlPass(evaluator, setting, item.member, lambda n: None)
                shards = list(range(len(setting.shards)))
                work = Work(shards, lambda s, view=view: {"images": setting.pixels(view, s)})
                predict(setting, module, work)
                write_tensors(path, {"predictions": torch.cat(module.predictions)})
                done += 1
            advance(1)
    return Result(
        images=len(setting.subset) * done,
        seconds=time.perf_counter() - start,
        remaining=replace(item, views=tuple(taken)) if taken else None,
    )


def noise_pass(setting: Setting, member: Member, advance: Advance) -> Result:
    """Store a member's predictions under noise, unless another process computes them."""
    start, path = time.perf_counter(), noise_path(setting, member)
    with lease(setting.store.root, path) as held:
        if not held:
            return Result(remaining=member)
        if path.is_file():
            advance(len(setting.subset))
            return Result()
        evaluator = setting.evaluator(setting.build(member))
        module = ControlPass(evaluator, setting, member, advance)
        shards = list(range(len(setting.shards)))
        predict(setting, module, Work(shards, lambda s: {"images": noised(setting, member, s)}))
        write_tensors(path, {"predictions": torch.cat(module.predictions)})
    return Result(images=len(setting.subset), seconds=time.perf_counter() - start)
