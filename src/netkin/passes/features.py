"""What other similarity measures need of a member, stored shard by shard.

Features are the input of the last layer; gradients are those of the loss with respect to pixels.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from netkin.attacks.base import frozen
from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.passes import Item
from netkin.results import Results
from netkin.runner import Batches, Runner
from netkin.store.layout import Folder, shard_file
from netkin.zoo.build import Classifier


def draw_images(images: int, most: int, seed: int) -> tuple[int, ...]:
    """Positions of at most `most` of a subset's images, in order."""
    drawn = np.random.default_rng(seed).permutation(images)[:most]
    return tuple(np.sort(drawn).tolist())


@dataclass(frozen=True)
class Kind:
    """A kind of data on models.

    Attributes:
        name: features or gradients.
        positions: the images, in order.
    """

    name: str
    positions: tuple[int, ...]

    def folder(self, results: Results, model: Model) -> Folder:
        """Where a model's data are."""
        return results.measure_folder(self.name, {"images": list(self.positions)}, model)

    def shards(self, results: Results) -> list[list[int]]:
        """The units of work: positions of the images of each shard that has some."""
        chosen = set(self.positions)
        parts = [[i for i in shard if i in chosen] for shard in results.evaluation.shards]
        return [part for part in parts if part]

    def missing(self, results: Results, model: Model) -> list[int]:
        """The shards that are not stored. Raises UserError when another model made the others."""
        folder, numbers = self.folder(results, model), range(len(self.shards(results)))
        if not folder.path.exists():
            return list(numbers)
        folder.claim()
        return [shard for shard in numbers if not shard_file(folder, shard).is_file()]

    def read(self, results: Results, model: Model) -> Tensor:
        """A model's data, [n, ...]. Raises StoreError for a damaged file."""
        folder, numbers = self.folder(results, model), range(len(self.shards(results)))
        return torch.cat([folder.read(shard_file(folder, i))[self.name] for i in numbers])

    def compute(self, context: tuple[Results, Runner, Any], item: Item, advance: Advance) -> Result:
        """Compute and store a model's missing shards. Raises UserError for values not finite."""
        start, model, (results, runner, _) = time.perf_counter(), item.of_model(), context
        folder, parts = self.folder(results, model).claim(), self.shards(results)
        todo, labels = self.missing(results, model), results.evaluation.labels
        classifier, compute = model.build(), {"features": features, "gradients": gradients}
        batches = Batches(runner.batch_size, model.name)

        def load(shard: int) -> dict:
            units = parts[shard]
            of = {"pixels": results.images_at(model.view, units), "labels": labels[units]}
            return {"shard": shard, "of": of}

        def step(batch: dict) -> None:
            of, n = batch["of"], len(batch["of"]["labels"])
            found = batches.run(
                n, lambda b: compute[self.name](classifier, {k: v[b] for k, v in of.items()})
            )
            values = torch.cat([part.cpu() for part in found])
            if values.is_floating_point() and not values.isfinite().all():
                raise UserError(
                    f"{model.name} gives NaN or infinite {self.name}; are its weights intact?"
                )
            folder.write(shard_file(folder, batch["shard"]), {self.name: values})
            advance(n)

        with frozen(classifier):
            runner.run(step, todo, load, classifier)
        return Result(images=sum(len(parts[s]) for s in todo), seconds=time.perf_counter() - start)


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
    calls: list[Tensor] = []
    with layers[-1].register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0])):
        net(x)
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
        true = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        rest = logits.masked_fill(true, -torch.inf).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad((rest - logits[true]).sum(), pixels)
    length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return (gradient / length[:, None, None, None]).half()


AT_ONCE = 10
"""Images whose gradients are compared at once: 415 MB for 69 models of 224 x 224 pixels."""


def gradient_cosines(results: Results, models: Sequence[Model], kind: Kind) -> NDArray[np.float32]:
    """Cosines of the gradients of N members at each of I images, [I, N, N] in [-1, 1].

    Gradients of members with larger inputs are first resized to the smallest input size. Only a few
    images are in memory at a time.
    """
    size = min(model.view.input_size for model in models)

    def directions(model: Model, shard: int, part: slice) -> Tensor:
        with safe_open(shard_file(kind.folder(results, model), shard), "pt") as file:
            gradients = file.get_slice(kind.name)[part].float()
        if gradients.shape[-1] != size:
            gradients = interpolate(gradients, (size, size), mode="bilinear", antialias=True)
        return normalize(gradients.flatten(1), eps=1e-20)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for shard, images in enumerate(kind.shards(results)):
            for folder in (kind.folder(results, model) for model in models):
                folder.read(shard_file(folder, shard))  # its checksum and its owner, once
            for start in range(0, len(images), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                x = torch.stack([directions(model, shard, part) for model in models], dim=1)
                yield (x @ x.mT).numpy()  # x: [images, N, 3 * size * size]

    return np.concatenate(list(blocks()))
