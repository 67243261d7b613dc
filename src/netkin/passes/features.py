"""What other similarity measures need of a member, stored shard by shard.

Features are the input of the last layer; gradients are those of the loss with respect to pixels;
plane predictions are the classes of points on planes through triplets of images.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from netkin.attacks.frozen import frozen
from netkin.errors import UserError
from netkin.jobs.devices import fastest
from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.model import Model
from netkin.results import Results
from netkin.runner import Batches, Runner
from netkin.store.files import read_tensors, write_tensors
from netkin.store.layout import Folder, shard_file
from netkin.zoo.build import Classifier

MARGIN = 0.1
"""How far a plane's grid extends beyond the triplet, in lengths of its sides."""
PER_SHARD = 20
"""Triplets in a shard."""


@dataclass(frozen=True)
class Sample:
    """The images and planes that the measures are computed on.

    Attributes:
        positions: of images in the subset, in order.
        triplets: of positions in the subset: planes through (x, y, z).
        grid: points a side; grid * grid points a plane.
    """

    positions: tuple[int, ...]
    triplets: tuple[tuple[int, int, int], ...]
    grid: int


def draw_sample(images: int, most: int, triplets: int, grid: int, seed: int) -> Sample:
    """At most `most` of a subset's images, and triplets of different ones of these.

    The first image of a triplet is not used again as one until all others were. Raises UserError
    for fewer than 3 images.
    """
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.permutation(images)[:most])
    if len(positions) < 3:
        raise UserError(f"planes go through 3 images, there are {len(positions)}; use more images")
    first = np.concatenate(
        [rng.permutation(positions) for _ in range(-(-triplets // len(positions)))]
    )[:triplets]
    chosen = []
    for image in first.tolist():
        others = rng.choice(positions[positions != image], 2, replace=False)
        chosen.append((image, int(others[0]), int(others[1])))
    return Sample(tuple(positions.tolist()), tuple(chosen), grid)


@dataclass(frozen=True)
class Kind:
    """A kind of data on a member: its name, and what it depends on as JSON."""

    name: str
    identity: dict[str, Any]


def kinds(sample: Sample) -> list[Kind]:
    """The kinds for a sample: features, gradients, planes."""
    images = {"images": list(sample.positions)}
    planes = {"triplets": [list(t) for t in sample.triplets], "grid": sample.grid, "margin": MARGIN}
    return [Kind("features", images), Kind("gradients", images), Kind("planes", planes)]


def shards(results: Results, sample: Sample, kind: Kind) -> list[list[Any]]:
    """The units of work: positions of images, or triplets."""
    if kind.name == "planes":
        t = list(sample.triplets)
        return [t[i : i + PER_SHARD] for i in range(0, len(t), PER_SHARD)]
    chosen = set(sample.positions)
    parts = [[i for i in shard if i in chosen] for shard in results.evaluation.shards]
    return [part for part in parts if part]


def missing(results: Results, sample: Sample, model: Model, kind: Kind) -> list[int]:
    """The shards that are not stored. Raises UserError when another model made the others."""
    folder = results.measure_folder(kind.name, kind.identity, model)
    numbers = range(len(shards(results, sample, kind)))
    if not folder.path.exists():
        return list(numbers)
    folder.claim()
    return [shard for shard in numbers if not shard_file(folder, shard).is_file()]


def read(results: Results, sample: Sample, model: Model, kind: Kind) -> Tensor:
    """All stored data of a kind on a member, [n, ...]. Raises StoreError for a damaged file."""
    folder = results.measure_folder(kind.name, kind.identity, model)
    paths = [shard_file(folder, i) for i in range(len(shards(results, sample, kind)))]
    return torch.cat([read_tensors(path)[kind.name] for path in paths])


def read_some(results: Results, model: Model, kind: Kind, shard: int, part: slice) -> Tensor:
    """A part of a stored shard, [n, ...]."""
    folder = results.measure_folder(kind.name, kind.identity, model)
    with safe_open(shard_file(folder, shard), "pt") as file:
        return file.get_slice(kind.name)[part]


class MeasurePass(pl.LightningModule):
    """Computes and stores one kind of data on one member."""

    def __init__(
        self,
        classifier: Classifier,
        batch_size: int,
        kind: Kind,
        compute: Callable[[Classifier, dict], Tensor],
        into: Folder,
        advance: Advance,
    ):
        super().__init__()
        self.classifier, self.kind = classifier, kind
        self.compute, self.into, self.advance = compute, into, advance
        self.batches = Batches(batch_size, classifier.name)

    def predict_step(self, batch: dict) -> None:
        """Compute and store one shard."""
        n = batch["units"]
        parts = self.batches.run(
            n, lambda b: self.compute(self.classifier, {k: v[b] for k, v in batch["of"].items()})
        )
        values = torch.cat([part.cpu() for part in parts])
        if values.is_floating_point() and not values.isfinite().all():
            raise UserError(
                f"{self.classifier.name} gives NaN or infinite {self.kind.name}; are its weights "
                "intact?"
            )
        write_tensors(shard_file(self.into, batch["shard"]), {self.kind.name: values})
        self.advance(n)


def measure_pass(
    results: Results,
    runner: Runner,
    sample: Sample,
    model: Model,
    kind: Kind,
    advance: Advance,
) -> Result:
    """Compute and store a kind's missing shards. Raises UserError for values that are not finite.

    The `images` of the result are triplets where the kind is planes.
    """
    start = time.perf_counter()
    into = results.measure_folder(kind.name, kind.identity, model).claim()
    parts, view, labels = shards(results, sample, kind), model.view, results.evaluation.labels
    todo = missing(results, sample, model, kind)

    def load(shard: int) -> dict:
        units = parts[shard]
        if kind.name == "planes":
            flat = torch.tensor(units)  # [n, 3]
            corners = results.images_at(view, flat.flatten().tolist())
            of = {"corners": corners.unflatten(0, flat.shape)}
        else:
            of = {"pixels": results.images_at(view, units), "labels": labels[units]}
        return {"shard": shard, "units": len(units), "of": of}

    compute = {
        "features": features,
        "gradients": gradients,
        "planes": partial(planes, grid=sample.grid, most=runner.batch_size),
    }[kind.name]
    classifier = model.build()
    with frozen(classifier):
        module = MeasurePass(classifier, runner.batch_size, kind, compute, into, advance)
        runner.run(module, todo, load)
    return Result(images=sum(len(parts[s]) for s in todo), seconds=time.perf_counter() - start)


def time_passes(results: Results, runner: Runner, model: Model, images: int) -> dict[str, float]:
    """Seconds an image of features and gradients, in a batch of so many: the best of three."""
    device = runner.device
    classifier = model.build().to(device)
    pixels = results.images_at(model.view, range(images)).to(device)
    of = {"pixels": pixels, "labels": results.evaluation.labels[:images].to(device)}
    with frozen(classifier):
        return {
            name: fastest(lambda f=compute: f(classifier, of).cpu(), device) / images
            for name, compute in (("features", features), ("gradients", gradients))
        }


def features(classifier: Classifier, of: dict[str, Tensor]) -> Tensor:
    """The input of the last layer, [n, D] float32: timm's pre-logits."""
    x = classifier.normalise(of["pixels"].float() / 255)
    net: Any = classifier.net
    with torch.inference_mode():
        if hasattr(net, "forward_head"):
            inputs = net.forward_head(net.forward_features(x), pre_logits=True)
        else:
            inputs = _input_of_last_linear(net, x)
    return inputs.flatten(1).float()


def _input_of_last_linear(net: nn.Module, x: Tensor) -> Tensor:
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(
            f"{type(net).__name__} has no linear layer, whose input its features would be; leave "
            "it out of the members"
        )
    last = layers[-1]
    calls: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    try:
        net(x)
    finally:
        handle.remove()
    return calls[-1]


def gradients(classifier: Classifier, of: dict[str, Tensor]) -> Tensor:
    """The direction of the cross-entropy's gradient at each image, [n, 3, H, W] float16, length 1.

    It is computed from the log-odds of the true class, z_y - ln sum over k != y of exp z_k, of
    which the cross-entropy is a decreasing function: the direction is the same, without the
    underflow that makes a confident model's cross-entropy flat. Zero where the gradient is.
    """
    pixels, labels = of["pixels"].float() / 255, of["labels"]
    with torch.enable_grad():
        pixels.requires_grad_(True)
        logits = classifier(pixels)
        own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        rest = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad((rest - logits[own]).sum(), pixels)
    length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return (gradient / length[:, None, None, None]).half()


def planes(classifier: Classifier, of: dict[str, Tensor], grid: int, most: int) -> Tensor:
    """Predicted classes on planes through triplets, [n, grid * grid] int32.

    Points are x + a (y - x) + b (z - x), a and b from -0.1 to 1.1. Somepalli et al. take a
    rectangle around the triplet instead; this parallelogram lies in the same plane and needs no
    angles, which differ between models of different geometries. Points may leave [0, 1], as theirs
    do.
    """
    x, y, z = (of["corners"].float() / 255).unbind(1)  # [n, 3, H, W] each
    steps = torch.linspace(-MARGIN, 1 + MARGIN, grid, device=x.device)
    a, b = torch.cartesian_prod(steps, steps).T
    classes = []
    with torch.inference_mode():
        for i in range(len(x)):
            predictions = []
            for start in range(0, len(a), most):
                u, v = (c[start : start + most, None, None, None] for c in (a, b))
                points = x[i] + u * (y[i] - x[i]) + v * (z[i] - x[i])
                predictions.append(classifier(points).argmax(dim=1))
            classes.append(torch.cat(predictions).int())
    return torch.stack(classes)


AT_ONCE = 10
"""Images whose gradients are compared at once: 415 MB for 69 models of 224 x 224 pixels."""


def gradient_cosines(
    results: Results, models: Sequence[Model], sample: Sample, kind: Kind
) -> NDArray[np.float32]:
    """Cosines of the gradients of N members at each of I images, [I, N, N] in [-1, 1].

    Gradients of members with larger inputs are first resized to the smallest input size. Only a few
    images are in memory at a time.

    Args:
        results, sample: whose gradients are stored.
        models: N of them.
        kind: "gradients" of `kinds`.
    """
    size = min(model.view.input_size for model in models)
    cosines = []
    for shard, images in enumerate(shards(results, sample, kind)):
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            rows = []
            for model in models:
                gradients = read_some(results, model, kind, shard, part).float()
                if gradients.shape[-1] != size:
                    gradients = interpolate(
                        gradients, (size, size), mode="bilinear", antialias=True
                    )
                rows.append(normalize(gradients.flatten(1), eps=1e-20))
            x = torch.stack(rows, dim=1)  # [images, N, 3 * size * size]
            cosines.append((x @ x.mT).numpy())
    return np.concatenate(cosines)
