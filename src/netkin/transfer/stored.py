"""What the store knows of a setting: what is done, what is missing, and the results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from netkin.similarity import Outcomes
from netkin.store.files import digest, read_metadata, read_tensors
from netkin.store.layout import OutcomeStore, shard_path
from netkin.transfer.setting import Setting
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Source:
    """A member and its shards that are not stored yet; `part` says which, where they were split."""

    member: Member
    shards: tuple[int, ...]
    part: str = ""

    @property
    def name(self) -> str:
        return self.member.name + self.part

    def split(self, parts: int) -> "list[Source]":
        """The shards dealt to at most `parts` processes, each to one."""
        dealt = [self.shards[i::parts] for i in range(min(parts, len(self.shards)))]
        return [
            replace(self, shards=shards, part=_part(i, len(dealt)))
            for i, shards in enumerate(dealt)
        ]


@dataclass(frozen=True)
class Target:
    """A member and the sources whose images it has not seen yet; `part` as of a Source."""

    member: Member
    sources: tuple[Member, ...]
    part: str = ""

    @property
    def name(self) -> str:
        return self.member.name + self.part

    def split(self, parts: int) -> "list[Target]":
        """The sources dealt to at most `parts` processes, each to one."""
        dealt = [self.sources[i::parts] for i in range(min(parts, len(self.sources)))]
        return [
            replace(self, sources=sources, part=_part(i, len(dealt)))
            for i, sources in enumerate(dealt)
        ]


def _part(number: int, parts: int) -> str:
    return f", part {number + 1} of {parts}" if parts > 1 else ""


def is_clean(setting: Setting, member: Member) -> bool:
    """Whether the member's clean logits are stored; an error when another model made them."""
    entry = setting.clean_entry(member)
    return entry.path.exists() and (entry.claim().path / "logits.safetensors").is_file()


def logits_path(setting: Setting, member: Member) -> Path:
    return setting.clean_entry(member).path / "logits.safetensors"


def logits(setting: Setting, member: Member) -> Tensor:
    """A member's stored clean logits, [I, K] float32."""
    return read_tensors(logits_path(setting, member))["logits"]


@contextmanager
def logits_by_block(
    setting: Setting, members: Sequence[Member]
) -> Iterator[Callable[[slice], NDArray[np.float32]]]:
    """Reads some images' stored clean logits of all M members: slice -> [M, images, K] float32."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(logits_path(setting, member), "np")) for member in members
        ]
        parts = [file.get_slice("logits") for file in files]
        yield lambda block: np.stack([part[block] for part in parts])


def correct(setting: Setting, member: Member) -> Tensor:
    """Which clean images the member classifies correctly, [I] bool."""
    return logits(setting, member).argmax(dim=1) == setting.labels


def params(setting: Setting, member: Member) -> int:
    """Number of parameters of a member whose clean pass is done."""
    return int(read_metadata(logits_path(setting, member))["params"])


def missing_shards(setting: Setting, member: Member) -> list[int]:
    """Shards still to be crafted; an error when another model or attack made the others."""
    entry = setting.adversarial_entry(member)
    shards = range(len(setting.shards))
    if not entry.path.exists():
        return list(shards)
    entry.claim()
    return [shard for shard in shards if not shard_path(entry, shard).is_file()]


def adversarial(setting: Setting, member: Member, shard: int) -> tuple[Tensor, Tensor]:
    """A stored shard: (images [n, 3, H, W], their positions in the subset [n])."""
    tensors = read_tensors(shard_path(setting.adversarial_entry(member), shard))
    return tensors["images"], tensors["index"]


def outcome_store(setting: Setting) -> OutcomeStore:
    return setting.stored_attack.outcomes({"interpolation": setting.interpolation})


def maker(setting: Setting, source: Member, target: Member) -> str:
    """Hashes of the source's images and of the target, as outcomes carry them."""
    return f"{_source_hash(setting, source)} {_target_hash(setting, target)}"


def _source_hash(setting: Setting, source: Member) -> str:
    return digest(setting.adversarial_entry(source).identity)


def _target_hash(setting: Setting, target: Member) -> str:
    return digest(setting.model(target))


def missing_sources(
    setting: Setting, members: Sequence[Member], sources: Sequence[Member] | None = None
) -> list[Target]:
    """Each target with the sources that it has still to be run on, targets without any left out.

    The sources are the members themselves, unless given.
    """
    table = outcome_store(setting)
    made_of = [(source, _source_hash(setting, source)) for source in sources or members]
    targets = []
    for target in members:
        own = _target_hash(setting, target)
        lacking = [s for s, made in made_of if not table.has(s.name, target.name, f"{made} {own}")]
        targets.append(Target(target, tuple(lacking)))
    return [target for target in targets if target.sources]


def fooled_by(setting: Setting, source: Member, targets: Sequence[Member]) -> NDArray[np.bool_]:
    """Which of a source's adversarial images fool each target, [targets, I].

    Only to be read where source and target are both correct: elsewhere nobody was asked.
    """
    position = {image: i for i, image in enumerate(setting.subset.ids)}
    place = {target.name: i for i, target in enumerate(targets)}
    fooled = np.zeros((len(targets), len(position)), dtype=bool)
    table = outcome_store(setting).read([source.name], place)
    fooled[
        table["target"].replace_strict(place, return_dtype=pl.Int64).to_numpy(),
        table["image_id"].replace_strict(position, return_dtype=pl.Int64).to_numpy(),
    ] = table["fooled"].to_numpy()
    return fooled


def outcomes(
    setting: Setting, members: Sequence[Member], sources: Sequence[Member] | None = None
) -> Outcomes:
    """Everything that is stored about these members as arrays.

    Where only some of them are sources, nobody is fooled by the images of the others: read the
    sources' rows alone.
    """
    position = {image: i for i, image in enumerate(setting.subset.ids)}
    place = {member.name: i for i, member in enumerate(members)}
    fooled = torch.zeros(len(members), len(members), len(position), dtype=torch.bool).numpy()
    table = outcome_store(setting).read([member.name for member in sources or members], place)
    fooled[
        table["source"].replace_strict(place).to_numpy(),
        table["target"].replace_strict(place).to_numpy(),
        table["image_id"].replace_strict(position).to_numpy(),
    ] = table["fooled"].to_numpy()
    return Outcomes(
        members=tuple(place),
        image_ids=setting.subset.ids,
        correct=torch.stack([correct(setting, member) for member in members]).numpy(),
        fooled=fooled,
    )
