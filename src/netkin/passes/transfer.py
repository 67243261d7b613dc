"""Transfer: which targets a source's adversarial images fool."""

import time
from contextlib import ExitStack

import polars
import torch

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
SCHEMA = {"image_id": polars.String, "label": polars.Int32, "prediction": polars.Int32}


class Transfer:
    """One target's predictions on other models' adversarial images.

    Args:
        results: where outcomes are stored.
        runner: runs the target.
        target: the model.
        sources: whose images it is evaluated on, with how many images are done already.
        goal: number of the subset's images, from the first on, that are evaluated.
        advance: called with 1 after each source.
    """

    def __init__(
        self,
        results: Results,
        runner: Runner,
        target: Model,
        sources: list[tuple[Model, int]],
        goal: int,
        advance: Advance,
    ):
        self.results, self.target, self.sources = results, target, sources
        self.goal, self.advance = goal, advance
        self.evaluation, self.table = results.evaluation, results.outcome_store
        self.predictor = runner.predictor(target.build(), self.evaluation.target_precision)
        self.images, self.working, self.evaluated = 0, False, list[str]()
        self.index, self.predictions = list[int](), list[int]()  # of the source in progress
        self.parts = dict[str, Part]()
        self.rows = dict[str, polars.DataFrame]()
        self.written = time.monotonic()
        self.leases = ExitStack()  # of sources that are evaluated and not written yet

    def step(self, batch: dict) -> None:
        """Evaluate a shard of a source, unless another process does that source, or has got further
        with it than was known when the work was planned."""
        source, done = self.sources[batch["source"]]
        if batch["first"]:
            pair = self.table.pair(source.name, self.target.name)
            held = self.leases.enter_context(lease(self.results.store.root, pair))
            self.working = held and done == self.results.covered(self.target, [source])[source.name]
        if self.working:
            self._evaluate(source, batch["index"], batch["images"])
        if batch["last"]:
            if self.working:
                self._finish(source, done)
            if time.monotonic() - self.written > FLUSH:
                self.write()

    def _evaluate(self, source: Model, index: torch.Tensor, images: torch.Tensor) -> None:
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
            self.index += index.tolist()
            self.predictions += logits.argmax(dim=1).tolist()

    def _finish(self, source: Model, done: int) -> None:
        subset = self.evaluation.subset
        columns = {
            "image_id": [subset.ids[i] for i in self.index],
            "label": [subset.labels[i] for i in self.index],
            "prediction": self.predictions,
        }
        self.rows[source.name] = polars.DataFrame(columns, schema=SCHEMA)
        self.parts[source.name] = Part(self.results.source_digest(source), done, self.goal)
        self.index, self.predictions = [], []
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
    right, table, size = results.correct(target), results.outcome_store, evaluation.shard_size
    goal = len(evaluation.subset) if item.images is None else item.images
    last = len(evaluation.shards_of(goal)) - 1

    def unfinished() -> list[tuple[Model, int]]:
        """The sources, with how many images are done."""
        done = results.covered(target, item.todo)
        return [(source, done[source.name]) for source in item.todo if done[source.name] < goal]

    def held(source: Model) -> bool:
        return is_held(results.store.root, table.pair(source.name, target.name))

    free = [(source, done) for source, done in unfinished() if not held(source)]

    def load(part: tuple[int, int]) -> dict:
        number, shard = part
        source, done = free[number]
        pixels, index = results.adversarial(source, shard)
        both, ends = right[index], {"first": shard == done // size, "last": shard == last}
        return {"source": number, **ends, "images": pixels[both], "index": index[both]}

    images, evaluated = 0, []
    if free:
        work = Transfer(results, runner, target, free, goal, advance)
        parts = [
            (number, shard)
            for number, (_, done) in enumerate(free)
            for shard in range(done // size, last + 1)
        ]
        with work.leases:
            try:
                runner.run(work.step, parts, load, work.predictor)
            finally:  # also where the run is stopped, or the next source fails
                work.write()
        images, evaluated = work.images, work.evaluated
    taken = tuple(source for source, _ in unfinished())
    advance(len([s for s in item.todo if s.name not in evaluated and s not in taken]))
    return Result(images=images, seconds=time.perf_counter() - start, remaining=item.left(taken))
