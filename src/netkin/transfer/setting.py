"""What the passes share: the images, the members, the attack and where results are kept."""

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
from netkin.store.layout import (
    AttackStore,
    Entry,
    Store,
    SubsetStore,
    file_sha256,
    read_tensors,
    shard_path,
)
from netkin.transfer.judge import Judge
from netkin.transfer.tune import Choice
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
class AttackSpec:
    """An attack, the name it goes by, and the resolved config that identifies it."""

    name: str
    attack: Attack
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Loader:
    """How images are brought to a device.

    Attributes:
        workers: processes that load stored shards ahead of the model; 0 loads them in its process.
        prefetch: shards that each of them keeps ready.
        pin_memory: whether shards wait in page-locked memory, from which a GPU copies faster.
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
        images, subset: what is attacked.
        task: what models are built for.
        attack: with what.
        store: where results are kept.
        shard_size: images in a unit of work; a shard is stored whole or not at all.
        batch_size: images through a model at once; craft's own may be another, see `choice`.
        choice: how models are run. Its precision is that of attacks alone, and part of their
            identity: what models say of clean and adversarial images, they say in float32.
        dtype: of stored adversarial images, "uint8" or "float32".
        interpolation: for a target of another input size, "bilinear" or "bicubic" (antialiased).
        accelerator: as Lightning's Trainer takes it.
        loader: how images are brought to the device.
        published: the files of members' published weights; see `netkin.zoo.published`.
    """

    images: Images
    subset: Subset
    task: Task
    attack: AttackSpec
    store: Store
    shard_size: int = 100
    batch_size: int = 100
    dtype: str = "uint8"
    interpolation: str = "bilinear"
    accelerator: str = "auto"
    loader: Loader = Loader()
    choice: Choice = field(default_factory=Choice)
    published: Mapping[str, WeightsFile] = field(default_factory=dict)

    @cached_property
    def shards(self) -> list[range]:
        """Positions in the subset, shard by shard."""
        n, size = len(self.subset), self.shard_size
        return [range(start, min(start + size, n)) for start in range(0, n, size)]

    @cached_property
    def labels(self) -> Tensor:
        """[I] int64."""
        return torch.tensor(self.subset.labels)

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
        """The member's identity."""
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
        return build(member, self.task, self.weights(member))

    def judge(self, classifier: Classifier) -> Judge:
        """A classifier as it is asked about images: in float32, by `choice` for the rest."""
        chosen = self.choice.execution
        return Judge(classifier, Execution(fuse=chosen.fuse, memory_format=chosen.memory_format))

    def view(self, member: Member) -> View:
        """What the member sees of an image."""
        return preprocessing(member, self.task).view

    def view_entry(self, view: View) -> Entry:
        return self.stored.view(asdict(view), self.shard_size)

    def pixels(self, view: View, shard: int) -> Tensor:
        """A shard of the subset through a view, [n, 3, H, W] uint8; decoded if it is not stored."""
        path = shard_path(self.view_entry(view), shard)
        if path.is_file():
            return read_tensors(path)["pixels"]
        positions = [self.subset.positions[i] for i in self.shards[shard]]
        return views.load(self.images, positions, view)

    @cached_property
    def stored(self) -> SubsetStore:
        return self.store.subset(self.task.dataset, self.subset)

    @cached_property
    def stored_attack(self) -> AttackStore:
        identity = {**self.attack.identity, "dtype": self.dtype}
        if self.choice.execution.precision != DEFAULT_PRECISION:
            identity["precision"] = self.choice.execution.precision
        return self.stored.attack(self.attack.name, identity)

    def clean_entry(self, member: Member) -> Entry:
        return self.stored.clean(member.name, self.model(member))

    def adversarial_entry(self, member: Member) -> Entry:
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
    """Some images by id, for a message."""
    ids = [setting.subset.ids[i] for i in positions]
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
