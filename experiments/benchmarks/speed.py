"""How fast is a step of the attack, against a bare loop and against other libraries?

    python -m experiments.benchmarks.speed --models resnet50 vit_small_patch16_224 --compile
    python -m experiments.benchmarks.speed --attacks fgsm mim pgd apgd --models resnet50

Full-size timm models with random weights on random images. All ways to attack the same images are
timed in turn, round after round, in one process. The bare loop is a forward pass and the gradient
with respect to the input: no update, no projection. Libraries run unchanged, and so with glibc's
own rules for freed memory (`netkin.jobs.pool`). With `--attacks` whole attacks of conf/attack
are timed instead, as images a second.

Measured: experiments/results/speed.md.
"""

import argparse
import copy
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import cross_entropy

from netkin.attacks import PGD, Attack
from netkin.attacks.base import frozen
from netkin.jobs.pool import keep_freed
from netkin.passes.probe import seconds_of
from netkin.runner import device_of
from netkin.zoo.build import Classifier
from netkin.zoo.execution import (
    MEMORY_FORMATS,
    PRECISIONS,
    Execution,
    Prepared,
    exact_float32,
    precisions,
)

PLAIN = Execution(fuse=False, memory_format="contiguous")
DEFAULT = (PLAIN.precision, PLAIN.memory_format)
EPS, STEP = 8 / 255, 2 / 255
STEPS = 50
"""Steps of an attack, for images a second."""
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the models."""
MODELS = ["resnet50", "vit_small_patch16_224", "convnext_tiny", "efficientnet_b2", "halonet50ts"]
CONF = Path(__file__).parents[2] / "conf"
REFERENCE = "torchattacks-style loop"


@dataclass(frozen=True)
class Way:
    """One way to attack a batch."""

    method: str
    precision: str
    memory_format: str
    run: Callable[[int], Tensor]  # attacks with a number of steps
    keeps: bool = True  # whether freed memory stays in the process, as in netkin's passes
    setup: float = 0.0  # seconds before the first step, which only compiling takes


def ways(classifier: Classifier, pixels: Tensor, labels: Tensor, compiled: bool) -> list[Way]:
    """The ways that are compared on one model. Libraries run unchanged: float32, contiguous."""
    compared = [
        Way(REFERENCE, *DEFAULT, _torchattacks_style(classifier, pixels, labels), keeps=False),
        *_libraries(classifier, pixels, labels),
        Way("craft, nothing fused", *DEFAULT, _craft(classifier, PLAIN, pixels, labels)),
    ]
    for precision in precisions(gpu=pixels.device.type == "cuda"):
        for memory_format in MEMORY_FORMATS:
            execution = Execution(precision, memory_format=memory_format)
            how = (precision, memory_format)
            compared += [
                Way("bare loop", *how, _bare(classifier, execution, pixels, labels)),
                Way("craft", *how, _craft(classifier, execution, pixels, labels)),
            ]
        if compiled:
            execution = Execution(precision, compile=True)
            start = time.perf_counter()
            run = _craft(classifier, execution, pixels, labels)
            setup, how = time.perf_counter() - start, (precision, execution.memory_format)
            compared.append(Way("craft, compiled", *how, run, setup=setup))
    return compared


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
    model = Prepared(classifier, execution, pixels)
    keys = [str(i) for i in range(len(pixels))]

    def run(steps: int) -> Tensor:
        attack = PGD(EPS, STEP, steps, random_start=False)
        with frozen(model) as fast, exact_float32(execution.precision):
            return attack.perturb(fast, pixels, labels, keys)

    return run


def _torchattacks_style(
    classifier: Classifier, pixels: Tensor, labels: Tensor
) -> Callable[[int], Tensor]:
    """The loop of torchattacks 3.5's PGD, rewritten; parameters require gradients, as there."""
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


def installed(package: str) -> Any | None:
    """A package, imported; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # foolbox uses SciPy's old names
            return importlib.import_module(package)
    except ImportError:
        return None


def _libraries(classifier: Classifier, pixels: Tensor, labels: Tensor) -> Iterator[Way]:
    """foolbox and torchattacks, where they are installed."""
    model = copy.deepcopy(classifier).eval()
    if (foolbox := installed("foolbox")) is not None:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
        goal = foolbox.criteria.Misclassification(labels)

        def with_foolbox(steps: int) -> Tensor:
            attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
            return attack.run(wrapped, pixels, goal, epsilon=EPS)

        yield Way("foolbox", *DEFAULT, with_foolbox, keeps=False)
    if (torchattacks := installed("torchattacks")) is not None:

        def with_torchattacks(steps: int) -> Tensor:
            return torchattacks.PGD(model, EPS, STEP, steps, random_start=False)(pixels, labels)

        yield Way("torchattacks", *DEFAULT, with_torchattacks, keeps=False)


def timed(compared: Sequence[Way], rounds: int, steps: int) -> list[float]:
    """Median seconds of a step, for each way: in turn, after a warm-up."""
    times: list[list[float]] = [[] for _ in compared]
    keeps = None
    for number in range(rounds + 1):
        for way, steps_seconds in zip(compared, times, strict=True):
            if way.keeps != keeps:
                keeps = way.keeps
                keep_freed(keeps)
                way.run(1)
            seconds = seconds_of(lambda way=way: way.run(steps), device_of("auto"))
            if number:  # the first round is the warm-up
                steps_seconds.append(seconds / steps)
    keep_freed()
    return [statistics.median(steps_seconds) for steps_seconds in times]


def rates(
    name: str, compared: Sequence[Way], seconds: Sequence[float], images: int
) -> pl.DataFrame:
    """One row a way: model, method, precision, memory_format, images, ms_a_step, images_per_second
    (of 50 steps), the speed as a multiple of that of the bare loop in the same precision and format
    and of the torchattacks-style loop, and setup_seconds (the time to compile, once)."""
    bare = {
        (way.precision, way.memory_format): elapsed
        for way, elapsed in zip(compared, seconds, strict=True)
        if way.method == "bare loop"
    }
    return pl.DataFrame(
        [
            {
                "model": name,
                "method": way.method,
                "precision": way.precision,
                "memory_format": way.memory_format,
                "images": images,
                "ms_a_step": 1e3 * elapsed,
                "images_per_second": images / elapsed / STEPS,
                "times_bare_loop": bare[way.precision, way.memory_format] / elapsed,
                "times_torchattacks_style": seconds[0] / elapsed,
                "setup_seconds": way.setup,
            }
            for way, elapsed in zip(compared, seconds, strict=True)
        ]
    )


def attack_rates(
    name: str, attacks: Sequence[str], classifier: Classifier, pixels: Tensor, rounds: int
) -> pl.DataFrame:
    """One row an attack of conf/attack: model, attack, images, images_per_second (of the fastest
    round). Attacks are timed in turn, so that a busy machine slows them equally."""
    keys = [str(i) for i in range(len(pixels))]
    labels = torch.arange(len(pixels), device=pixels.device)
    fast, seconds = Prepared(classifier, Execution(), pixels), dict[str, list[float]]()
    for _ in range(rounds):
        for attack in attacks:
            made = configured(attack)
            with frozen(fast) as model:
                work = partial(made.perturb, model, pixels, labels, keys)
                seconds.setdefault(attack, []).append(seconds_of(work, pixels.device))
    rows = [(name, a, len(pixels), len(pixels) / min(s)) for a, s in seconds.items()]
    return pl.DataFrame(rows, ["model", "attack", "images", "images_per_second"], orient="row")


def configured(name: str) -> Attack:
    """The attack of conf/attack/NAME.yaml at ImageNet's eps."""
    dataset = OmegaConf.load(CONF / "dataset" / "imagenet.yaml")
    settings = {
        "dataset": {"eps": dataset.eps, "step_size": dataset.step_size},
        "attack": OmegaConf.load(CONF / "attack" / f"{name}.yaml"),
    }
    return instantiate(OmegaConf.create(settings).attack)


def with_random_weights(name: str, device: str) -> tuple[Classifier, int]:
    """A timm model with random weights, and its input size."""
    import timm

    torch.manual_seed(0)
    net: Any = timm.create_model(name, num_classes=1000)
    classifier = Classifier(net, name, HALF, HALF)
    size = int(net.pretrained_cfg["input_size"][-1])
    return classifier.eval().requires_grad_(False).to(device), size


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A step of the attack against other loops.")
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm's names")
    parser.add_argument("--images", type=int, help="in a batch: 8, or 64 on a GPU")
    parser.add_argument("--steps", type=int, default=2, help="of the attack, in each timing")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--compile", action="store_true", help="time torch.compile, too")
    parser.add_argument("--attacks", nargs="+", help="of conf/attack, to time instead")
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    options = parser.parse_args(arguments)
    device = device_of("auto")
    images = options.images or (64 if device.type == "cuda" else 8)
    tables = []
    for name in options.models:
        classifier, size = with_random_weights(name, device.type)
        pixels = torch.rand(images, 3, size, size, device=device)
        if options.attacks:
            tables.append(attack_rates(name, options.attacks, classifier, pixels, options.rounds))
            continue
        labels = torch.arange(images, device=device)
        compared = ways(classifier, pixels, labels, options.compile)
        seconds = timed(compared, options.rounds, options.steps)
        tables.append(rates(name, compared, seconds, images))
    table = pl.concat(tables)
    if options.out:
        table.write_csv(options.out)
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_width_chars=200, float_precision=3):
        print(table)


if __name__ == "__main__":
    main()
