"""What the passes share: the images, the models' task, the attack and the store."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netkin.attacks import Attack
from netkin.data import views
from netkin.data.images import Images
from netkin.data.subset import Subset
from netkin.data.views import View
from netkin.errors import and_more
from netkin.jobs.devices import device_of
from netkin.passes.evaluator import Evaluator
from netkin.passes.tune import Choice
from netkin.store.files import file_sha256, read_tensors
from netkin.store.layout import AttackStore, Entry, Store, SubsetStore, shard_path
from netkin.zoo.build import (
    Classifier,
    Task,
    build,
    identity,
    own_weights_sha256,
    preprocessing,
)
from netkin.zoo.execution import DEFAULT_PRECISION, Execution
from netkin.zoo.member import Member
from netkin.zoo.published import WeightsFile


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
class Setting:
    """One evaluation.

    Attributes:
        images, subset: the dataset, and the images of it that are evaluated.
        task: what models are built for.
        attack: how adversarial images are crafted.
        store: where results are stored.
        shard_size: images in a unit of work; a shard is stored whole or not at all.
        batch_size: images through a model at once; craft's own may be another, see `choice`.
        choice: how models are run. Its precision is that of attacks alone, and part of their
            identity.
        dtype: of stored adversarial images, "uint8" or "float32".
        interpolation: for a target of another input size, "bilinear" or "bicubic" (antialiased).
        precision: one of TARGET_PRECISIONS, in which targets are evaluated on adversarial images,
            and part of the outcomes' identity. Predictions on clean images and under noise are in
            float32 whatever it is: which images are compared does not depend on it.
        accelerator: as of Lightning's Trainer: "auto", "cpu", "gpu".
        loader: how images are loaded.
        published: the files of members' published weights; see `netkin.zoo.published`.
    """

    images: Images
    subset: Subset
    task: Task
    attack: Attack
    store: Store
    shard_size: int = 100
    batch_size: int = 100
    dtype: str = "uint8"
    interpolation: str = "bilinear"
    precision: str = DEFAULT_PRECISION
    accelerator: str = "auto"
    loader: Loader = Loader()
    choice: Choice = field(default_factory=Choice)
    published: Mapping[str, WeightsFile] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """What models run on in this process."""
        return device_of(self.accelerator)

    @cached_property
    def shards(self) -> list[range]:
        """Positions in the subset, shard by shard."""
        n, size = len(self.subset), self.shard_size
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    def shards_of(self, images: int) -> list[range]:
        """The shards that hold the subset's first images."""
        return [shard for shard in self.shards if shard.start < images]

    @cached_property
    def labels(self) -> Tensor:
        """[I] int64."""
        return torch.tensor(self.subset.labels)

    def keys(self, source: Member, positions: Sequence[int]) -> list[str]:
        """What the random numbers of a source's images are drawn from, beside the attack's seed.

        One key an image, by its position in the subset.
        """
        return [f"{source.name}\n{self.subset.ids[i]}" for i in positions]

    def weights(self, member: Member) -> Path | None:
        """The member's weights file; None where published weights have not been fetched, or the
        member's own class or function brings them."""
        if member.checkpoint:
            return Path(member.checkpoint).expanduser()
        if member.uses_published(self.task):
            file = self.published.get(member.name)
            return None if file is None else file.path
        return self.store.weights(self.task.dataset, member.name)

    def has_weights(self, member: Member) -> bool:
        """Whether the member can be run: its weights are there, or it brings them."""
        file = self.weights(member)
        if file is None:
            return bool(member.target) and member.uses_published(self.task)
        return file.is_file()

    def model(self, member: Member) -> dict[str, Any]:
        """The member's identity in the store: architecture, arguments, weights, preprocessing."""
        return identity(member, self.task, self._weights_sha256(member))

    def _weights_sha256(self, member: Member) -> str:
        if member.name in self.published:
            return self.published[member.name].sha256
        if member.target and member.uses_published(self.task):
            return _own_sha256(repr(member), member, self.task)
        file = self.weights(member)
        assert file is not None, f"weights of {member.name} have not been fetched"
        return _sha256(file)

    def build(self, member: Member) -> Classifier:
        """The member with its weights. Raises UserError where they do not fit."""
        return build(member, self.task, self.weights(member))

    def evaluator(self, classifier: Classifier, precision: str = DEFAULT_PRECISION) -> Evaluator:
        """Runs a classifier on images: in a precision, and otherwise by `choice`."""
        chosen = self.choice.execution
        return Evaluator(classifier, Execution(precision, chosen.fuse, chosen.memory_format))

    def view(self, member: Member) -> View:
        """The member's resize and crop."""
        return preprocessing(member, self.task).view

    def view_entry(self, view: View) -> Entry:
        """The folder of the decoded images."""
        return self.stored.view(asdict(view), self.shard_size)

    def pixels(self, view: View, shard: int) -> Tensor:
        """A shard of the subset through a view, [n, 3, H, W] uint8; decoded if it is not stored."""
        path = shard_path(self.view_entry(view), shard)
        if path.is_file():
            return read_tensors(path)["pixels"]
        positions = [self.subset.positions[i] for i in self.shards[shard]]
        return views.load(self.images, positions, view)

    def images_at(self, view: View, positions: Sequence[int]) -> Tensor:
        """Images of the subset at any positions, through a view, [n, 3, H, W] uint8."""
        size = self.shard_size
        loaded = {shard: self.pixels(view, shard) for shard in {p // size for p in positions}}
        return torch.stack([loaded[p // size][p % size] for p in positions])

    @cached_property
    def stored(self) -> SubsetStore:
        """The subset's part of the store."""
        return self.store.subset(self.task.dataset, self.subset)

    @cached_property
    def stored_attack(self) -> AttackStore:
        """The attack's part of the store."""
        identity = {**self.attack.identity, "dtype": self.dtype}
        if self.choice.execution.precision != DEFAULT_PRECISION:
            identity["precision"] = self.choice.execution.precision
        return self.stored.attack(self.attack.name, identity)

    def clean_entry(self, member: Member) -> Entry:
        """The folder of the member's clean logits."""
        return self.stored.clean(member.name, self.model(member))

    def adversarial_entry(self, member: Member) -> Entry:
        """The folder of the member's adversarial images."""
        return self.stored_attack.adversarial(member.name, self.model(member), self.shard_size)


@cache
def _sha256(path: Path) -> str:
    return file_sha256(path)


_own: dict[str, str] = {}


def _own_sha256(key: str, member: Member, task: Task) -> str:
    """The hash of weights that a member's class or function brings, computed once a process."""
    if key not in _own:
        _own[key] = own_weights_sha256(member, task)
    return _own[key]


def names(setting: Setting, positions: Sequence[int]) -> str:
    """The ids of the images at some positions of the subset, for a message; at most five."""
    return and_more([setting.subset.ids[i] for i in positions])
