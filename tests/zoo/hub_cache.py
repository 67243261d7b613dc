"""An offline cache of published weights, as timm and the hub's client would have left it."""

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

COMMIT = "0" * 40


BLOCK = torch.rand(2**20, generator=torch.Generator().manual_seed(0)) - 0.5


class CheapInit(TorchFunctionMode):
    """Draws initial weights, in a tenth of the time, as parts of one block of random numbers, so
    wide that a layer's outputs are about as large as its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "erfinv_":  # makes timm's truncated normal numbers of uniform ones
            return args[0]
        weight: Any = args[0] if args else (kwargs or {}).get("tensor")
        if not name.endswith(("normal_", "uniform_")) or not weight.is_contiguous():
            return func(*args, **kwargs or {})
        width = (12 * len(weight) / max(weight.numel(), 1)) ** 0.5 if weight.ndim > 1 else 0.1
        with torch.no_grad():
            for part in weight.view(-1).split(len(BLOCK) // 2):
                start = self.random.randrange(len(BLOCK) // 2)
                torch.mul(BLOCK[start : start + len(part)], width, out=part)
        return weight


def offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have timm and netkin look for weights in a folder alone, for a test's time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))


def random_weights(name: str, **kwargs: Any) -> dict[str, Tensor]:
    """A state dict in which nothing is constant: what timm starts at zero or one is drawn, too."""
    with CheapInit():
        net = timm.create_model(name, **kwargs)
    return {key: _spread(value) for key, value in net.state_dict().items()}


def _spread(value: Tensor) -> Tensor:
    if value.is_floating_point() and value.numel() > 1 and value.std() == 0:
        value = value + 0.1 * torch.rand_like(value)
    return value.contiguous().clone()  # layers may share theirs, which safetensors does not take


def write_published(folder: Path, name: str, state: dict[str, Tensor]) -> Path:
    """A model's weights where timm looks for them: in the hub's cache, else in torch's."""
    config: Any = timm.get_pretrained_cfg(name)
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        return write_hub(folder, config.hf_hub_id, file, state)
    path = folder / "torch" / "hub" / "checkpoints" / config.url.rsplit("/", 1)[-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def write_hub(folder: Path, repository: str, file: str, state: dict[str, Tensor]) -> Path:
    """A file of a repository as the hub's client keeps it: a link to a blob named by its hash."""
    repo = folder / "hub" / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (repo / part).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    blob = repo / "blobs" / "new"
    if file.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in state.items()}, blob)
    else:
        torch.save(state, blob)
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    blob.rename(blob.with_name(digest))
    link = repo / "snapshots" / COMMIT / file
    link.symlink_to(os.path.relpath(blob.with_name(digest), link.parent))
    return link


def logits_of(net: nn.Module, pixels: Tensor) -> Tensor:
    """[B, K] in eval mode."""
    with torch.no_grad():
        return net.eval()(pixels)
