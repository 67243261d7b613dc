"""What the store holds of a setting: what is done, what is missing, and the results."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from netkin.passes.setting import Setting
from netkin.similarity import Outcomes
from netkin.store.files import digest, read_metadata, read_tensors
from netkin.store.layout import shard_path
from netkin.store.outcomes import OutcomeStore
from netkin.zoo.execution import DEFAULT_PRECISION
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Source:
    """A member and its shards that are not stored yet; `part` names one process's part of them."""

    member: Member
    shards: tuple[int, ...]
    part: str = ""

    @property
    def name(self) -> str:
        """What the display calls it."""
        return self.member.name + self.part

    def split(self, parts: int) -> "list[Source]":
        """The shards dealt to at most `parts` processes."""
        dealt = [self.shards[i::parts] for i in range(min(parts, len(self.shards)))]
        return [
            replace(self, shards=shards, part=_part(i, len(dealt)))
            for i, shards in enumerate(dealt)
        ]


@dataclass(frozen=True)
class Target:
    """A member and the sources on whose images it has not been evaluated; `part` as of a Source.

    It is evaluated on the first `images` of the subset; None for all.
    """

    member: Member
    sources: tuple[Member, ...]
    part: str = ""
    images: int | None = None

    @property
    def name(self) -> str:
        """What the display calls it."""
        return self.member.name + self.part

    def split(self, parts: int) -> "list[Target]":
        """The sources dealt to at most `parts` processes."""
        dealt = [self.sources[i::parts] for i in range(min(parts, len(self.sources)))]
        return [
            replace(self, sources=sources, part=_part(i, len(dealt)))
            for i, sources in enumerate(dealt)
        ]


def _part(number: int, parts: int) -> str:
    return f", part {number + 1} of {parts}" if parts > 1 else ""


def is_clean(setting: Setting, member: Member) -> bool:
    """Whether the member's clean logits are stored. Raises UserError if another model's are."""
    entry = setting.clean_entry(member)
    return entry.path.exists() and (entry.claim().path / "logits.safetensors").is_file()


def logits_path(setting: Setting, member: Member) -> Path:
    """The file of a member's clean logits."""
    return setting.clean_entry(member).path / "logits.safetensors"


def logits(setting: Setting, member: Member) -> Tensor:
    """A member's stored clean logits, [I, K] float32."""
    return read_tensors(logits_path(setting, member))["logits"]


@contextmanager
def logits_by_block(
    setting: Setting, members: Sequence[Member]
) -> Iterator[Callable[[slice], NDArray[np.float32]]]:
    """A reader of M members' stored clean logits: slice of images -> [M, images, K] float32."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(logits_path(setting, member), "np")) for member in members
        ]
        parts = [file.get_slice("logits") for file in files]
        yield lambda block: np.stack([part[block] for part in parts])


def predictions(setting: Setting, member: Member) -> Tensor:
    """The classes that the member predicts for the clean images, [I] int64."""
    return logits(setting, member).argmax(dim=1)


def correct(setting: Setting, member: Member) -> Tensor:
    """Which clean images the member classifies correctly, [I] bool."""
    return predictions(setting, member) == setting.labels


def params(setting: Setting, member: Member) -> int:
    """Number of parameters of a member whose clean pass is done."""
    return int(read_metadata(logits_path(setting, member))["params"])


def missing_shards(setting: Setting, member: Member, images: int | None = None) -> list[int]:
    """Shards of the subset, or of its first images, that are still to be crafted.

    Raises UserError when another model or attack made the others.
    """
    entry = setting.adversarial_entry(member)
    shards = range(len(setting.shards if images is None else setting.shards_of(images)))
    if not entry.path.exists():
        return list(shards)
    entry.claim()
    return [shard for shard in shards if not shard_path(entry, shard).is_file()]


def adversarial(setting: Setting, member: Member, shard: int) -> tuple[Tensor, Tensor]:
    """A stored shard: (images [n, 3, H, W], their positions in the subset [n])."""
    tensors = read_tensors(shard_path(setting.adversarial_entry(member), shard))
    return tensors["images"], tensors["index"]


def outcome_store(setting: Setting) -> OutcomeStore:
    """The table of outcomes."""
    transfer = {"interpolation": setting.interpolation}
    if setting.precision != DEFAULT_PRECISION:
        transfer["precision"] = setting.precision
    return setting.stored_attack.outcomes(transfer)


def source_hash(setting: Setting, source: Member) -> str:
    """The hash of what crafted a source's images, which is stored with outcomes."""
    return digest(setting.adversarial_entry(source).identity)


def target_hash(setting: Setting, target: Member) -> str:
    """The hash of a target, which is stored with outcomes."""
    return digest(setting.model(target))


def covered(setting: Setting, target: Member, sources: Sequence[Member]) -> dict[str, int]:
    """How many of the subset's images, from the first on, a target was evaluated on, by source.

    Raises OtherContents when other models made outcomes of these names.
    """
    hashes = {source.name: source_hash(setting, source) for source in sources}
    return outcome_store(setting).covered(target.name, target_hash(setting, target), hashes)


def missing_sources(
    setting: Setting,
    members: Sequence[Member],
    sources: Sequence[Member] | None = None,
    images: int | None = None,
) -> list[Target]:
    """Each target that has still to be run on some sources, with these.

    The sources are the members themselves, unless given; all images are needed, or the first so
    many. Raises UserError when other models made outcomes of these names.
    """
    needed = len(setting.subset) if images is None else images
    sources = list(sources or members)
    table = outcome_store(setting)
    hashes = {source.name: source_hash(setting, source) for source in sources}
    targets = []
    for target in members:
        done = table.covered(target.name, target_hash(setting, target), hashes)
        missing = tuple(source for source in sources if done[source.name] < needed)
        if missing:
            targets.append(Target(target, missing, images=images))
    return targets


def fooled(
    setting: Setting, sources: Sequence[Member], targets: Sequence[Member]
) -> NDArray[np.bool_]:
    """Which adversarial images of each source fool each target, [sources, targets, I].

    False where source or target is wrong on the clean image: there it was not evaluated.
    """
    table, ids = outcome_store(setting), setting.subset.ids
    names = [source.name for source in sources]
    found = outcome_array((len(sources), len(targets), len(ids)))
    for i, target in enumerate(targets):
        found[:, i] = table.fooled(target.name, names, ids)
    return found


def fooled_by(setting: Setting, source: Member, targets: Sequence[Member]) -> NDArray[np.bool_]:
    """Which of a source's adversarial images fool each target, [targets, I]; see `fooled`."""
    return fooled(setting, [source], targets)[0]


def outcomes(
    setting: Setting,
    members: Sequence[Member],
    sources: Sequence[Member] | None = None,
    images: int | None = None,
) -> Outcomes:
    """The outcomes of these members as arrays, on all images or the first so many.

    Where only some of them are sources, the rows of the others are all False and mean nothing.
    """
    n = len(setting.subset) if images is None else images
    found = outcome_array((len(members), len(members), n))
    position = {member.name: i for i, member in enumerate(members)}
    names = [source.name for source in sources or members]
    rows = [position[name] for name in names]
    table = outcome_store(setting)
    for i, target in enumerate(members):  # one at a time: all rows of a large zoo fill the memory
        found[rows, i] = table.fooled(target.name, names, setting.subset.ids)[:, :n]
    return Outcomes(
        members=tuple(position),
        image_ids=setting.subset.ids[:n],
        correct=torch.stack([correct(setting, member)[:n] for member in members]).numpy(),
        fooled=found,
    )


IN_MEMORY = 2**30
"""Bytes of outcomes above which they are kept in a temporary file."""


def outcome_array(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """An array of False, [N, N, I]; a large one is mapped from a file, whose pages the system can
    drop."""
    if math.prod(shape) <= IN_MEMORY:
        return np.zeros(shape, dtype=bool)
    with tempfile.TemporaryFile(prefix="netkin-outcomes-") as file:
        return np.memmap(file, dtype=bool, mode="w+", shape=shape)
