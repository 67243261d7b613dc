"""The clean pass: a member's predictions on the images as they are."""

import time

import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.batches import Batches
from netkin.passes.engine import Work, predict
from netkin.passes.setting import Setting, names
from netkin.passes.stored import is_clean, logits_path
from netkin.store.files import write_tensors
from netkin.store.lease import lease
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member


class CleanPass(pl.LightningModule):
    """Logits of one member on all images of the subset."""

    def __init__(self, classifier: Classifier, setting: Setting, advance: Advance):
        super().__init__()
        self.name, self.setting, self.advance = classifier.name, setting, advance
        self.evaluator = setting.evaluator(classifier)
        self.batches = Batches(setting.batch_size, classifier.name)
        self.logits: list[Tensor] = []

    def predict_step(self, shard: dict) -> None:
        """Evaluate one shard."""
        pixels = shard["pixels"]
        for logits in self.batches.run(len(pixels), lambda b: self.evaluator(pixels[b] / 255)):
            self.logits.append(logits.cpu())
        self.advance(len(pixels))

    def result(self) -> Tensor:
        """Logits [I, K] float32. Raises UserError, with the images, where one is not finite."""
        logits = torch.cat(self.logits)
        bad = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"{self.name} gives NaN or infinite logits on {len(bad)} of "
                f"{len(logits)} clean images ({names(self.setting, bad)}); are its weights intact?"
            )
        return logits


def clean_pass(setting: Setting, member: Member, advance: Advance) -> Result:
    """Store a member's clean logits, unless they are there or another process makes them.

    Raises UserError where the model gives NaN or infinite logits, or does not fit into memory.
    """
    with lease(setting.store.root, logits_path(setting, member)) as held:
        if not held:
            return Result(remaining=member)
        if is_clean(setting, member):
            advance(len(setting.subset))
            return Result()
        return _clean_pass(setting, member, advance)


def _clean_pass(setting: Setting, member: Member, advance: Advance) -> Result:
    start = time.perf_counter()
    classifier = setting.build(member)
    view = setting.view(member)
    module = CleanPass(classifier, setting, advance)
    shards = list(range(len(setting.shards)))
    predict(setting, module, Work(shards, lambda shard: {"pixels": setting.pixels(view, shard)}))
    parameters = sum(parameter.numel() for parameter in classifier.parameters())
    logits = module.result()  # before the entry is claimed, which a broken model must not do
    entry = setting.clean_entry(member).claim()
    file = entry.path / "logits.safetensors"
    write_tensors(file, {"logits": logits}, params=str(parameters))
    return Result(images=len(logits), seconds=time.perf_counter() - start)
