"""Random numbers fixed by an image's key: independent of batch, device and order of work."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, key: str) -> np.random.Generator:
    """A generator fixed by a seed and a text such as an image's id."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def uniform(shape: Sequence[int], bound: float, seed: int, keys: Sequence[str]) -> Tensor:
    """Noise in [-bound, bound), [len(keys), *shape] float32 on the CPU, a generator a key."""
    draws = [generator(seed, key).random(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(draws)).mul_(2 * bound).sub_(bound)
