"""Crafting: a source's adversarial images, shard by shard."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from netkin.attacks.frozen import frozen
from netkin.attacks.grid import to_grid
from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.batches import Batches
from netkin.passes.engine import Work, predict
from netkin.passes.setting import Setting, names
from netkin.passes.stored import Source, correct
from netkin.passes.tune import decided
from netkin.store.files import write_tensors
from netkin.store.layout import Entry, shard_path
from netkin.store.lease import is_held, lease
from netkin.zoo.build import Classifier
from netkin.zoo.execution import Prepared, exact_float32, prepare
from netkin.zoo.member import Member

log = logging.getLogger(__name__)

TRIED = 8
"""Images that a source's gradient is tried on."""


class Craft(pl.LightningModule):
    """One source's attack on the images that it classifies correctly.

    A shard is stored as `images` [n, 3, H, W] and `index` [n], the images' positions in the
    subset; n is the number of correct ones. It is written while the next one is crafted.
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
        self.model: Prepared | None = None  # as it is run, from the first shard on
        self.batches = Batches(1, member.name)
        self.writer = Writer()
        self.crafted: list[int] = []
        self.storing = 0.0  # seconds that crafting waits for the store: leases, checksums, writes

    def predict_step(self, shard: dict) -> None:
        """Attack a shard and store it, unless another process does or has done so."""
        start, attacking = time.perf_counter(), 0.0
        file = shard_path(self.entry, shard["shard"])
        with ExitStack() as stack:
            held = stack.enter_context(lease(self.setting.store.root, file))
            if held and not file.is_file():
                began = time.perf_counter()
                tensors = self._attack(shard)
                attacking = time.perf_counter() - began
                self.writer.write(file, tensors, stack.pop_all())
                self.crafted.append(shard["shard"])
        self.storing += time.perf_counter() - start - attacking

    def _attack(self, shard: dict) -> dict[str, Tensor]:
        """A shard's tensors as they are stored."""
        index, pixels, labels = shard["index"], shard["pixels"], shard["labels"]
        if not len(index):
            return {"images": pixels, "index": index}
        if self.model is None:
            self.model = self._prepared(pixels)
            tried = min(TRIED, len(index))
            for _ in self.batches.run(tried, lambda b: self._check_gradient(pixels[b], labels[b])):
                pass
        images = []
        for adversarial in self.batches.run(
            len(index), lambda b: self._perturb(index[b], pixels[b], labels[b])
        ):
            images.append(adversarial.cpu())
            self.advance(len(adversarial))
        return {"images": torch.cat(images), "index": index}

    def _prepared(self, clean: Tensor) -> Prepared:
        """The source as it is run for all shards, tested on some of the first one's images."""
        setting, choice = self.setting, self.setting.choice
        if choice.execution.compile and setting.attack.looks_inside:
            log.warning(
                "%s: attack %s hooks into the model, which is therefore not compiled",
                self.member.name,
                setting.attack.name,
            )
            choice = replace(choice, execution=replace(choice.execution, compile=False))
        pixels = clean.float() / 255
        execution, size = decided(self.entry, choice, self.classifier, pixels, setting.shard_size)
        self.batches.size = size
        return prepare(self.classifier, execution, pixels, size)

    def _check_gradient(self, clean: Tensor, labels: Tensor) -> None:
        """Raises UserError for a source whose loss has no finite gradient: signs of NaN are 0, so
        that attacks would leave its images as they are, without a word."""
        passes = self.setting.attack.passes(self.classifier, self.setting.task.num_classes)
        if passes is not None and not passes.backward:
            return
        assert self.model is not None
        with frozen(self.model) as model, torch.enable_grad():
            x = (clean.float() / 255).requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
        bad = ~gradient.isfinite().flatten(1).all(dim=1)
        if bad.any():
            raise UserError(
                f"{self.member.name}: the gradient of its loss is NaN or infinite on "
                f"{int(bad.sum())} of {len(bad)} images, so that no attack can follow it; look in "
                "its forward pass for a square root or a logarithm of 0, or a division by 0"
            )

    def _perturb(self, index: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images of a batch as they are stored: uint8, or float32 in [0, 1]."""
        setting = self.setting
        attack = setting.attack
        pixels = clean.float() / 255
        keys = setting.keys(self.member, index.tolist())
        assert self.model is not None
        if self.model.size is not None:
            self.model.size = self.batches.size  # smaller once memory ran out
        with frozen(self.model) as model, exact_float32(setting.choice.execution.precision):
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
        if setting.dtype == "uint8":
            return to_grid(adversarial, clean, attack.eps)
        if attack.eps is None:
            return adversarial
        return (pixels + (adversarial - pixels).clamp(-attack.eps, attack.eps)).clamp(0, 1)


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


def craft(setting: Setting, source: Source, advance: Advance) -> Result:
    """Craft and store a source's shards, except those that another process crafts.

    Raises UserError where the attack returns another shape, NaN or pixels outside [0, 1].
    """
    start = time.perf_counter()
    member = source.member
    entry = setting.adversarial_entry(member).claim()
    view, labels = setting.view(member), setting.labels
    attackable = correct(setting, member)

    def load(shard: int) -> dict:
        positions = torch.tensor(setting.shards[shard])
        right = attackable[positions]
        index, pixels = positions[right], setting.pixels(view, shard)[right]
        return {"shard": shard, "index": index, "pixels": pixels, "labels": labels[index]}

    def images(shards: Sequence[int]) -> int:
        return sum(int(attackable[list(setting.shards[shard])].sum()) for shard in shards)

    missing = [shard for shard in source.shards if not shard_path(entry, shard).is_file()]
    free = [s for s in missing if not is_held(setting.store.root, shard_path(entry, s))]
    crafted, storing = list[int](), 0.0
    if free:
        module = Craft(setting.build(member), setting, member, entry, advance)
        with module.writer:
            predict(setting, module, Work(free, load))
            waited = time.perf_counter()
            module.writer.wait()
            crafted, storing = module.crafted, module.storing + time.perf_counter() - waited
    taken = tuple(shard for shard in missing if not shard_path(entry, shard).is_file())
    advance(images([s for s in source.shards if s not in crafted and s not in taken]))
    return Result(
        images=images(crafted),
        shards=len(crafted),
        storing=storing,
        seconds=time.perf_counter() - start,
        remaining=replace(source, shards=taken) if taken else None,
    )
