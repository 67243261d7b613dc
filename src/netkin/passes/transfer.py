"""Transfer: which targets a source's adversarial images fool."""

import time
from contextlib import ExitStack

import polars
import pytorch_lightning as pl
import torch
from torch import Tensor

from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item
from netkin.results import Results
from netkin.runner import Runner
from netkin.store.lease import is_held, lease
from netkin.store.outcomes import Part

FLUSH = 300.0
"""Seconds after which evaluated sources are written, in one file: what a kill may cost."""


class Transfer(pl.LightningModule):
    """One target's predictions on other models' adversarial images.

    Args:
        results: where outcomes are stored.
        runner: runs the target.
        target: the model.
        sources: whose images it is evaluated on.
        goal: number of the subset's images, from the first on, that are evaluated.
        advance: called with 1 after each source.
    """

    def __init__(
        self,
        results: Results,
        runner: Runner,
        target: Model,
        sources: list[Model],
        goal: int,
        advance: Advance,
    ):
        super().__init__()
        self.results, self.evaluation, self.advance = results, results.evaluation, advance
        self.target, self.sources, self.goal = target, sources, goal
        self.predictor = runner.predictor(target.build(), self.evaluation.target_precision)
        self.table = results.outcome_store
        self.covered = 0  # images that a source's outcomes have covered before
        self.images = 0
        self.predictions: list[tuple[Tensor, Tensor]] = []
        self.parts: dict[str, Part] = {}
        self.rows: dict[str, polars.DataFrame] = {}
        self.written = time.monotonic()
        self.leases = ExitStack()  # of sources that are evaluated and not written yet
        self.working = False
        self.evaluated: list[str] = []

    def predict_step(self, batch: dict) -> None:
        """Evaluate a shard of a source, unless another process does or has done that source."""
        source = self.sources[batch["source"]]
        if batch["first"]:
            pair = self.table.pair(source.name, self.target.name)
            held = self.leases.enter_context(lease(self.results.store.root, pair))
            self.covered = self.results.covered(self.target, [source])[source.name] if held else 0
            self.working = held and batch["start"] <= self.covered < self.goal
        if self.working:
            self._evaluate(source, batch)
            if batch["last"]:
                self._finish(source)
        if batch["last"] and time.monotonic() - self.written > FLUSH:
            self.write()

    def _evaluate(self, source: Model, batch: dict) -> None:
        index, images = batch["index"], batch["images"]
        if batch["start"] < self.covered:  # another process has got further than the plan knew
            index, images = index[index >= self.covered], images[index >= self.covered]
        self.images += len(index)
        size, interpolation = self.target.view.input_size, self.evaluation.interpolation
        parts = list(self.predictor.logits(images, size, interpolation))
        if parts:
            logits = torch.cat(parts)
            bad = ~logits.isfinite().all(dim=1)
            if bad.any():
                raise UserError(
                    f"{self.target.name} gives NaN or infinite logits on {source.name}'s "
                    f"adversarial images of {self.evaluation.image_names(index[bad].tolist())}"
                )
            self.predictions.append((index.cpu(), logits.argmax(dim=1).cpu()))

    def _finish(self, source: Model) -> None:
        index = [i for index, _ in self.predictions for i in index.tolist()]
        predictions = [k for _, prediction in self.predictions for k in prediction.tolist()]
        subset = self.evaluation.subset
        self.rows[source.name] = polars.DataFrame(
            {
                "image_id": [subset.ids[i] for i in index],
                "label": [subset.labels[i] for i in index],
                "prediction": predictions,
            },
            schema={"image_id": polars.String, "label": polars.Int32, "prediction": polars.Int32},
        )
        self.parts[source.name] = Part(self.results.source_digest(source), self.covered, self.goal)
        self.predictions.clear()
        self.advance(1)

    def write(self) -> None:
        """Store what is evaluated and not stored yet, and release it to other processes."""
        if self.parts:
            self.table.write(self.target.name, self.target.digest, self.parts, self.rows)
            self.evaluated += self.parts
            self.parts, self.rows = {}, {}
        self.written = time.monotonic()
        self.leases.close()


def transfer(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Run a target on sources' images, except sources that another process evaluates.

    Raises UserError where the target gives NaN or infinite logits.
    """
    start, target, evaluation = time.perf_counter(), item.of_model(), results.evaluation
    right, table = results.correct(target), results.outcome_store
    goal = len(evaluation.subset) if item.images is None else item.images
    last = len(evaluation.shards_of(goal)) - 1

    def unfinished() -> list[tuple[Model, int]]:
        """The sources, with the first shard that is missing."""
        done = results.covered(target, item.todo)
        found = [(source, done[source.name]) for source in item.todo]
        return [(source, n // evaluation.shard_size) for source, n in found if n < goal]

    def held(source: Model) -> bool:
        return is_held(results.store.root, table.pair(source.name, target.name))

    todo = [(source, shard) for source, shard in unfinished() if not held(source)]
    free, first = [source for source, _ in todo], [shard for _, shard in todo]

    def load(part: tuple[int, int]) -> dict:
        source, shard = part
        pixels, index = results.adversarial(free[source], shard)
        both = right[index]
        return {
            "source": source,
            "images": pixels[both],
            "index": index[both],
            "start": evaluation.shards[shard].start,
            "first": shard == first[source],
            "last": shard == last,
        }

    images, evaluated = 0, []
    if free:
        module = Transfer(results, runner, target, free, goal, advance)
        parts = [(i, shard) for i, begin in enumerate(first) for shard in range(begin, last + 1)]
        with module.leases:
            try:
                runner.run(module, parts, load)
            finally:  # also where the run is stopped, or the next source fails
                module.write()
        images, evaluated = module.images, module.evaluated
    taken = tuple(source for source, _ in unfinished())
    advance(len([s for s in item.todo if s.name not in evaluated and s not in taken]))
    return Result(images=images, seconds=time.perf_counter() - start, remaining=item.left(taken))
