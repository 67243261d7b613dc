"""Transfer: which targets a source's adversarial images fool."""

import time
from contextlib import ExitStack
from dataclasses import replace

import polars
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.batches import Batches
from netkin.passes.engine import Work, predict
from netkin.passes.setting import Setting, names
from netkin.passes.stored import (
    Target,
    adversarial,
    correct,
    covered,
    outcome_store,
    source_hash,
    target_hash,
)
from netkin.store.lease import is_held, lease
from netkin.store.outcomes import Part
from netkin.zoo.build import Classifier
from netkin.zoo.member import Member


def resized(images: Tensor, size: int, interpolation: str) -> Tensor:
    """Stored images [n, 3, H, W] as pixels in [0, 1] of a target's size, [n, 3, size, size].

    Antialiased, not cropped, and clamped, since bicubic overshoots.
    """
    pixels = images.float().div_(255) if images.dtype == torch.uint8 else images
    if pixels.shape[-2:] == (size, size):
        return pixels
    return interpolate(pixels, (size, size), mode=interpolation, antialias=True).clamp(0, 1)


FLUSH = 300.0
"""Seconds after which evaluated sources are written, in one file: what a kill may cost."""


class Transfer(pl.LightningModule):
    """One target's predictions on other members' adversarial images."""

    def __init__(self, classifier: Classifier, setting: Setting, target: Target, advance: Advance):
        super().__init__()
        self.evaluator = setting.evaluator(classifier, setting.precision)
        self.setting, self.advance = setting, advance
        self.target = target
        total = len(setting.subset)
        self.goal = total if target.images is None else target.images
        self.covered = 0  # images that a source's outcomes have covered before
        self.size = setting.view(target.member).input_size
        self.images = 0
        self.table = outcome_store(setting)
        self.batches = Batches(setting.batch_size, classifier.name)
        self.predictions: list[tuple[Tensor, Tensor]] = []
        self.parts: dict[str, Part] = {}
        self.rows: dict[str, polars.DataFrame] = {}
        self.written = time.monotonic()
        self.leases = ExitStack()  # of sources that are evaluated and not written yet
        self.working = False
        self.evaluated: list[str] = []

    def predict_step(self, batch: dict) -> None:
        """Evaluate a shard of a source, unless another process does or has done that source."""
        source = self.target.sources[batch["source"]]
        if batch["first"]:
            root = self.setting.store.root
            pair = self.table.pair(source.name, self.target.member.name)
            held = self.leases.enter_context(lease(root, pair))
            done = covered(self.setting, self.target.member, [source])[source.name] if held else 0
            self.covered = done
            self.working = held and batch["start"] <= done < self.goal
        if self.working:
            self._evaluate(source, batch)
            if batch["last"]:
                self._finish(source)
        if batch["last"] and time.monotonic() - self.written > FLUSH:
            self.write()

    def _evaluate(self, source: Member, batch: dict) -> None:
        index, images = batch["index"], batch["images"]
        if batch["start"] < self.covered:  # another process has got further than the plan knew
            index, images = index[index >= self.covered], images[index >= self.covered]
        self.images += len(index)
        parts = list(self.batches.run(len(index), lambda b: self._logits(images[b])))
        if parts:
            logits = torch.cat(parts)
            bad = ~logits.isfinite().all(dim=1)
            if bad.any():
                raise UserError(
                    f"{self.target.member.name} gives NaN or infinite logits on {source.name}'s "
                    f"adversarial images of {names(self.setting, index[bad].tolist())}"
                )
            self.predictions.append((index.cpu(), logits.argmax(dim=1).cpu()))

    def _logits(self, images: Tensor) -> Tensor:
        return self.evaluator(resized(images, self.size, self.setting.interpolation))

    def _finish(self, source: Member) -> None:
        index = [i for index, _ in self.predictions for i in index.tolist()]
        predictions = [k for _, prediction in self.predictions for k in prediction.tolist()]
        subset = self.setting.subset
        self.rows[source.name] = polars.DataFrame(
            {
                "image_id": [subset.ids[i] for i in index],
                "label": [subset.labels[i] for i in index],
                "prediction": predictions,
            },
            schema={"image_id": polars.String, "label": polars.Int32, "prediction": polars.Int32},
        )
        made_by = source_hash(self.setting, source)
        self.parts[source.name] = Part(made_by, self.covered, self.goal)
        self.predictions.clear()
        self.advance(1)

    def write(self) -> None:
        """Store what is evaluated and not stored yet, and release it to other processes."""
        if self.parts:
            member = self.target.member
            model = target_hash(self.setting, member)
            self.table.write(member.name, model, self.parts, self.rows)
            self.evaluated += self.parts
            self.parts, self.rows = {}, {}
        self.written = time.monotonic()
        self.leases.close()


def transfer(setting: Setting, target: Target, advance: Advance) -> Result:
    """Run a target on sources' images, except sources that another process evaluates.

    Raises UserError where the target gives NaN or infinite logits.
    """
    start = time.perf_counter()
    right = correct(setting, target.member)
    goal = len(setting.subset) if target.images is None else target.images
    last = len(setting.shards_of(goal)) - 1
    table = outcome_store(setting)

    def unfinished() -> list[tuple[Member, int]]:
        """The sources, with the first shard that is missing."""
        done = covered(setting, target.member, target.sources)
        found = [(source, done[source.name]) for source in target.sources]
        return [(source, n // setting.shard_size) for source, n in found if n < goal]

    def held(source: Member) -> bool:
        return is_held(setting.store.root, table.pair(source.name, target.member.name))

    todo = [(source, shard) for source, shard in unfinished() if not held(source)]
    free, first = [source for source, _ in todo], [shard for _, shard in todo]

    def load(item: tuple[int, int]) -> dict:
        source, shard = item
        pixels, index = adversarial(setting, free[source], shard)
        both = right[index]
        return {
            "source": source,
            "images": pixels[both],
            "index": index[both],
            "start": setting.shards[shard].start,
            "first": shard == first[source],
            "last": shard == last,
        }

    images, evaluated = 0, []
    if free:
        part = replace(target, sources=tuple(free))
        module = Transfer(setting.build(target.member), setting, part, advance)
        items = [(i, shard) for i, begin in enumerate(first) for shard in range(begin, last + 1)]
        with module.leases:
            try:
                predict(setting, module, Work(items, load))
            finally:  # also where the run is stopped, or the next source fails
                module.write()
        images, evaluated = module.images, module.evaluated
    taken = tuple(source for source, _ in unfinished())
    advance(len([s for s in target.sources if s.name not in evaluated and s not in taken]))
    return Result(
        images=images,
        seconds=time.perf_counter() - start,
        remaining=replace(target, sources=taken) if taken else None,
    )
