"""How fast are craft and transfer, against the least that they must do and against other libraries?

All ways to attack the same images are timed in turn, round after round, in one process. The bare
loop is a forward pass and the gradient to the input, and nothing else: no update, no projection.
"""

import copy
import importlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks import PGD, Clean
from netkin.attacks.frozen import frozen
from netkin.attacks.grid import to_grid
from netkin.data import views
from netkin.data.subset import draw
from netkin.data.views import View
from netkin.store import Store, read_tensors, shard_path, write_tensors
from netkin.transfer.clean import clean_pass
from netkin.transfer.setting import AttackSpec, Setting
from netkin.transfer.stored import Target, outcome_store
from netkin.transfer.transfer import resized, transfer
from netkin.transfer.tune import BEFORE
from netkin.zoo.build import Classifier, Task
from netkin.zoo.execution import (
    MEMORY_FORMATS,
    PRECISIONS,
    Execution,
    exact_float32,
    precisions,
    prepare,
)
from netkin.zoo.member import Member

DEFAULT = (BEFORE.precision, BEFORE.memory_format)
EPS, STEP = 8 / 255, 2 / 255
STEPS = 50
"""Of a whole attack, for images a second."""
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of members that are trained here, as which these models pass."""
OTHER_SIZE = 288
"""Pixels a side to which images are resized on the way to a target of another size."""


@dataclass(frozen=True)
class Way:
    """One way to attack a batch: who, in what precision and memory format, and `run(steps)`."""

    who: str
    precision: str
    memory_format: str
    run: Callable[[int], Tensor]


def ways(classifier: Classifier, pixels: Tensor, labels: Tensor, compiled: bool) -> list[Way]:
    """All that is compared on one model. Libraries run as they come: float32, contiguous."""
    found = [
        Way("torchattacks-style loop", *DEFAULT, _torchattacks_style(classifier, pixels, labels)),
        *_libraries(classifier, pixels, labels),
        Way("craft, nothing fused", *DEFAULT, _craft(classifier, BEFORE, pixels, labels)),
    ]
    for precision in precisions(gpu=pixels.device.type == "cuda"):
        for memory_format in MEMORY_FORMATS:
            execution = Execution(precision, memory_format=memory_format)
            how = (precision, memory_format)
            found += [
                Way("bare loop", *how, _bare(classifier, execution, pixels, labels)),
                Way("craft", *how, _craft(classifier, execution, pixels, labels)),
            ]
        if compiled:
            execution = Execution(precision, compile=True)
            run = _craft(classifier, execution, pixels, labels)
            found.append(Way("craft, compiled", precision, execution.memory_format, run))
    return found


def _bare(
    classifier: Classifier, execution: Execution, pixels: Tensor, labels: Tensor
) -> Callable[[int], Tensor]:
    memory_format = MEMORY_FORMATS[execution.memory_format]
    model = copy.deepcopy(classifier).to(memory_format=memory_format).eval().requires_grad_(False)
    images = pixels.contiguous(memory_format=memory_format)
    dtype = PRECISIONS[execution.precision]

    def run(steps: int) -> Tensor:
        x = images
        with exact_float32(execution.precision):
            for _ in range(steps):
                x = x.detach().requires_grad_()
                with torch.autocast(pixels.device.type, dtype) if dtype else nullcontext():
                    logits = model(x)
                loss = cross_entropy(logits.float(), labels, reduction="sum")
                torch.autograd.grad(loss, x)
        return x

    return run


def _craft(
    classifier: Classifier, execution: Execution, pixels: Tensor, labels: Tensor
) -> Callable[[int], Tensor]:
    model = prepare(classifier, execution, pixels)
    keys = [str(i) for i in range(len(pixels))]

    def run(steps: int) -> Tensor:
        attack = PGD(EPS, STEP, steps, random_start=False)
        with frozen(model) as fast, exact_float32(execution.precision):
            return attack.perturb(fast, pixels, labels, keys)

    return run


def _torchattacks_style(
    classifier: Classifier, pixels: Tensor, labels: Tensor
) -> Callable[[int], Tensor]:
    """The loop of torchattacks 3.5's PGD, in our words; parameters take gradients, as they come."""
    model = copy.deepcopy(classifier).eval().requires_grad_()

    def run(steps: int) -> Tensor:
        x = pixels.clone().detach()
        for _ in range(steps):
            x.requires_grad = True
            loss = cross_entropy(model(x), labels)
            (gradient,) = torch.autograd.grad(loss, x, retain_graph=False, create_graph=False)
            x = x.detach() + STEP * gradient.sign()
            delta = torch.clamp(x - pixels, min=-EPS, max=EPS)
            x = torch.clamp(pixels + delta, min=0, max=1).detach()
        return x

    return run


def _libraries(classifier: Classifier, pixels: Tensor, labels: Tensor) -> Iterator[Way]:
    """foolbox and torchattacks, where they are installed."""
    model = copy.deepcopy(classifier).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports SciPy by old names
        try:
            foolbox = importlib.import_module("foolbox")
        except ImportError:
            pass
        else:
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
            goal = foolbox.criteria.Misclassification(labels)

            def with_foolbox(steps: int) -> Tensor:
                attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
                return attack.run(wrapped, pixels, goal, epsilon=EPS)

            yield Way("foolbox", *DEFAULT, with_foolbox)
        try:
            torchattacks = importlib.import_module("torchattacks")
            torchattacks.PGD  # noqa: B018  (a folder of that name is no package)
        except (ImportError, AttributeError):
            return

    def with_torchattacks(steps: int) -> Tensor:
        return torchattacks.PGD(model, EPS, STEP, steps, random_start=False)(pixels, labels)

    yield Way("torchattacks", *DEFAULT, with_torchattacks)


def timed(found: Sequence[Way], rounds: int, steps: int) -> list[float]:
    """Median seconds of a step, for each way: in turn, after a warm-up."""
    taken: list[list[float]] = [[] for _ in found]
    for number in range(rounds + 1):
        for way, mine in zip(found, taken, strict=True):
            _synchronize()
            start = time.perf_counter()
            way.run(steps)
            _synchronize()
            if number:
                mine.append((time.perf_counter() - start) / steps)
    return [statistics.median(mine) for mine in taken]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rates(name: str, found: Sequence[Way], seconds: Sequence[float], images: int) -> pl.DataFrame:
    """One row a way: model, who, precision, memory_format, images, ms_a_step, images_per_second
    (of 50 steps), and how many times as fast as the bare loop of the same precision and format,
    and as the torchattacks-style loop."""
    bare = {
        (way.precision, way.memory_format): taken
        for way, taken in zip(found, seconds, strict=True)
        if way.who == "bare loop"
    }
    return pl.DataFrame(
        [
            {
                "model": name,
                "who": way.who,
                "precision": way.precision,
                "memory_format": way.memory_format,
                "images": images,
                "ms_a_step": 1e3 * taken,
                "images_per_second": images / taken / STEPS,
                "times_bare_loop": bare[way.precision, way.memory_format] / taken,
                "times_torchattacks_style": seconds[0] / taken,
            }
            for way, taken in zip(found, seconds, strict=True)
        ]
    )


def differing(
    name: str, classifier: Classifier, clean: Tensor, labels: Tensor, eps: float, steps: int
) -> pl.DataFrame:
    """What fusing and precision do to the stored images: one row an execution, against a plain
    float32 loop. differing_pixels is a share; fooled the share that the model itself errs on."""
    pixels, keys = clean.float() / 255, [str(i) for i in range(len(clean))]
    attack = PGD(eps, steps=steps, random_start=False)

    def made(model: nn.Module) -> Tensor:
        with frozen(model) as fast:
            return to_grid(attack.perturb(fast, pixels, labels, keys), clean, eps)

    plain = made(classifier)
    rows = []
    for fuse in (False, True):
        for precision in ("32-true", "bf16-mixed"):
            for memory_format in MEMORY_FORMATS:
                execution = Execution(precision, fuse, memory_format)
                with exact_float32(precision):
                    stored = made(prepare(classifier, execution, pixels))
                with torch.no_grad():
                    said = classifier(stored.float() / 255).argmax(dim=1)
                rows.append(
                    {
                        "model": name,
                        "fuse": fuse,
                        "precision": precision,
                        "memory_format": memory_format,
                        "images": len(clean),
                        "differing_pixels": float((stored != plain).float().mean()),
                        "fooled": float((said != labels).float().mean()),
                    }
                )
    return pl.DataFrame(rows)


class RandomImages:
    """Images of noise, for models with random weights."""

    def __init__(self, number: int, size: int, labels: Sequence[int] | None = None):
        self.size, self.classes = size, [str(i) for i in range(1000)]
        self.ids = [f"{i:06d}" for i in range(number)]
        self.labels = [0] * number if labels is None else list(labels)

    def stamp(self, index: int) -> str:
        return self.ids[index]

    def load(self, index: int) -> Image.Image:
        drawn = np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3))
        return Image.fromarray(drawn.astype(np.uint8))


def passes(
    name: str, classifier: Classifier, size: int, batch: int, rounds: int, step: float
) -> pl.DataFrame:
    """The target pass against a bare forward loop, and what else a shard costs: one row.

    The pass is timed by what two more sources cost it, so that building the model, which is done
    once for all sources, does not count; that is `once_seconds`.

    Args:
        name: a timm model with random weights, the `classifier`.
        classifier: on its device.
        size: pixels a side.
        batch: images at once; a shard has two batches, the images fill three.
        rounds: median of how many.
        step: seconds of an attack's step on a batch, to set the shard's other costs against.
    """
    device = classifier.mean.device
    number, shard = 6 * batch, 2 * batch
    view = View(size)
    classifier.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory(prefix="netkin-speed-") as scratch, torch.inference_mode():
        pixels = views.load(RandomImages(number, size), range(number), view)
        parts = [part.to(device).float() / 255 for part in pixels.split(batch)]
        said = torch.cat([classifier(part) for part in parts]).argmax(dim=1).tolist()
        images = RandomImages(number, size, said)  # so that all are classified correctly
        weights = Path(scratch) / "weights.safetensors"
        state = {k: v.cpu().clone() for k, v in classifier.net.state_dict().items()}
        save_file(state, weights)
        target, *sources = (Member(n, name, checkpoint=str(weights)) for n in "tabc")
        setting = Setting(
            images=images,
            subset=draw(images, "random"),
            task=Task("random", 1000, input_size=size),
            attack=AttackSpec("clean", Clean(), {}),
            store=Store(Path(scratch) / "store"),
            shard_size=shard,
            batch_size=batch,
            accelerator="gpu" if device.type == "cuda" else "cpu",
        )
        clean_pass(setting, target, lambda _n: None)
        for source in sources:
            entry = setting.adversarial_entry(source).claim()
            for i, positions in enumerate(setting.shards):
                index = torch.tensor(positions)
                content = {"images": pixels[index], "index": index}
                write_tensors(shard_path(entry, i), content)
        file = shard_path(setting.adversarial_entry(sources[0]), 0)
        write = _median(lambda: write_tensors(file, read_tensors(file)), 3)
        read = _median(lambda: read_tensors(file), 3)
        some = pixels[:shard].to(device)
        resize = _median(lambda: resized(some, OTHER_SIZE, "bilinear"), 3)

        def seconds(chosen: Sequence[Member]) -> float:
            outcome_file = outcome_store(setting)
            for source in chosen:
                outcome_file.file(source.name, target.name).unlink(missing_ok=True)
            start = time.perf_counter()
            transfer(setting, Target(target, tuple(chosen)), lambda _n: None)
            return time.perf_counter() - start

        def bare() -> None:
            for part in parts:
                classifier(part)

        seconds(sources[:1])
        one, three, forward = [], [], []
        for _ in range(rounds):
            one.append(seconds(sources[:1]))
            forward.append(_median(bare, 1))
            three.append(seconds(sources))
            forward.append(_median(bare, 1))
    loop = statistics.median(forward)
    each = (statistics.median(three) - statistics.median(one)) / 2
    crafting = 2 * STEPS * step  # a shard has two batches
    a_shard = each * shard / number
    return pl.DataFrame(
        [
            {
                "model": name,
                "images": number,
                "forward_ms_per_image": 1e3 * loop / number,
                "transfer_ms_per_image": 1e3 * each / number,
                "times_forward_loop": loop / each,
                "once_seconds": statistics.median(one) - each,
                "read_share_of_transfer": read / a_shard,
                "resize_share_of_transfer": resize / (a_shard + resize),
                "read_share_of_craft": read / crafting,
                "write_share_of_craft": write / crafting,
            }
        ]
    )


def _median(work: Callable[[], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        _synchronize()
        start = time.perf_counter()
        work()
        _synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def with_random_weights(name: str, device: str) -> tuple[Classifier, int]:
    """A timm model with random weights, and its input size."""
    import timm

    torch.manual_seed(0)
    net: Any = timm.create_model(name, num_classes=1000)
    classifier = Classifier(net, name, HALF, HALF)
    size = int(net.pretrained_cfg["input_size"][-1])
    return classifier.eval().requires_grad_(False).to(device), size
