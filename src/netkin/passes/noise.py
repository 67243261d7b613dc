"""The control of chance: how often noise as large as the attack makes a model err.

A brittle model is fooled by any change of its input. Each model is therefore evaluated once on its
clean images under `netkin.attacks.SignNoise` of the attack's own eps, which uses no gradient.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from netkin.attacks import SignNoise
from netkin.attacks.grid import to_grid
from netkin.passes.setting import Setting
from netkin.store.files import digest, read_tensors
from netkin.zoo.member import Member

SEED = 0
"""Of the noise. Images and models have noise of their own."""


def has_noise(setting: Setting) -> bool:
    """Whether there is a control: for attacks that have an eps and are not noise themselves."""
    attack = setting.attack
    return attack.eps is not None and not isinstance(attack, SignNoise)


def noise_path(setting: Setting, member: Member) -> Path:
    """The file of a member's predictions under noise."""
    key = digest({"eps": setting.attack.eps, "seed": SEED, "dtype": setting.dtype})[:12]
    return setting.clean_entry(member).path / f"noise-{key}.safetensors"


def missing_noise(setting: Setting, members: Sequence[Member]) -> list[Member]:
    """The members whose predictions under noise are not stored; none where there is no control."""
    if not has_noise(setting):
        return []
    return [member for member in members if not noise_path(setting, member).is_file()]


def noised(setting: Setting, member: Member, shard: int) -> Tensor:
    """A shard of the subset under noise in a member's view, [n, 3, H, W] as images are stored."""
    clean = setting.pixels(setting.view(member), shard)
    eps = setting.attack.eps
    assert eps is not None
    keys = setting.keys(member, setting.shards[shard])
    pixels, labels = clean.float() / 255, torch.zeros(len(clean), dtype=torch.long)
    noisy = SignNoise(eps, SEED).perturb(torch.nn.Identity(), pixels, labels, keys)
    return to_grid(noisy, clean, eps) if setting.dtype == "uint8" else noisy


def fooled_by_noise(setting: Setting, members: Sequence[Member]) -> NDArray | None:
    """Which images each member misclassifies under noise, [N, I] bool; None without a control.

    To be read where the member classifies the clean image correctly.
    """
    if not has_noise(setting):
        return None
    predictions = [read_tensors(noise_path(setting, m))["predictions"] for m in members]
    return (torch.stack(predictions) != setting.labels).numpy()
