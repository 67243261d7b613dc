"""Crafting: a source's adversarial images, shard by shard."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from netkin.attacks.base import frozen
from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item
from netkin.results import Results
from netkin.runner import Runner
from netkin.store.files import write_tensors
from netkin.store.layout import Folder, shard_file
from netkin.store.lease import is_held, lease

TRIED = 8
"""Images that a source's gradient is tried on."""


class Craft(pl.LightningModule):
    """One source's attack on the images that it classifies correctly.

    A shard is stored as `images` [n, 3, H, W] and `index` [n], the images' positions in the
    subset; n is the number of correct ones. It is written while the next one is crafted.
    """

    def __init__(
        self, results: Results, runner: Runner, model: Model, folder: Folder, advance: Advance
    ):
        super().__init__()
        self.classifier, self.results, self.advance = model.build(), results, advance
        self.folder = folder
        self.crafter = runner.crafter(self.classifier, results.evaluation)
        self.writer = Writer()
        self.crafted: list[int] = []
        self.storing = 0.0  # seconds that crafting waits for the store: leases, checksums, writes

    def predict_step(self, shard: dict) -> None:
        """Attack a shard and store it, unless another process does or has done so."""
        start, attacking = time.perf_counter(), 0.0
        file = shard_file(self.folder, shard["shard"])
        with ExitStack() as stack:
            held = stack.enter_context(lease(self.results.store.root, file))
            if held and not file.is_file():
                began = time.perf_counter()
                tensors = self._attack(shard)
                attacking = time.perf_counter() - began
                self.writer.write(file, tensors, stack.pop_all())
                self.crafted.append(shard["shard"])
        self.storing += time.perf_counter() - start - attacking

    def _attack(self, shard: dict) -> dict[str, Tensor]:
        """A shard's tensors as they are stored."""
        index, clean, labels = shard["index"], shard["pixels"], shard["labels"]
        if not len(index):
            return {"images": clean, "index": index}
        if self.crafter.model is None:
            self.crafter.prepare(clean.float() / 255)
            self._check_gradient(clean[:TRIED], labels[:TRIED])
        images, keys = [], self.results.evaluation.keys(self.classifier.name, index.tolist())
        for adversarial in self.crafter.craft(clean, labels, keys):
            images.append(adversarial.cpu())
            self.advance(len(adversarial))
        return {"images": torch.cat(images), "index": index}

    def _check_gradient(self, clean: Tensor, labels: Tensor) -> None:
        """Raises UserError for a source whose loss has no finite gradient: signs of NaN are 0, so
        that attacks would silently leave its images as they are."""
        evaluation, source = self.results.evaluation, self.crafter.model
        passes = evaluation.attack.passes(self.classifier, evaluation.task.num_classes)
        if passes is not None and not passes.backward:
            return
        assert source is not None

        def bad(batch: slice) -> int:
            with frozen(source) as model, torch.enable_grad():
                x = (clean[batch].float() / 255).requires_grad_()
                loss = cross_entropy(model(x), labels[batch], reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
            return int((~gradient.isfinite().flatten(1).all(dim=1)).sum())

        if found := sum(self.crafter.batches.run(len(clean), bad)):
            raise UserError(
                f"{self.classifier.name}: the gradient of its loss is NaN or infinite on "
                f"{found} of {len(clean)} images, so that no attack can follow it; look in "
                "its forward pass for a square root or a logarithm of 0, or a division by 0"
            )


class Writer:
    """Writes files, one after another, in a thread beside the work that makes them."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.last: Future | None = None

    def write(self, file: Path, tensors: dict[str, Tensor], held: ExitStack) -> None:
        """Start to write a file once the previous one is written; then close `held`, its lease.

        Raises StoreError when the previous one could not be written.
        """
        try:
            self.wait()
        except BaseException:
            held.close()
            raise

        def work() -> None:
            with held:
                write_tensors(file, tensors)

        self.last = self.thread.submit(work)

    def wait(self) -> None:
        """Wait until the last file is written. Raises StoreError when it could not be."""
        last, self.last = self.last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()  # after the file that is being written


def craft(results: Results, runner: Runner, item: Item, advance: Advance) -> Result:
    """Craft and store a source's shards, except those that another process crafts.

    Raises UserError where the attack returns another shape, NaN or pixels outside [0, 1].
    """
    start, model, evaluation = time.perf_counter(), item.of_model(), results.evaluation
    root, folder = results.store.root, results.adversarial_folder(model).claim()
    attackable = results.correct(model)

    def load(shard: int) -> dict:
        positions = torch.tensor(evaluation.shards[shard])
        right = attackable[positions]
        index, pixels = positions[right], results.pixels(model.view, shard)[right]
        labels = evaluation.labels[index]
        return {"shard": shard, "index": index, "pixels": pixels, "labels": labels}

    def images(shards: Sequence[int]) -> int:
        return sum(int(attackable[list(evaluation.shards[shard])].sum()) for shard in shards)

    missing = [shard for shard in item.todo if not shard_file(folder, shard).is_file()]
    free = [shard for shard in missing if not is_held(root, shard_file(folder, shard))]
    crafted, storing = list[int](), 0.0
    if free:
        module = Craft(results, runner, model, folder, advance)
        with module.writer:
            runner.run(module, free, load)
            waited = time.perf_counter()
            module.writer.wait()
            crafted, storing = module.crafted, module.storing + time.perf_counter() - waited
    taken = tuple(shard for shard in missing if not shard_file(folder, shard).is_file())
    advance(images([s for s in item.todo if s not in crafted and s not in taken]))
    return Result(
        images=images(crafted),
        shards=len(crafted),
        storing=storing,
        seconds=time.perf_counter() - start,
        remaining=item.left(taken),
    )
