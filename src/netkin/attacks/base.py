"""What an attack is, what it may state about itself, and what all use: a frozen model, and random
numbers that are fixed by an image's key."""

import copy
import hashlib
import inspect
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netkin.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """Passes through the model for one image.

    Attributes:
        forward: forward passes.
        backward: backward passes down to the pixels; one that ends higher up counts in part.
    """

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both, as equals: without gradients of parameters they take about the same time."""
        return self.forward + self.backward


class Attack(ABC):
    """Makes adversarial images. Only `perturb` has to be defined; the rest has defaults.

    Attributes:
        name: what the store, tables and dashboards call it.
        identity: the arguments that identify its results in the store, as JSON.
        eps: radius of the L-infinity ball around the clean image, in pixels of [0, 1], in which
            stored images are kept; None for an attack without one.
        looks_inside: whether it hooks into the model's modules, so that the model must not be
            compiled.
        selective: whether some models cannot be its source; `unfit` tells which.
    """

    name: str = ""
    identity: Mapping[str, Any] = {}
    eps: float | None = None
    looks_inside: bool = False
    selective: bool = False

    @abstractmethod
    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """Adversarial images for a batch.

        Args:
            model: pixels [B, 3, H, W] in [0, 1] to logits [B, K]; during the call it is in eval
                mode and its parameters take no gradients.
            pixels: [B, 3, H, W] in [0, 1], all classified correctly.
            labels: [B] int64.
            keys: one text an image, the same in every run. Random numbers drawn from
                `netkin.attacks.base.generator(seed, key)` do not depend on batch or device.

        Returns:
            [B, 3, H, W] in [0, 1], on the device of `pixels`.
        """

    def unfit(self, model: nn.Module) -> str | None:
        """Why a `netkin.zoo.build.Classifier` cannot be a source, as in "is no ViT".

        None if it can. Called before any work starts, and the model may have no weights yet.
        """
        return None

    def origin(self) -> Mapping[str, Any]:
        """What identifies its results beside its arguments, such as a package's version."""
        return {}

    def passes(self, model: nn.Module, classes: int) -> Passes | None:
        """The most passes that one image takes on a model with K = `classes` logits.

        None where that is unknown: then the whole attack is timed when a run is planned.
        """
        return None

    def shortened(self, steps: int) -> "Attack":
        """This attack with at most so many steps, to be timed in its place.

        The whole attack takes longer by the ratio of `passes`. An attack of which that does not
        hold, as one that stops when it has fooled an image, returns itself.
        """
        return self


class Stepwise(Attack):
    """An attack whose time is in proportion to `steps`."""

    steps: int

    def shortened(self, steps: int) -> "Stepwise":
        short = copy.copy(self)
        short.steps = min(steps, self.steps)
        return short


class Plain(Attack):
    """An object with `perturb` as an `Attack`; of the rest it keeps what the object defines."""

    def __init__(self, attack: Any):
        self.attack = attack
        self.selective = hasattr(attack, "unfit")
        for name in ("eps", "looks_inside", "unfit", "passes", "shortened"):
            if hasattr(attack, name):
                setattr(self, name, getattr(attack, name))

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        return self.attack.perturb(model, pixels, labels, keys)


def as_attack(attack: Any, name: str = "", identity: Mapping[str, Any] | None = None) -> Attack:
    """Any object with `perturb` as an `Attack`, a copy with this name and identity if given.

    To the identity of an attack that is not netkin's a hash of its module's text is added: edited,
    it is another attack. Raises UserError for an object without `perturb`.
    """
    made_by = (identity or {}).get("_target_", "").rpartition(".")[0]
    module = made_by or type(attack).__module__
    if not isinstance(attack, Attack):
        if not callable(getattr(attack, "perturb", None)):
            raise UserError(
                f"{type(attack).__name__} is no attack: it must have a method "
                "perturb(model, pixels, labels, keys); see netkin.attacks"
            )
        attack = Plain(attack)
    elif name:
        attack = copy.copy(attack)
    if name:
        source = attack.origin()
        if not module.startswith("netkin."):
            source = {**source, "_source_sha256": text_sha256(module)}
        attack.name, attack.identity = name, {**(identity or {}), **source}
    return attack


def text_sha256(module: str) -> str | None:
    """The hash of a module's text; None where there is none, as of a console's."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()
    except (OSError, TypeError, KeyError):
        return None


@cache
def warn_once(message: str) -> None:
    log.warning(message)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with parameters that take no gradient, restored on leaving.

    In eval mode no buffer changes, so modes and requires_grad are all that has to be restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in gradients:
            parameter.requires_grad_(required)


def generator(seed: int, key: str) -> np.random.Generator:
    """A generator fixed by a seed and a text such as an image's id."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def uniform(shape: Sequence[int], bound: float, seed: int, keys: Sequence[str]) -> Tensor:
    """Noise in [-bound, bound), [len(keys), *shape] float32 on the CPU, a generator a key."""
    draws = [generator(seed, key).random(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(draws)).mul_(2 * bound).sub_(bound)
