"""Where and how models run: device, batch size, precision, and the loop over stored shards.

Crafting and predicting cut their work into batches that are halved when memory runs out. A pass is
a function of one shard, which Lightning calls after it has moved shard and network to the device.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, Dataset

from netkin.attacks import Attack
from netkin.attacks.base import frozen
from netkin.attacks.grid import to_grid
from netkin.errors import UserError, and_more
from netkin.evaluation import Evaluation
from netkin.jobs.signals import STOPPING, blocked
from netkin.zoo.build import Classifier
from netkin.zoo.execution import DEFAULT_PRECISION, Execution, Prepared, exact_float32

T = TypeVar("T")
TRIED = 8
"""Images that a source's gradient is tried on."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loader:
    """How images are loaded.

    Attributes:
        workers: processes that load stored shards ahead of the model; 0 loads them in its process.
        prefetch: shards that each of them keeps ready.
        pin_memory: whether shards are kept in page-locked memory, from which a GPU copies faster.
        decode_threads: image files decoded at once in a process.
    """

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    decode_threads: int = 1


@dataclass(frozen=True)
class Runner:
    """Where and how models run.

    Attributes:
        accelerator: as of Lightning's Trainer: "auto", "cpu", "gpu".
        batch_size: images through a model at once, at most; halved where memory runs out.
        execution: how models are run: sources in the evaluation's `craft_precision`, others in a
            precision of their own and not compiled.
        loader: how images are loaded.
    """

    accelerator: str = "auto"
    batch_size: int = 100
    execution: Execution = field(default_factory=Execution)
    loader: Loader = Loader()

    @property
    def device(self) -> torch.device:
        """What models run on in this process."""
        return device_of(self.accelerator)

    def predictor(self, classifier: Classifier, precision: str = DEFAULT_PRECISION) -> "Predictor":
        """Runs a classifier on images without gradients, in a precision."""
        execution = replace(self.execution, precision=precision, compile=False)
        return Predictor(classifier, execution, self.batch_size)

    def crafter(self, classifier: Classifier, evaluation: Evaluation) -> "Crafter":
        """Attacks a classifier as an evaluation describes."""
        attack = evaluation.attack
        execution = replace(self.execution, precision=evaluation.craft_precision)
        if execution.compile and attack.looks_inside:
            log.warning(
                "%s: attack %s hooks into the model, which is therefore not compiled",
                classifier.name,
                attack.name,
            )
            execution = replace(execution, compile=False)
        size = min(self.batch_size, evaluation.shard_size)
        return Crafter(classifier, evaluation, execution, size)

    def run(
        self,
        step: Callable[[dict], None],
        items: list,
        load: Callable[[Any], dict],
        network: nn.Module,
    ) -> None:
        """Call `step`, which runs a network and stores the results, on what `load` makes of each
        item: a mapping of tensors [n, ...], which are on the network's device, and numbers."""
        from netkin.lightning import Step, quiet, trainer  # a second

        with quiet():
            loading = Loading(
                Loaded(items, load),
                batch_size=None,
                num_workers=self.loader.workers,
                prefetch_factor=self.loader.prefetch if self.loader.workers else None,
                pin_memory=self.loader.pin_memory,
            )
            trainer(self.accelerator, inference_mode=False).predict(
                Step(step, network), loading, return_predictions=False
            )


class Predictor(nn.Module):
    """A classifier run by an Execution, which is tested on its first two images."""

    def __init__(self, classifier: Classifier, execution: Execution, batch_size: int):
        super().__init__()
        self.model, self.execution, self.prepared = classifier.eval(), execution, False
        self.batches = Batches(batch_size, classifier.name)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to logits [B, K], B > 0."""
        with exact_float32(self.execution.precision):
            if not self.prepared:
                self.model, self.prepared = Prepared(self.model, self.execution, pixels[:2]), True
            return self.model(pixels)

    def logits(
        self, images: Tensor, size: int, interpolation: str = "bilinear"
    ) -> Iterator[Tensor]:
        """Logits [b, K] of stored images [n, 3, H, W], batch by batch, resized to a side."""
        return self.batches.run(
            len(images), lambda batch: self(resized(images[batch], size, interpolation))
        )


class Crafter:
    """Makes one source's adversarial images."""

    def __init__(
        self, classifier: Classifier, evaluation: Evaluation, execution: Execution, size: int
    ):
        self.classifier, self.evaluation, self.execution = classifier, evaluation, execution
        self.model: Prepared | None = None  # as it is run, from the first images on
        self.batches = Batches(size, classifier.name)

    def prepare(self, clean: Tensor, labels: Tensor) -> None:
        """Prepare the source to be run, which is tested on images as of `craft`.

        Raises UserError where its loss has no finite gradient: signs of NaN are 0, so that attacks
        would silently leave its images as they are.
        """
        pixels, name = clean.float() / 255, self.classifier.name
        self.model = Prepared(self.classifier, self.execution, pixels, self.batches.size)
        passes = self.evaluation.attack.passes(self.classifier, self.evaluation.task.num_classes)
        if passes is not None and not passes.backward:
            return
        source, tried = self.model, pixels[:TRIED]

        def bad(batch: slice) -> int:
            with frozen(source) as model, torch.enable_grad():
                x = tried[batch].clone().requires_grad_()
                loss = cross_entropy(model(x), labels[:TRIED][batch], reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
            return int((~gradient.isfinite().flatten(1).all(dim=1)).sum())

        if found := sum(self.batches.run(len(tried), bad)):
            raise UserError(
                f"{name}: the gradient of its loss is NaN or infinite on {found} of {len(tried)} "
                "images, so that no attack can follow it; look in its forward pass for a square "
                "root or a logarithm of 0, or a division by 0"
            )

    def craft(self, clean: Tensor, labels: Tensor, keys: Sequence[str]) -> Iterator[Tensor]:
        """Adversarial images as they are stored, batch by batch: uint8, or float32 in [0, 1].

        Args:
            clean: [n, 3, H, W] uint8, on the classifier's device, n > 0.
            labels: [n] int64.
            keys: of the images; see `netkin.attacks.Attack.perturb`.

        Raises UserError where the attack returns another shape, NaN or pixels outside [0, 1].
        """
        if self.model is None:
            self.prepare(clean, labels)
        attack = self.evaluation.attack
        return self.batches.run(
            len(clean), lambda b: self._perturb(attack, clean[b], labels[b], keys[b])
        )

    def _perturb(
        self, attack: Attack, clean: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        assert self.model is not None
        pixels = clean.float() / 255
        if self.model.size is not None:
            self.model.size = self.batches.size  # smaller once memory ran out
        with frozen(self.model) as model, exact_float32(self.execution.precision):
            adversarial = attack.perturb(model, pixels, labels, keys).detach()
        if adversarial.shape != pixels.shape:
            raise UserError(
                f"attack {attack.name} returned shape {tuple(adversarial.shape)} for images of "
                f"shape {tuple(pixels.shape)}; they must be the same"
            )
        bad = ~((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(dim=1)  # NaN is bad, too
        if bad.any():
            ids = [key.partition("\n")[2] for key, wrong in zip(keys, bad, strict=True) if wrong]
            raise UserError(
                f"attack {attack.name} on {self.classifier.name} left [0, 1] or gave NaN on "
                f"{and_more(ids)}; are the model's gradients finite?"
            )
        if self.evaluation.dtype == "uint8":
            return to_grid(adversarial, clean, attack.eps)
        if attack.eps is None:
            return adversarial
        return (pixels + (adversarial - pixels).clamp(-attack.eps, attack.eps)).clamp(0, 1)


def resized(images: Tensor, size: int, interpolation: str) -> Tensor:
    """Stored images [n, 3, H, W] as pixels in [0, 1] of a target's size, [n, 3, size, size].

    Antialiased, not cropped, and clamped, since bicubic overshoots.
    """
    pixels = images.float().div_(255) if images.dtype == torch.uint8 else images
    if pixels.shape[-2:] == (size, size):
        return pixels
    return interpolate(pixels, (size, size), mode=interpolation, antialias=True).clamp(0, 1)


class Batches:
    """Cuts work on n images into batches of at most `size`, which shrinks when memory runs out.

    Images do not depend on others of their batch, so results do not depend on the size, beyond
    float rounding.
    """

    def __init__(self, size: int, name: str):
        self.size, self.name = size, name

    def run(self, n: int, work: Callable[[slice], T]) -> Iterator[T]:
        """Yield work(batch) for slices that cover range(n) in order.

        Raises UserError, naming the model, when a single image does not fit.
        """
        start = 0
        while start < n:
            batch = slice(start, min(start + self.size, n))
            try:
                result = work(batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._halve(batch.stop - batch.start, error)
                continue
            yield result
            start = batch.stop

    def _halve(self, tried: int, error: Exception) -> None:
        if tried == 1:
            raise UserError(
                f"{self.name} does not fit into memory with a single image "
                f"({str(error).splitlines()[0][:200]}); use a device with more memory, or leave "
                "the model out"
            ) from None
        self.size = tried // 2
        log.warning(
            "%s: out of memory with %d images, going on with %d", self.name, tried, self.size
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is the device's or the CPU allocator's lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error) and "memory" in str(error)
    )


class Loading(DataLoader):
    """A DataLoader whose processes leave signals to the process that they load for.

    They are forks, with the handlers of their parent: each would stop the run for itself, or put
    the job back into SLURM's queue. Without a handler they would die while the parent reads from
    them. They end when their parent says that it needs no more, or has gone.
    """

    def __iter__(self) -> Any:
        with blocked(STOPPING):
            return super().__iter__()


class Loaded(Dataset):
    """Loads each of some work items with a function."""

    def __init__(self, items: list, load: Callable[[Any], dict]):
        self.items, self.load = items, load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.load(self.items[index])


def device_of(accelerator: str) -> torch.device:
    """The device behind Lightning's name of an accelerator: "auto" takes a GPU where there is one.

    A process sees one GPU at most as its own: see `netkin.jobs.pool`.
    """
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
